"""AckTask, NackTask and ExtendLease: what a worker says of a task that it was given.

A request that carries the token of a delivery is *fenced*: it counts only if the task was not
given to anybody since. The same request again gets its first answer again. A request without a
token counts for whatever delivery the task is in.
"""

from __future__ import annotations

import math

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.deliveries import count_delivery, give_up
from dbos_actors.domain.tasks.index import monotonic_ticks_passed
from dbos_actors.domain.tasks.journal import Ledger
from dbos_actors.domain.tasks.limits import DELAY_S_MAX, LEASE_S_MAX, require_range
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import (
    Event,
    Settled,
    StaleLeaseError,
    Status,
    UnknownTaskError,
    successor,
)
from dbos_actors.errors import MissingFieldError


def ack(book: TaskBook, change: Change, task_id: str, lease_token: str = "") -> TaskRecord:
    """The task is done.

    Again with the token that completed it: the first answer again, and nothing
    in ``change``. Without a token: while the task is pending or inflight, whoever has it.

    :raises UnknownTaskError: there is no such task.
    :raises StaleLeaseError: the token is of another, or an ended, delivery.
    :raises InvalidTransitionError: without a token, the task is not to be had.
    """
    record, repeated = _fenced(book, change, task_id, lease_token, Event.ACK)
    if repeated:
        return record
    if record.status is Status.PENDING:
        count_delivery(record, change.now)
    record.status = successor(record.status, Event.ACK)
    record.settled = Settled.ACK if lease_token else Settled.ACK_UNFENCED
    record.moment = int(change.now.outcome_s)
    record.span_s = 0
    record.worker_id = ""
    change.added = change.added.plus(Ledger(completed=1))
    change.put(record)
    change.ended(record, Status.COMPLETED)
    return record


def nack(
    book: TaskBook,
    change: Change,
    task_id: str,
    lease_token: str = "",
    *,
    delay_s: int = 0,
    reason: str = "",
) -> TaskRecord:
    """The worker gives the task back, for another try after ``delay_s`` seconds.

    It is dead if that was its last attempt. Repeated with the right token, or
    without one before the task is due again: the first answer again, and nothing
    in ``change``. Raises what `ack` raises, and `InvalidFieldError`.
    """
    require_range("retry_delay_seconds", delay_s, 0, DELAY_S_MAX)
    record, repeated = _fenced(book, change, task_id, lease_token, Event.NACK)
    if repeated:
        return record
    if record.status is Status.PENDING:
        count_delivery(record, change.now)
    give_up(
        change,
        record,
        Event.NACK,
        Settled.NACK,
        delay_s=delay_s,
        error=reason or "given back without a reason",
    )
    return record


def extend(
    book: TaskBook, change: Change, task_id: str, lease_token: str, *, lease_s: int
) -> TaskRecord:
    """Let a running lease end ``lease_s`` seconds from now. Raises what `ack` raises."""
    require_range("lease_seconds", lease_s, 1, LEASE_S_MAX)
    if not lease_token:
        raise MissingFieldError("lease_token")
    record, _ = _fenced(book, change, task_id, lease_token, Event.EXTEND)
    record.status = successor(record.status, Event.EXTEND)
    record.span_s = lease_s
    record.moment = math.ceil(change.now.wall_s + lease_s)
    change.put(record, change.now.monotonic_s + lease_s)
    return record


def _fenced(
    book: TaskBook, change: Change, task_id: str, lease_token: str, event: Event
) -> tuple[TaskRecord, bool]:
    """The record, and whether ``event`` has already happened to this very delivery."""
    record = book.find(change, task_id)
    if record is None:
        raise UnknownTaskError(task_id)
    if not lease_token:
        repeated = _is_repeated(book, change, record, event)
        if not repeated:
            successor(record.status, event)
        return record, repeated
    if record.lease_token != lease_token:
        raise StaleLeaseError(task_id, "it is not the token of the last delivery")
    if record.status is Status.INFLIGHT:
        return record, False
    if record.settled in _REPEATS.get(event, ()):
        return record, True
    raise StaleLeaseError(task_id, f"{_ENDED[record.settled]}, the task is {record.status.text}")


def _is_repeated(book: TaskBook, change: Change, record: TaskRecord, event: Event) -> bool:
    """Whether ``event``, without a token, has happened and nobody was given the task since."""
    if event is Event.ACK:
        return record.settled is Settled.ACK_UNFENCED and record.status is Status.COMPLETED
    if record.settled is not Settled.NACK:
        return False
    if record.status is Status.PENDING:
        return not _is_due(book, change, record)
    return record.status is Status.DEAD


def _is_due(book: TaskBook, change: Change, record: TaskRecord) -> bool:
    """Whether a pending task may be handed out, as far as its times go."""
    now, task_id = change.now, record.task_id
    if record.scheduled_at > int(now.wall_s):
        return False
    if task_id in change.records:
        return change.deadlines.get(task_id, 0.0) <= now.monotonic_s
    tick = book.index.deadlines.get(task_id)
    return tick is None or tick <= monotonic_ticks_passed(now)


_REPEATS = {
    Event.ACK: (Settled.ACK, Settled.ACK_UNFENCED),
    Event.NACK: (Settled.NACK,),
}
_ENDED = {
    Settled.NOT: "the delivery has ended",
    Settled.ACK: "the delivery was acknowledged",
    Settled.ACK_UNFENCED: "the delivery was acknowledged",
    Settled.NACK: "the delivery was given back",
    Settled.EXPIRED: "the lease has expired",
    Settled.CANCELLED: "the delivery was cancelled",
}
