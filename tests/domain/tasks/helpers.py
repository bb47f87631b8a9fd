"""Short ways to say what the tests of the task book say often."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dbos_actors.domain.tasks import (
    cancelling,
    deliveries,
    leasing,
    retirement,
    scheduling,
    settling,
)
from dbos_actors.domain.tasks.audit import Audit
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.journal import Ledger
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.record import TaskRecord, payload_digest
from dbos_actors.domain.tasks.recovery import Recovery
from dbos_actors.domain.tasks.scan import oldest_tasks
from dbos_actors.domain.tasks.timers import Now

T = TypeVar("T")
WALL_S = 1_700_000_000.0
NOW_S = int(WALL_S)
MONOTONIC_S = 500.0


class Driver:
    """A task book with hands on both its clocks, keeping its journal."""

    def __init__(self, limits: TaskLimits | None = None) -> None:
        self.limits = limits
        self.book = TaskBook(limits)
        self.wall_s = WALL_S
        self.monotonic_s = MONOTONIC_S
        self.journal: list[bytes] = []
        self.applied: list[Change] = []
        """Since the last restart."""
        self.rehearses = False
        self.last = Change(self.now)
        self._token = 0x1000

    @property
    def now(self) -> Now:
        return Now(self.wall_s, self.monotonic_s, WALL_S + self.monotonic_s - MONOTONIC_S)

    def sleep(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds
        self.book.advance(self.now, limit=10**9)

    def turn(self, operation: Callable[[Change], T]) -> T:
        """One operation, journalled and applied; with `rehearses`, applied and undone before."""
        self.book.advance(self.now, limit=10**9)
        self.last = self.book.begin(self.now)
        result = operation(self.last)
        if self.last:
            self.journal.append(self.book.seal(self.last))
            if self.rehearses:
                before = whole_state(self.book)
                self.book.apply(self.last)
                self.book.undo(self.last, self.now)
                assert whole_state(self.book) == before
            self.book.apply(self.last)
            self.applied.append(self.last)
        return result

    def undo(self, changes: int) -> list[Change]:
        """Take the last changes back; they are returned, in order, and may be applied again."""
        undone = self.applied[len(self.applied) - changes :]
        del self.applied[len(self.applied) - changes :]
        for change in reversed(undone):
            self.book.undo(change, self.now)
        return undone

    @contextmanager
    def without_the_last(self, changes: int) -> Iterator[None]:
        """Within the block the last changes are undone; so far the book is what it was then."""
        live = durable_state(self.book)
        undone = self.undo(min(changes, len(self.applied)))
        journal = self.journal[: len(self.journal) - len(undone)]
        before = recovered([], journal, self.now, self.limits)
        assert durable_state(self.book) == durable_state(before)
        yield
        for change in undone:
            self.book.apply(change)
        self.applied += undone
        assert durable_state(self.book) == live

    def schedule(
        self,
        task_id: str,
        *,
        agent_id: str = "a1",
        module_name: str = "ping",
        payload: bytes = b"",
        scheduled_at: int = 0,
        max_attempts: int = 0,
        revive: bool = False,
    ) -> bool:
        return self.turn(
            lambda change: scheduling.schedule(
                self.book,
                change,
                task_id=task_id,
                agent_id=agent_id,
                module_name=module_name,
                payload_digest=payload_digest(payload),
                scheduled_at=scheduled_at,
                max_attempts=max_attempts,
                revive=revive,
            )
        )

    def lease(self, limit: int = 100, lease_s: int = 30, **filters: Any) -> list[TaskRecord]:
        self._token += 0x1_0000
        return self.turn(
            lambda change: leasing.lease(
                self.book,
                change,
                limit=limit,
                lease_s=lease_s,
                worker_id="w1",
                token=self._token,
                **filters,
            )
        )

    def ack(self, task_id: str, lease_token: str = "") -> TaskRecord:
        return self.turn(lambda change: settling.ack(self.book, change, task_id, lease_token))

    def nack(self, task_id: str, lease_token: str = "", **more: Any) -> TaskRecord:
        return self.turn(
            lambda change: settling.nack(self.book, change, task_id, lease_token, **more)
        )

    def extend(self, task_id: str, lease_token: str, lease_s: int) -> TaskRecord:
        return self.turn(
            lambda change: settling.extend(self.book, change, task_id, lease_token, lease_s=lease_s)
        )

    def expire(self, limit: int = 10**6) -> list[TaskRecord]:
        return self.turn(lambda change: deliveries.expire(self.book, change, limit=limit))

    def retire(self, limit: int = 10**6) -> list[str]:
        retired = self.turn(lambda change: retirement.retire(self.book, change, limit=limit))
        return retired.completed + retired.cancelled + retired.dead

    def cancel(self, task_id: str, reason: str = "") -> TaskRecord:
        return self.turn(
            lambda change: cancelling.cancel(self.book, change, task_id, reason=reason)
        )

    def requeue(self, task_id: str, scheduled_at: int = 0) -> TaskRecord:
        return self.turn(
            lambda change: cancelling.requeue(self.book, change, task_id, scheduled_at=scheduled_at)
        )

    def record(self, task_id: str) -> TaskRecord:
        record = self.book.get(task_id)
        assert record is not None
        return record

    def restart(self, chunks: Sequence[bytes] = (), journal: list[bytes] | None = None) -> None:
        """Recover from a snapshot and the journal after it; from the whole journal alone."""
        self.applied = []
        entries = self.journal if journal is None else journal
        self.book = recovered(list(chunks), entries, self.now, self.limits)


def recovered(
    chunks: list[bytes], journal: list[bytes], now: Now, limits: TaskLimits | None = None
) -> TaskBook:
    recovery = Recovery(limits)
    for chunk in chunks:
        recovery.load_chunk(chunk)
    for entry in journal:
        recovery.replay(entry)
    for _ in recovery.build(now):
        pass
    return recovery.book


def due_tasks(book: TaskBook, *, wanted: int = 10**6, **filters: Any) -> Iterator[TaskRecord]:
    for step in oldest_tasks(book, wanted=wanted, **filters):
        yield from step.records


def all_rows(book: TaskBook) -> Iterator[tuple[str, bytes]]:
    last = ""
    while rows := book.rows_after(last):
        yield from rows
        last = rows[-1][0]


def durable_state(book: TaskBook) -> tuple[int, Ledger, dict[str, bytes], dict[int, Any]]:
    """All that must survive a restart."""
    rows = dict(all_rows(book))
    flows = {
        number: (flow.agent_id, flow.module_name, len(flow.ids))
        for number, flow in book.flows.items()
    }
    return book.sequence, book.ledger, rows, flows


def whole_state(book: TaskBook) -> tuple[Any, ...]:
    """All that a book holds but the order of turns and the claims."""
    places = {
        task_id: (book.index.places(book.known(task_id)), book.index.deadlines.get(task_id))
        for task_id, _ in all_rows(book)
    }
    flows = {flow.number: list(flow.ids.following("", 10**6)) for flow in book.flows_of()}
    sizes = book.index.sizes()
    return durable_state(book), places, flows, sizes, book.next_flow, dict(book.index.deadlines)


def assert_audited(driver: Driver) -> None:
    """An audit of the whole book finds nothing."""
    audit = Audit(driver.book)
    while audit.step(driver.now):
        pass
    assert audit.findings.clean, audit.findings
