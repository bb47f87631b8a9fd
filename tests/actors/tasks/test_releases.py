"""The leases of subscribers that vanish are returned in steps, and all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from dbos_actors.actors.tasks.pushing import RELEASED_AT_ONCE
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.actors.tasks.subscribers import Subscriber
from dbos_actors.api.messages import ScheduleTaskRequest, SubscribeTasksRequest, Task
from dbos_actors.clock import SystemClock
from dbos_actors.domain.tasks import deliveries
from dbos_actors.runtime import Waiter
from dbos_actors.store import StoreSettings, connector_for, open_store
from tests.support.rounds import Rounds
from tests.support.valkey import ValkeyServer

TASKS = 1_000


@asynccontextmanager
async def scheduler_with_tasks(valkey: ValkeyServer) -> AsyncIterator[Scheduler]:
    clock, random = SystemClock(), Random(1)
    async with (
        open_store(
            connector_for(valkey.address), settings=StoreSettings(), clock=clock, random=random
        ) as store,
        trio.open_nursery() as nursery,
    ):
        scheduler = Scheduler(store=store, clock=clock, random=random, settings=SchedulerSettings())
        await nursery.start(scheduler.run)
        waiters = []
        for number in range(TASKS):
            task = Task(id=f"t{number}", agent_id=f"a{number % 10}", module_name="m")
            waiters.append(Waiter(ScheduleTaskRequest(task=task)))
            scheduler.deliver(waiters[-1])
        for waiter in waiters:
            await waiter.wait()
        yield scheduler
        nursery.cancel_scope.cancel()


async def subscribed(scheduler: Scheduler, *, agents: int, held: int) -> list[Subscriber]:
    """Subscribers, one for each of these agents or one for all, once they hold so many tasks."""
    arrived = trio.Event()

    def received(_response: bytes, leases: dict[str, str]) -> None:
        arrived.set()
        for subscriber in subscribers:
            subscriber.handed_over(leases)

    subscribers: list[Subscriber] = []
    for number in range(agents):
        agent_id = f"a{number}" if agents > 1 else ""
        start = SubscribeTasksRequest.Start(agent_id=agent_id, max_in_flight=10_000)
        subscribers.append(scheduler.subscribe(start, received))
    while sum(len(subscriber.held) for subscriber in subscribers) < held:
        await arrived.wait()
        arrived = trio.Event()
    await trio.testing.wait_all_tasks_blocked(0.01)
    return subscribers


@pytest.mark.parametrize("subscribers", [1, 10])
async def test_no_round_returns_more_than_a_step_of_leases(
    valkey: ValkeyServer, monkeypatch: Any, subscribers: int
) -> None:
    rounds = Rounds()
    release = deliveries.release

    def counting(*args: Any, **fields: Any) -> Any:
        rounds.count("released")
        return release(*args, **fields)

    monkeypatch.setattr(deliveries, "release", counting)
    async with scheduler_with_tasks(valkey) as scheduler:
        vanishing = await subscribed(scheduler, agents=subscribers, held=TASKS)
        with rounds, trio.fail_after(20.0):
            for subscriber in vanishing:
                scheduler.unsubscribe(subscriber)
            await scheduler.wait_released()
        statistics = scheduler.statistics()
    assert rounds.total("released") == TASKS
    assert rounds.most("released") <= RELEASED_AT_ONCE
    assert (statistics.pending, statistics.inflight, statistics.held) == (TASKS, 0, 0)
    assert statistics.released == TASKS
