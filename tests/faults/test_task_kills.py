"""Server, Redis and subscribers killed while tasks are pushed and acknowledged.

After each: the ledger balances, nothing is lost, and what was acknowledged is never delivered
again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from bench.recorded_writes import ACKNOWLEDGED, Load, Write
from bench.task_load import Deliveries, schedules
from dbos_actors.domain.tasks.states import Status
from tests.support.clients import GrpcioClient
from tests.support.process import ServerProcess
from tests.support.tasks import get, kept, lease, schedule, wait_until
from tests.support.valkey import ValkeyServer

TASKS = 4_000
LEASE_S = 2


async def subscribe_again_and_again(found: Deliveries, address: str) -> None:
    """As a worker does whose stream may end at any time."""
    while True:
        try:
            await found.subscribe(
                address, max_in_flight=100, lease_seconds=LEASE_S, worker_id="worker"
            )
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.sleep(0.05)


def due_now(name: str) -> list[Iterator[Write]]:
    """What one connection is to schedule: tasks that are due at once."""
    due_at = int(time.time()) - 1
    return [schedules(iter(range(TASKS)), prefix=name, due_at=due_at, agents=50)]


async def settle(
    found: Deliveries, server: ServerProcess, valkey: ValkeyServer, tasks: int
) -> None:
    """Let what is left be delivered, and check everything."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(subscribe_again_and_again, found, server.address)
            with GrpcioClient(server.address) as client:

                def is_settled() -> bool:
                    return not any(
                        client.call("ListTasks", status=status, page_size=1).tasks
                        for status in ("pending", "inflight")
                    )

                await trio.to_thread.run_sync(wait_until, is_settled, 60.0)
            nursery.cancel_scope.cancel()
    assert found.again == []
    counters = kept(valkey).counters()
    assert (counters.scheduled, counters.completed + counters.dead) == (tasks, tasks)


@pytest.mark.long
async def test_a_server_killed_again_and_again_loses_no_task_and_repeats_no_completion(
    valkey: ValkeyServer,
) -> None:
    found = Deliveries()
    scheduled: set[str] = set()
    for round_number in range(5):
        load = Load()
        with ServerProcess(valkey.address, DBOS_MAX_ATTEMPTS="100") as server:
            await trio.to_thread.run_sync(server.wait_ready)
            target = len(found.acknowledged) + 800
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(subscribe_again_and_again, found, server.address)
                writes = due_now(f"round-{round_number}")
                nursery.start_soon(partial(load.run, server.address, writes=writes))
                await found.wait_acknowledged(target, timeout_s=30)
                server.kill()
                nursery.cancel_scope.cancel()
        scheduled |= {write.subject for write in load.history if write.outcome == ACKNOWLEDGED}
        book = kept(valkey)
        lost = [task_id for task_id in scheduled if book.get(task_id) is None]
        assert lost == [], f"round {round_number}"
        undone = [
            task_id
            for task_id in found.acknowledged
            if (record := book.get(task_id)) is None or record.status is not Status.COMPLETED
        ]
        assert undone == [], f"round {round_number}"
        assert found.again == []
    tasks = kept(valkey).counters().scheduled
    with ServerProcess(valkey.address, DBOS_MAX_ATTEMPTS="100") as server:
        await trio.to_thread.run_sync(server.wait_ready)
        await settle(found, server, valkey, tasks)


@pytest.mark.parametrize("is_cut", [False, True], ids=["whole file", "cut back by a second"])
async def test_a_redis_killed_twice_costs_no_task_and_repeats_no_completion(
    valkey: ValkeyServer, is_cut: bool
) -> None:
    found = Deliveries()
    load = Load()
    with ServerProcess(valkey.address, DBOS_MAX_ATTEMPTS="100") as server:
        await trio.to_thread.run_sync(server.wait_ready)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(subscribe_again_and_again, found, server.address)
            nursery.start_soon(partial(load.run, server.address, writes=due_now("task")))
            for target in (800, 1_600):
                await found.wait_acknowledged(target, timeout_s=30)
                mark = valkey.aof_mark()
                if is_cut:
                    await trio.sleep(0.5)  # what is written in this time will be lost
                valkey.kill()
                if is_cut:
                    valkey.cut_aof(mark)
                await trio.to_thread.run_sync(valkey.start)
            await found.wait_acknowledged(2_400, timeout_s=30)
            nursery.cancel_scope.cancel()
        with GrpcioClient(server.address) as client:
            # Answered when Redis has again what the server had been told it has.
            assert client.call("RegisterAgent", agent={"id": "a"}).success
        tasks = kept(valkey).counters().scheduled
        assert tasks >= sum(write.outcome == ACKNOWLEDGED for write in load.history)
        await settle(found, server, valkey, tasks)
        assert server.is_running


async def test_subscribers_killed_in_the_middle_cost_others_no_time_and_no_task(
    valkey: ValkeyServer,
) -> None:
    found = Deliveries()
    load = Load()
    with ServerProcess(valkey.address, DBOS_MAX_ATTEMPTS="100") as server:
        await trio.to_thread.run_sync(server.wait_ready)

        async def live_shortly() -> None:
            while True:
                with trio.move_on_after(0.05):
                    await found.subscribe(server.address, max_in_flight=200, lease_seconds=3600)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(live_shortly)
            await load.run(server.address, writes=due_now("task"))
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        # Leases of an hour: what the dead held can only have been returned.
        await settle(found, server, valkey, TASKS)


async def test_leases_and_delays_stand_still_while_redis_is_away(valkey: ValkeyServer) -> None:
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        with GrpcioClient(server.address) as client:
            schedule(client, "t", "u")
            first, second = lease(client, lease_seconds=2)
            fields = {"task_id": second.id, "lease_token": second.lease_token}
            assert client.call("NackTask", retry_delay_seconds=2, **fields).success
            valkey.kill()
            await trio.sleep(3.0)
            await trio.to_thread.run_sync(valkey.start)
            assert client.call("RegisterAgent", agent={"id": "a"}).success
            assert get(client, first.id).status == "inflight"
            assert lease(client) == []
            assert client.call("AckTask", task_id=first.id, lease_token=first.lease_token).success
