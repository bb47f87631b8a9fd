"""Clients that vanish, and clients that send more than fits: nobody else suffers."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import trio

from bench.recorded_writes import Load
from tests.support.clients import CallError, GrpcioClient, outcome_of
from tests.support.keyspace import Keyspace
from tests.support.lost_writes import problems
from tests.support.process import ServerProcess
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

MIB = 1 << 20


async def test_clients_that_vanish_with_a_thousand_calls_in_flight_leave_nothing_half_written(
    valkey: ValkeyServer,
) -> None:
    load = Load()
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run, server.address)
                await load.wait_acknowledged(load.acknowledged + 1_000)
                nursery.cancel_scope.cancel()
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: load.run(server.address, stop=stop))
            await load.wait_acknowledged(load.acknowledged + 500)
            stop.set()
        with valkey.client() as client:
            kept = Keyspace(client)
    assert problems(load, kept) == []


async def test_large_results_beyond_what_may_wait_are_refused_and_memory_stays_bounded(
    valkey: ValkeyServer,
) -> None:
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        statuses = await trio.to_thread.run_sync(flood, server, valkey)
        assert set(statuses) <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "OK"}
        assert server.is_running
        with valkey.client() as client:
            assert Keyspace(client).problems() == []


def flood(server: ServerProcess, valkey: ValkeyServer) -> Counter[str]:
    """300 MiB of results at a server that may keep 64 MiB waiting, while Redis stands still."""
    with GrpcioClient(server.address) as client:

        def store(number: int, timeout_s: float) -> Any:
            result = {"id": f"r{number}", "agent_id": "a", "module_name": "m"}
            return client.start(
                "StoreResult", timeout_s=timeout_s, result={**result, "data": bytes(MIB)}
            )

        assert store(0, 10).result().success
        before = server.rss_bytes()
        valkey.pause()
        calls = [store(number, 2.0) for number in range(1, 301)]
        outcomes = [outcome_of(call) for call in calls]
        grown = server.rss_bytes() - before
        valkey.resume()
        assert grown < 250 * MIB, grown
        assert client.call("RegisterAgent", agent={"id": "after"}).success
        assert store(1_000, 10).result().success
    return Counter(o.status if isinstance(o, CallError) else "OK" for o in outcomes)


def test_writers_and_deletions_of_one_agent_at_once_leave_nothing_half_written(
    valkey: ValkeyServer,
) -> None:
    server = ServerThread(valkey.address).start()
    errors: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with GrpcioClient(server.address) as client:
                for number in range(60):
                    run = f"{name}{number}"
                    state = {
                        "agent_id": "a",
                        "module_name": f"m{number % 3}",
                        "request_id": run,
                        "state": ("running", "completed")[number % 2],
                    }
                    result = {"id": run, "agent_id": "a", "module_name": "m"}
                    calls = [
                        client.start("SetModuleState", state=state),
                        client.start("StoreResult", result=result),
                        client.start("RegisterAgent", agent={"id": "a"}),
                        client.start("GetModuleState", request_id=run, agent_id="a"),
                    ]
                    for call in calls:
                        call.result()
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    def delete() -> None:
        try:
            with GrpcioClient(server.address) as client:
                for _ in range(40):
                    assert client.call("DeleteAgent", agent_id="a").success
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    try:
        threads = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
        threads.append(threading.Thread(target=delete))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        with valkey.client() as connection:
            assert Keyspace(connection).problems() == []
        with GrpcioClient(server.address) as client:
            assert client.call("DeleteAgent", agent_id="a").success
            assert not client.call("ListModuleStates", agent_id="a").states
    finally:
        server.stop()
    assert not [key for key in valkey.execute("KEYS", "*") if b":a" in key]
