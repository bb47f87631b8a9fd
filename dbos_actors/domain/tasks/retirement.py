"""How tasks leave the book: retention drops them, or their agent is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge
from itertools import islice
from typing import NamedTuple

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.index import RETENTION_BATCH_S, TaskIndex
from dbos_actors.domain.tasks.journal import Ledger
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Event, Status, successor
from dbos_actors.domain.tasks.timers import Now, TimerHeap


class Retired(NamedTuple):
    """What retention has dropped."""

    completed: list[str]
    cancelled: list[str]
    dead: list[str]
    early: int
    """How many of them were dropped before their time, because there are too many."""


def retire(book: TaskBook, change: Change, *, limit: int) -> Retired:
    """Drop up to ``limit`` completed, cancelled and dead tasks beyond retention."""
    limits, index = book.limits, book.index
    ended, early = _beyond(change, _kept(index), limits.completed_max, limits.retention_s, limit)
    dead, dead_early = _beyond(
        change, (index.dead,), limits.dead_max, limits.dead_retention_s, limit - len(ended)
    )
    retired = Retired([], [], dead, early + dead_early)
    for task_id in (*ended, *dead):
        record = book.known(task_id)
        if record.status is not Status.DEAD:
            is_completed = record.status is Status.COMPLETED
            (retired.completed if is_completed else retired.cancelled).append(task_id)
        _drop(change, record, Event.RETIRE)
    uncounted = len(retired.cancelled) + len(dead)
    change.added = change.added.plus(Ledger(scheduled=-uncounted, deleted=uncounted))
    return retired


def _kept(index: TaskIndex) -> tuple[TimerHeap, TimerHeap]:
    """The tasks that are kept by the limits of completed ones."""
    return index.retained, index.cancelled


def _beyond(
    change: Change, heaps: Sequence[TimerHeap], kept_max: int, kept_s: int, limit: int
) -> tuple[list[str], int]:
    """The oldest in ``heaps`` that are too old or too many; how many of them are not too old."""
    too_many = sum(map(len, heaps)) - kept_max
    until = int(change.now.age_s) - kept_s
    found: list[str] = []
    early = 0
    for ended_at, task_id in islice(merge(*(heap.ascending() for heap in heaps)), limit):
        if ended_at > until and len(found) >= too_many:
            break
        if task_id not in change.records:
            found.append(task_id)
            early += ended_at > until
    return found, early


def is_retirement_due(book: TaskBook, now: Now) -> bool:
    """Whether `retire` would find enough: a batch's worth, or more than may be kept."""
    limits, index = book.limits, book.index
    return _is_overdue(_kept(index), limits.completed_max, limits.retention_s, now) or (
        _is_overdue((index.dead,), limits.dead_max, limits.dead_retention_s, now)
    )


def delete_agent(
    book: TaskBook, change: Change, agent_id: str, *, cursor: tuple[int, str] = (0, ""), limit: int
) -> tuple[int, str] | None:
    """Delete an agent's tasks, completed ones excepted, in bounded steps.

    :param cursor: what the previous step returned.
    :param limit: look at no more than so many tasks in this step.
    :returns: where to go on; None when all is done.
    """
    flows = {flow.number: flow for flow in book.flows_of(agent_id)}
    first, last = cursor
    for number in sorted(number for number in flows if number >= first):
        if number > first:
            last = ""
        while task_ids := flows[number].ids.following(last, limit):
            for task_id in task_ids:
                if task_id not in change.records:
                    _delete(change, book.known(task_id))
            last = task_ids[-1]
            limit -= len(task_ids)
            if not limit:
                return number, last
    return None


def _delete(change: Change, record: TaskRecord) -> None:
    if record.status is not Status.COMPLETED:
        _drop(change, record, Event.DELETE)
        change.added = change.added.plus(Ledger(scheduled=-1, deleted=1))
        change.ended(record, Status.GONE)


def _drop(change: Change, record: TaskRecord, event: Event) -> None:
    assert successor(record.status, event) is Status.GONE
    change.records[record.task_id] = None


def _is_overdue(heaps: Sequence[TimerHeap], kept_max: int, kept_s: int, now: Now) -> bool:
    if sum(map(len, heaps)) > kept_max:
        return True
    firsts = [first for heap in heaps if (first := heap.first_tick()) is not None]
    return bool(firsts) and min(firsts) + kept_s + RETENTION_BATCH_S <= now.age_s
