"""ScheduleTask: a task is added, changed while it is pending, or revived when it is dead."""

from __future__ import annotations

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.deliveries import lateness_ms
from dbos_actors.domain.tasks.journal import Ledger
from dbos_actors.domain.tasks.limits import ATTEMPTS_MAX, SCHEDULED_AT_MAX, require_range
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import (
    CancelledTaskError,
    DeadTaskError,
    Event,
    Settled,
    Status,
    successor,
)
from dbos_actors.errors import InvalidFieldError, OverloadedError, QuotaError


def schedule(
    book: TaskBook,
    change: Change,
    *,
    task_id: str,
    agent_id: str,
    module_name: str,
    payload_digest: int,
    scheduled_at: int = 0,
    max_attempts: int = 0,
    revive: bool = False,
) -> bool:
    """Add a task, change a pending one, or revive a dead one.

    :param scheduled_at: Unix seconds, 0 for now.
    :param max_attempts: deliveries before the task is dead, 0 for the default.
    :param revive: let a dead task begin anew; only then may it differ from what it was.
    :returns: False if it is the same task again and nothing changes.
    :raises InvalidFieldError: a time or number is out of range.
    :raises InvalidTransitionError: the task is inflight or completed, and differs.
    :raises DeadTaskError: the task is dead, not to be revived, and differs.
    :raises CancelledTaskError: the task is cancelled, and differs.
    :raises OverloadedError: the book is full; `QuotaError`: the agent has as many as it may.
    """
    require_time("task.scheduled_at", scheduled_at)
    require_range("task.max_attempts", max_attempts, 0, ATTEMPTS_MAX)
    wall_s = change.now.wall_s
    flow = book.flow(change, agent_id, module_name)
    record = book.find(change, task_id)
    event = Event.SCHEDULE
    _require_room_of(book, change, record, agent_id)
    if record is None:
        _count_new(book, change)
        record = TaskRecord(task_id, flow)
    elif revive and record.status is Status.DEAD:
        event = Event.REVIVE
        record.deliveries = 0
        record.last_error = ""
    else:
        if (
            record.flow is flow
            and record.digest == payload_digest
            and max_attempts in (0, record.max_attempts)
            and _is_same_time(record, scheduled_at, wall_s)
        ):
            return False
        _refuse_another(record)
    record.status = successor(record.status, event)
    record.settled = Settled.NOT
    record.token = record.span_s = record.moment = 0
    record.flow = flow
    record.digest = payload_digest
    record.max_attempts = max_attempts or book.limits.max_attempts
    record.scheduled_at = scheduled_at or int(wall_s)
    if not record.deliveries:
        record.lateness_ms = lateness_ms(record.scheduled_at, wall_s)
    if flow.number not in book.flows:
        change.flows[agent_id, module_name] = flow
    change.put(record)
    return True


def _refuse_another(record: TaskRecord) -> None:
    """Another task is scheduled under the id of one that has come to an end."""
    if record.status is Status.DEAD:
        raise DeadTaskError(record.task_id)
    if record.status is Status.CANCELLED:
        raise CancelledTaskError(record.task_id)


def _count_new(book: TaskBook, change: Change) -> None:
    tasks_max = book.limits.tasks_max
    if len(book) + change.added.scheduled >= tasks_max:
        raise OverloadedError("task book", limit=tasks_max, unit="tasks")
    change.added = change.added.plus(Ledger(scheduled=1))


def _require_room_of(
    book: TaskBook, change: Change, record: TaskRecord | None, agent_id: str
) -> None:
    """Raise `QuotaError` if the agent would get a task more than it may have.

    ``record`` is the task so far: None, or perhaps another agent's.
    """
    limit = book.limits.agent_tasks_max
    if not limit or (record is not None and record.flow.agent_id == agent_id):
        return
    in_change = sum(
        record is not None and record.flow.agent_id == agent_id
        for record in change.records.values()
    )
    if book.tasks_of(agent_id) + in_change >= limit:
        raise QuotaError(f"the agent {agent_id!r}", quota=f"{limit} tasks")


def require_time(field: str, scheduled_at: int) -> None:
    """Raise `InvalidFieldError` if a time that the request names ``field`` is none."""
    if not 0 <= scheduled_at <= SCHEDULED_AT_MAX:
        raise InvalidFieldError(field, f"must be Unix seconds up to {SCHEDULED_AT_MAX}")


def _is_same_time(record: TaskRecord, scheduled_at: int, wall_s: float) -> bool:
    """Whether a request for ``scheduled_at`` asks for the time that the task has already.

    A request for "now" (0) does unless the task is pending and its time is still to come.
    """
    if record.scheduled_at == scheduled_at:
        return True
    return scheduled_at == 0 and (
        record.status is not Status.PENDING or record.scheduled_at <= wall_s
    )
