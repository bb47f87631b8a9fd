"""What an operator decides about one task, as turns of the actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dbos_actors.actors.tasks.messages import Requeue
from dbos_actors.actors.tasks.responses import CANCELLED, REQUEUED
from dbos_actors.actors.tasks.turn_maker import TurnMaker
from dbos_actors.api.messages import CancelTaskRequest
from dbos_actors.domain.events import TASK_REQUEUED
from dbos_actors.domain.tasks import cancelling
from dbos_actors.domain.tasks.record import payload_digest
from dbos_actors.errors import UnavailableError
from dbos_actors.runtime import Turn


def cancel(turns: TurnMaker, request: CancelTaskRequest) -> Turn:
    change = turns.begin()
    cancelling.cancel(turns.book, change, request.task_id, reason=request.reason)
    return turns.make(change, CANCELLED)


def requeue(turns: TurnMaker, request: Requeue) -> Turn:
    """Write the task again with its new time; its payload is not in memory."""
    change, task = turns.begin(), request.task
    record = cancelling.requeue(turns.book, change, task.id, scheduled_at=request.scheduled_at)
    if not change:
        return Turn(REQUEUED)
    if (record.agent_id, record.module_name, record.digest) != (
        task.agent_id,
        task.module_name,
        payload_digest(task.payload),
    ):
        raise UnavailableError(f"task {task.id} was scheduled anew while it was read")
    kept = turns.keep(task, scheduled_at=record.scheduled_at, created_at=task.created_at)
    now_s = int(change.now.wall_s)
    message = f"task {task.id} of agent {task.agent_id} is pending again"
    turns.context.counts.requeued += 1
    return turns.make(
        change,
        REQUEUED,
        commands=[kept, turns.event(TASK_REQUEUED, record, message, now_s)],
    )


HANDLERS: Final[dict[type, Callable[[TurnMaker, Any], Turn]]] = {
    CancelTaskRequest: cancel,
    Requeue: requeue,
}
