"""CancelTask and RequeueTask: what an operator decides about a task, whoever has it.

Neither needs the token of a delivery. Cancelling fences the lease of an inflight task: its worker's
token is refused from then on. Requeueing makes a task that is dead or cancelled pending again, as
it was scheduled but for its time. The same decision again changes nothing.
"""

from __future__ import annotations

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.deliveries import lateness_ms
from dbos_actors.domain.tasks.record import LAST_ERROR_BYTES_MAX, TaskRecord, clipped
from dbos_actors.domain.tasks.scheduling import require_time
from dbos_actors.domain.tasks.states import Event, Settled, Status, UnknownTaskError, successor


def cancel(book: TaskBook, change: Change, task_id: str, *, reason: str = "") -> TaskRecord:
    """The task is to be done by nobody.

    :param reason: what `last_error` says; empty leaves it as it is.
    :returns: the task as it will be. If it is cancelled already, nothing is in ``change``.
    :raises UnknownTaskError: there is no such task.
    :raises InvalidTransitionError: it is completed or dead.
    """
    record = _known(book, change, task_id)
    if record.status is Status.CANCELLED:
        return record
    is_leased = record.status is Status.INFLIGHT
    record.status = successor(record.status, Event.CANCEL)
    if is_leased:
        record.settled = Settled.CANCELLED
    record.moment = int(change.now.outcome_s)
    record.span_s = 0
    record.worker_id = ""
    if reason:
        record.last_error = clipped(reason, LAST_ERROR_BYTES_MAX)
    change.put(record)
    change.ended(record, Status.CANCELLED)
    return record


def requeue(book: TaskBook, change: Change, task_id: str, *, scheduled_at: int = 0) -> TaskRecord:
    """A dead or cancelled task is pending again, with its attempts counted anew.

    :param scheduled_at: when it falls due, Unix seconds; 0 for now.
    :returns: the task as it will be. If it is pending or inflight, nothing is in ``change``.
    :raises InvalidFieldError: the time is none.
    :raises UnknownTaskError: there is no such task.
    :raises InvalidTransitionError: it is completed.
    """
    require_time("scheduled_at", scheduled_at)
    record = _known(book, change, task_id)
    if record.status in (Status.PENDING, Status.INFLIGHT):
        return record
    record.status = successor(record.status, Event.REQUEUE)
    record.settled = Settled.NOT
    record.token = record.span_s = record.moment = record.deliveries = 0
    record.last_error = ""
    wall_s = change.now.wall_s
    record.scheduled_at = scheduled_at or int(wall_s)
    record.lateness_ms = lateness_ms(record.scheduled_at, wall_s)
    change.put(record)
    return record


def _known(book: TaskBook, change: Change, task_id: str) -> TaskRecord:
    record = book.find(change, task_id)
    if record is None:
        raise UnknownTaskError(task_id)
    return record
