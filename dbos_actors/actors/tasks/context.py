"""What all incarnations of the scheduler's actor share.

An incarnation is dropped when the store refuses one of its commits, and the next one is read back.
What has to outlive it is kept here: counts, subscribers, what is stored, whether it can be read.
Nothing here calls the actor or the scheduler. The actor writes, the scheduler's clock reads.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from trio_util import AsyncValue

from dbos_actors.actors.tasks.alarm import Alarm
from dbos_actors.actors.tasks.clocks import TaskClock
from dbos_actors.actors.tasks.recovery import Recovered
from dbos_actors.actors.tasks.rewind import Rewind
from dbos_actors.actors.tasks.subscribers import Subscribers
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.journal import JournalError
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Status
from dbos_actors.errors import UnavailableError
from dbos_actors.loggers import get_logger
from dbos_actors.store import OwnCommit, Store

logger = get_logger(__name__)


@dataclass(slots=True)
class TaskCounts:
    """Counts since the start."""

    deliveries: int = 0
    expired: int = 0
    released: int = 0
    taken_back: int = 0
    retired: int = 0
    retired_cancelled: int = 0
    retired_dead: int = 0
    retired_early: int = 0
    requeued: int = 0
    damaged: int = 0
    lateness_ms_sum: int = 0
    lateness_ms_max: int = 0
    """Of the tasks that ended, from falling due to their first delivery."""
    recoveries: int = 0
    recovery_s: float = 0.0
    """What the last one took."""
    rewinds: int = 0
    """Times that changes which the store had refused were undone, instead of a recovery."""

    def applied(self, change: Change) -> None:
        """Take note of the outcomes of a change."""
        for outcome in change.outcomes:
            if outcome.status is not Status.GONE:
                self.lateness_ms_sum += outcome.lateness_ms
                self.lateness_ms_max = max(self.lateness_ms_max, outcome.lateness_ms)


class Readability:
    """Whether the tasks in the store can be read; if not, every call is refused."""

    def __init__(self) -> None:
        self.value = AsyncValue(True)
        self._refusal = ""

    def require(self) -> None:
        """Raise `UnavailableError` if the tasks cannot be read."""
        if self._refusal:
            raise UnavailableError(self._refusal)

    @property
    def refusal(self) -> str:
        """What every call is told; empty if the tasks can be read."""
        return self._refusal

    def refuse(self, error: JournalError) -> UnavailableError:
        """What is stored cannot be read, until the store is another; what to tell callers."""
        self._refusal = (
            f"tasks are not served, because what Redis holds of them is damaged: {error}. "
            "Stop the server and run 'dbos-actors repair'"
        )
        self.value.value = False
        logger.error("tasks_unreadable", error=str(error), remedy="dbos-actors repair")
        return UnavailableError(self._refusal)

    def reset(self) -> None:
        """The store is another: try again."""
        self._refusal = ""
        self.value.value = True


@dataclass(slots=True)
class StoredBook:
    """What the store has of the book: a snapshot, and the journal after it."""

    generation: int = 0
    """Of the snapshot in force; 0 if there is none."""
    sequence: int = 0
    """The journal holds the entries after this one."""
    snapshot_bytes: int = 0
    journal_bytes: int = 0
    writing: OwnCommit | None = None
    """The last write of a snapshot."""

    def recovered(self, found: Recovered) -> None:
        """This was read back."""
        self.generation = found.generation
        self.sequence = found.sequence
        self.snapshot_bytes = found.snapshot_bytes
        self.journal_bytes = found.journal_bytes

    async def wait_written(self) -> None:
        """Wait until no write of a snapshot is under way, so that a recovery reads all or none."""
        writing = self.writing
        if writing is not None:
            with suppress(UnavailableError):
                await writing.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerContext:
    """What all incarnations share."""

    store: Store
    clock: TaskClock
    alarm: Alarm
    """Wakes the scheduler's task."""

    random: Random
    """Of lease tokens."""

    limits: TaskLimits
    due_lease_s: int
    """For how long ListDueTasks leases what it lists; 0: it only reads."""

    events_max: int
    message_bytes_max: int
    """Of a response."""

    subscribers: Subscribers
    damaged: list[TaskRecord] = field(default_factory=list)
    """Tasks whose record cannot be read, and that live."""

    counts: TaskCounts = field(default_factory=TaskCounts)
    stored: StoredBook = field(default_factory=StoredBook)
    readability: Readability = field(default_factory=Readability)
    rewind: Rewind = field(default_factory=Rewind)

    def found_damaged(self, records: list[TaskRecord]) -> None:
        """These are to be handed out and cannot be read: the scheduler will have them die.

        Called from within a commit's or a read's end, where nothing may be submitted.
        """
        if records:
            self.damaged.extend(records)
            self.alarm.ring()
