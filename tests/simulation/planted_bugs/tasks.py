"""Planted bugs in the tasks: their book, their leases and their subscribers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from dbos_actors.actors.tasks.rewind import Undoing
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.tasks.subscribers import Subscriber
from dbos_actors.domain.tasks import cancelling, scheduling
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.claims import Claims
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now
from tests.simulation.planted_bugs.registry import planted


@planted
def a_jump_of_the_clock_makes_completed_tasks_old() -> Any:
    return patch.object(Now, "age_s", property(lambda now: now.wall_s))


@planted
def a_late_copy_revives_a_dead_task() -> Any:
    original = scheduling.schedule

    def revive(book: TaskBook, change: Any, **fields: Any) -> bool:
        return original(book, change, **{**fields, "revive": True})

    return patch.object(scheduling, "schedule", revive)


@planted
def the_key_of_a_lease_is_forgotten() -> Any:
    return patch.object(Claims, "find", lambda *_: None)


@planted
def a_drain_strands_the_pushes_under_way() -> Any:
    """It neither waits for them nor takes them back."""
    unsubscribe = Scheduler.unsubscribe

    def keep(self: Scheduler, subscriber: Subscriber, *, keep_leases: bool = False) -> None:
        if keep_leases:
            subscriber.unsent.clear()
        unsubscribe(self, subscriber, keep_leases=keep_leases)

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(Scheduler, "unsubscribe", keep),
            patch.object(Subscriber, "under_way", property(lambda _: 0, lambda *_: None)),
        ):
            yield

    return plant()


@planted
def a_cancelled_task_stays_with_its_worker() -> Any:
    """The operator is told that it is cancelled, and the worker's lease runs on."""
    original = cancelling.cancel

    def only_waiting(book: TaskBook, change: Any, task_id: str, **fields: Any) -> Any:
        record = book.find(change, task_id)
        if record is not None and record.status is Status.INFLIGHT:
            return record
        return original(book, change, task_id, **fields)

    return patch.object(cancelling, "cancel", only_waiting)


@planted
def a_requeued_task_keeps_its_deliveries() -> Any:
    original = cancelling.requeue

    def keep(book: TaskBook, change: Any, task_id: str, **fields: Any) -> Any:
        before = book.find(change, task_id)
        record = original(book, change, task_id, **fields)
        if before is not None:
            record.deliveries = before.deliveries
        return record

    return patch.object(cancelling, "requeue", keep)


@planted
def a_refused_change_is_undone_in_the_ledger_alone() -> Any:
    """What the store has refused stays in the rows and indexes of the book."""
    original = TaskBook.undo

    def keep_rows(self: TaskBook, change: Any, now: Now) -> None:
        change.before = []
        original(self, change, now)

    return patch.object(TaskBook, "undo", keep_rows)


@planted
def refused_changes_are_taken_for_committed_ones() -> Any:
    """The next incarnation takes the book over as it is."""

    async def nothing(undoing: Undoing, _: Any) -> int:
        undoing.changes.clear()
        return 0

    return patch("dbos_actors.actors.tasks.actor.undo", nothing)
