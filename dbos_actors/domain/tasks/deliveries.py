"""How deliveries are counted, and how they end when the worker does not say so.

A delivery ends without its worker when the lease expires, when the worker's stream ends
(`release`, `take_back`), or when the task cannot be read (`bury`). `give_up` decides what follows:
the task is pending again, at once or after a delay, or it is dead because that was its last
attempt.
"""

from __future__ import annotations

import math
from itertools import islice

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.index import monotonic_ticks_passed
from dbos_actors.domain.tasks.record import (
    LAST_ERROR_BYTES_MAX,
    LATENESS_MS_MAX,
    TaskRecord,
    clipped,
)
from dbos_actors.domain.tasks.states import Event, Settled, Status, successor
from dbos_actors.domain.tasks.timers import Now


def expire(book: TaskBook, change: Change, *, limit: int) -> list[TaskRecord]:
    """End up to ``limit`` leases whose time is up; the records they leave."""
    ended = []
    until = monotonic_ticks_passed(change.now)
    for _, task_id in islice(book.index.leases.ascending(until), limit):
        if task_id in change.records:
            continue
        record = book.known(task_id)
        error = f"lease of {_worker(record)} expired after {record.span_s} s"
        give_up(change, record, Event.EXPIRE, Settled.EXPIRED, delay_s=0, error=error)
        ended.append(record)
    return ended


def release(book: TaskBook, change: Change, task_id: str, lease_token: str, *, reason: str) -> bool:
    """End one lease at once because its worker is gone; False if it had ended already."""
    record = _leased(book, change, task_id, lease_token)
    if record is None:
        return False
    give_up(change, record, Event.EXPIRE, Settled.EXPIRED, delay_s=0, error=reason)
    return True


def take_back(book: TaskBook, change: Change, task_id: str, lease_token: str) -> bool:
    """End a lease that its worker has not been sent: the delivery does not count.

    False if the lease had ended already.
    """
    record = _leased(book, change, task_id, lease_token)
    if record is None:
        return False
    discount_delivery(record)
    record.status = successor(record.status, Event.EXPIRE)
    record.settled = Settled.EXPIRED
    record.worker_id = ""
    record.span_s = record.moment = 0
    change.put(record)
    return True


def _leased(book: TaskBook, change: Change, task_id: str, lease_token: str) -> TaskRecord | None:
    """The task, if that lease of it is still running."""
    record = book.find(change, task_id)
    if record is None or record.status is not Status.INFLIGHT:
        return None
    return record if record.lease_token == lease_token else None


def bury(book: TaskBook, change: Change, found: TaskRecord, *, error: str) -> bool:
    """Let a task die at once, because its payload cannot be read.

    :param found: the task as it was when that was found out.
    :returns: False if it has changed since.
    """
    record = book.find(change, found.task_id)
    if record is None or record.encode() != found.encode():
        return False
    record.status = successor(record.status, Event.DAMAGE)
    record.settled = Settled.EXPIRED  # whoever had it before has it no longer
    _die(change, record, error)
    return True


def give_up(
    change: Change,
    record: TaskRecord,
    event: Event,
    settled: Settled,
    *,
    delay_s: int,
    error: str,
) -> None:
    """End a delivery without an acknowledgement: the task is pending again, or dead.

    :param event: what ends the delivery, unless it was the task's last attempt.
    :param settled: how the record says that the delivery ended.
    :param delay_s: for how many seconds the task is not handed out again.
    :param error: what `last_error` says.
    """
    dead = record.deliveries >= record.max_attempts
    record.status = successor(record.status, Event.EXHAUST if dead else event)
    record.settled = settled
    now = change.now
    if dead:
        _die(change, record, error)
        return
    record.last_error = clipped(error, LAST_ERROR_BYTES_MAX)
    record.worker_id = ""
    if delay_s:
        record.span_s = delay_s
        record.moment = math.ceil(now.wall_s + delay_s)
        change.put(record, now.monotonic_s + delay_s)
    else:
        record.span_s = record.moment = 0
        change.put(record)


def _die(change: Change, record: TaskRecord, error: str) -> None:
    record.last_error = clipped(error, LAST_ERROR_BYTES_MAX)
    record.worker_id = ""
    record.span_s = 0
    record.moment = int(change.now.outcome_s)
    change.put(record)
    change.ended(record, Status.DEAD)


def lateness_ms(scheduled_at: int, wall_s: float) -> int:
    """How long after its time a task is, in milliseconds; 0 before it."""
    return min(max(0, int((wall_s - scheduled_at) * 1000)), LATENESS_MS_MAX)


def count_delivery(record: TaskRecord, now: Now) -> None:
    """Count one more delivery. The first one fixes how late the task was delivered."""
    record.deliveries += 1
    if record.deliveries == 1:
        # Until now `lateness_ms` said how late the task was when it was scheduled. That part of
        # the delay is its client's.
        late_ms = lateness_ms(record.scheduled_at, now.wall_s)
        record.lateness_ms = max(0, late_ms - record.lateness_ms)


def discount_delivery(record: TaskRecord) -> None:
    """Undo `count_delivery`. The lease knows to the second when it began."""
    record.deliveries -= 1
    if record.deliveries == 0:
        late_ms = lateness_ms(record.scheduled_at, record.moment - record.span_s)
        record.lateness_ms = max(0, late_ms - record.lateness_ms)


def _worker(record: TaskRecord) -> str:
    return record.worker_id or "an unnamed worker"
