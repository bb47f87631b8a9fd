"""What one turn is going to do to the tasks, before it is done.

A rule (`scheduling`, `leasing`, `settling`, `retirement`) writes into a `Change` and nothing else.
It reads what the change already holds, then the book. So several rules may share a turn, one that
raises `RefusedError` leaves the change as it was, and a change that is dropped never happened.
"""

from __future__ import annotations

from typing import NamedTuple

from dbos_actors.domain.tasks.claims import Claim
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.journal import Ledger
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now


class Outcome(NamedTuple):
    """A task has come to an end: completed, dead, cancelled, or gone (deleted)."""

    task_id: str
    agent_id: str
    module_name: str
    status: Status
    lateness_ms: int
    deliveries: int
    error: str


class Before(NamedTuple):
    """What a task was before a change, so that the change can be undone."""

    task_id: str
    row: bytes | None
    """None: there was no such task."""
    tick: int | None
    """When its lease or its delay would have ended; None: it had none."""


class Change:
    """What one turn is going to do; owned by whoever began it until it is applied or dropped.

    ``records`` holds every task touched, as it will be (None: gone); ``outcomes``
    what came to an end, in order. Once applied, ``before`` and ``emptied`` say what was
    replaced. A turn keeps its change until its commit has an outcome, so what can be undone is
    bounded as the queue of commits is: it is the old rows of tasks whose new rows wait there.
    """

    __slots__ = (
        "added",
        "before",
        "claims",
        "deadlines",
        "emptied",
        "flows",
        "now",
        "outcomes",
        "records",
        "rows",
        "sequence",
        "served",
        "size_bytes",
    )

    def __init__(self, now: Now) -> None:
        self.now = now
        self.records: dict[str, TaskRecord | None] = {}
        self.deadlines: dict[str, float] = {}  # on the monotonic clock
        self.flows: dict[tuple[str, str], Flow] = {}  # not yet known to the book
        self.served: list[Flow] = []
        self.outcomes: list[Outcome] = []
        self.claims: list[tuple[Claim, tuple[str, ...]]] = []  # each with its tasks
        self.added = Ledger()
        self.sequence = 0  # 0 until sealed
        self.size_bytes = 0  # of its journal entry, likewise
        self.rows: dict[str, bytes] = {}  # from sealing on; empty: gone
        self.before: list[Before] = []  # from applying on
        self.emptied: list[Flow] = []  # forgotten since their last task left them, likewise

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.records)

    def put(self, record: TaskRecord, deadline_s: float | None = None) -> None:
        """Set what a task will be."""
        self.records[record.task_id] = record
        if deadline_s is None:
            self.deadlines.pop(record.task_id, None)
        else:
            self.deadlines[record.task_id] = deadline_s

    def ended(self, record: TaskRecord, status: Status) -> None:
        """Note an outcome."""
        self.outcomes.append(
            Outcome(
                record.task_id,
                record.agent_id,
                record.module_name,
                status,
                record.lateness_ms if record.deliveries else 0,
                record.deliveries,
                record.last_error,
            )
        )
