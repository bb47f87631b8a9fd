"""Short ways to say what the tests of the task book say often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dbos_actors.domain.tasks import (
    cancelling,
    deliveries,
    leasing,
    retirement,
    scheduling,
    settling,
)
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
        """One operation, journalled and applied."""
        self.book.advance(self.now, limit=10**9)
        self.last = self.book.begin(self.now)
        result = operation(self.last)
        if self.last:
            self.journal.append(self.book.seal(self.last))
            self.book.apply(self.last)
        return result

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

    def restart(self) -> None:
        """Recover from the journal alone."""
        self.book = recovered([], self.journal, self.now, self.limits)


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
