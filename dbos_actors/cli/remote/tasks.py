"""``dbos-actors tasks``: what waits to be done, is being done, or failed."""

from __future__ import annotations

import uuid
from pathlib import Path

import click

from dbos_actors.cli.remote import times
from dbos_actors.cli.remote.output import Column
from dbos_actors.cli.remote.records import record_of
from dbos_actors.cli.remote.session import Session, accepted, confirmed, listing, remote
from dbos_actors.cli.remote.times import TIME
from dbos_actors.client import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    RequeueTaskRequest,
    ScheduleTaskRequest,
    Task,
)

COLUMNS = (
    Column("id"),
    Column("agent_id"),
    Column("module_name"),
    Column("status"),
    Column("scheduled_at", lambda record: times.shown(record["scheduled_at"])),
    Column("retry_count"),
    Column("last_error"),
)


@click.group()
def tasks() -> None:
    """Tasks: what waits, is being done, or failed."""


@remote("list", tasks)
@click.option("--status", default="", help="Only tasks with this status.")
@click.option("--agent", default="", help="Only tasks of this agent.")
@click.option("--module", default="", help="Only tasks of this module.")
@listing
async def list_tasks(
    session: Session, *, status: str, agent: str, module: str, limit: int | None
) -> None:
    """List tasks."""
    request = ListTasksRequest(status=status, agent_id=agent, module_name=module)
    records = session.pages(session.stub.list_tasks, request, "tasks", limit=limit)
    await session.out.many(records, COLUMNS)


@remote("show", tasks)
@click.argument("task_id")
async def show_task(session: Session, *, task_id: str) -> None:
    """Show one task: payload, attempts, last error."""
    response = await session.stub.get_task(GetTaskRequest(task_id=task_id))
    accepted(response, found=response.found)
    session.out.one(record_of(response.task))


@remote("schedule", tasks)
@click.argument("agent_id")
@click.argument("module")
@click.option("--id", "task_id", help="Names the task. By default a random id.")
@click.option("--at", type=TIME, default=0, help="When it falls due. By default now.")
@click.option("--payload", default="", help="What to do, as text.")
@click.option(
    "--payload-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="What to do, from a file; - is standard input.",
)
@click.option("--max-attempts", type=click.IntRange(0, 1_000), default=0, help="0: the server's.")
@click.option("--revive", is_flag=True, help="Let a dead task of this id begin anew.")
async def schedule_task(
    session: Session,
    *,
    agent_id: str,
    module: str,
    task_id: str | None,
    at: int,
    payload: str,
    payload_file: Path | None,
    max_attempts: int,
    revive: bool,
) -> None:
    """Schedule a task for AGENT_ID's MODULE. Sent again with the same --id, it changes nothing."""
    if payload_file is None:
        content = payload.encode()
    else:
        with click.open_file(str(payload_file), "rb") as file:
            content = file.read()
    task = Task(
        id=task_id or f"task-{uuid.uuid4()}",
        agent_id=agent_id,
        module_name=module,
        payload=content,
        scheduled_at=at,
        max_attempts=max_attempts,
    )
    accepted(await session.stub.schedule_task(ScheduleTaskRequest(task=task, revive=revive)))
    session.out.done(f"{task.id} is scheduled", scheduled=task.id)


@remote("cancel", tasks)
@click.argument("task_ids", nargs=-1, required=True)
@click.option("--reason", default="", help="Becomes the task's last error.")
@click.option("--yes", is_flag=True, help="Cancel without asking.")
async def cancel_tasks(
    session: Session, *, task_ids: tuple[str, ...], reason: str, yes: bool
) -> None:
    """Cancel tasks. A worker that has one can no longer settle it."""
    confirmed(f"Cancel {_named(task_ids)}?", yes=yes)
    for task_id in task_ids:
        request = CancelTaskRequest(task_id=task_id, reason=reason)
        accepted(await session.stub.cancel_task(request))
        session.out.done(f"{task_id} is cancelled", cancelled=task_id)


@remote("requeue", tasks)
@click.argument("task_ids", nargs=-1, required=True)
@click.option("--at", type=TIME, default=0, help="When they fall due. By default now.")
async def requeue_tasks(session: Session, *, task_ids: tuple[str, ...], at: int) -> None:
    """Make dead or cancelled tasks pending again, with their attempts counted anew."""
    for task_id in task_ids:
        request = RequeueTaskRequest(task_id=task_id, scheduled_at=at)
        accepted(await session.stub.requeue_task(request))
        session.out.done(f"{task_id} is requeued", requeued=task_id)


def _named(task_ids: tuple[str, ...]) -> str:
    return task_ids[0] if len(task_ids) == 1 else f"{len(task_ids)} tasks"
