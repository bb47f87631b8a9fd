"""A push looks at the clock once: the scheduler advances the book, and the turn only leases."""

from __future__ import annotations

from random import Random
from typing import Any

import trio
import trio.testing

from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.api.messages import (
    LeaseTasksRequest,
    LeaseTasksResponse,
    ScheduleTaskRequest,
    SubscribeTasksRequest,
    SubscribeTasksResponse,
    Task,
)
from dbos_actors.clock import SystemClock
from dbos_actors.domain.tasks import leasing
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.index import TaskIndex
from dbos_actors.runtime import Waiter
from dbos_actors.store import StoreSettings, connector_for, open_store
from tests.support.valkey import ValkeyServer


async def ask(scheduler: Scheduler, request: Any) -> Any:
    waiter = Waiter(request)
    scheduler.deliver(waiter)
    return await waiter.wait()


async def test_a_push_and_a_lease_move_tasks_between_the_indexes_once(
    valkey: ValkeyServer, monkeypatch: Any
) -> None:
    seen: list[str] = []

    def counting(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def count(*args: Any, **fields: Any) -> Any:
            seen.append(name)
            return original(*args, **fields)

        monkeypatch.setattr(owner, name, count)

    clock, random = SystemClock(), Random(1)
    async with (
        open_store(
            connector_for(valkey.address), settings=StoreSettings(), clock=clock, random=random
        ) as store,
        trio.open_nursery() as nursery,
    ):
        scheduler = Scheduler(store=store, clock=clock, random=random, settings=SchedulerSettings())
        await nursery.start(scheduler.run)
        for name in ("first", "second"):
            task = Task(id=name, agent_id=name, module_name="m")
            await ask(scheduler, ScheduleTaskRequest(task=task))
        await trio.testing.wait_all_tasks_blocked()
        counting(TaskBook, "advance")
        counting(TaskIndex, "no_longer_due")
        counting(leasing, "lease")
        pushed: list[bytes] = []
        arrived = trio.Event()

        def received(response: bytes, _: dict[str, str]) -> None:
            pushed.append(response)
            arrived.set()

        start = SubscribeTasksRequest.Start(agent_id="first")
        subscriber = scheduler.subscribe(start, received)
        await arrived.wait()
        (task,) = SubscribeTasksResponse.FromString(pushed[0]).tasks
        assert task.id == "first"
        # The scheduler's pass found the task, and the push that it sent leased it.
        assert seen[:3] == ["advance", "no_longer_due", "lease"]
        seen.clear()
        waiter = Waiter(LeaseTasksRequest(agent_id="second"))
        scheduler.deliver(waiter)
        assert seen == ["advance", "no_longer_due", "lease"]
        (task,) = LeaseTasksResponse.FromString(await waiter.wait()).tasks
        assert task.id == "second"
        scheduler.unsubscribe(subscriber)
        nursery.cancel_scope.cancel()
