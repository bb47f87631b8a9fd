"""Calls that several tests of the client make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from dbos_actors.client import DbosStub, GetTaskRequest, ScheduleTaskRequest, Task


async def schedule(stub: DbosStub, *task_ids: str, **fields: Any) -> None:
    for task_id in task_ids:
        task = Task(id=task_id, agent_id="a", module_name="ping", **fields)
        assert (await stub.schedule_task(ScheduleTaskRequest(task=task))).success


async def task_of(stub: DbosStub, task_id: str) -> Task:
    return (await stub.get_task(GetTaskRequest(task_id=task_id))).task


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        await anyio.sleep(0.01)


async def has_status(stub: DbosStub, task_id: str, status: str) -> bool:
    return (await task_of(stub, task_id)).status == status
