"""One owner: a second server refuses, one that was taken over from writes nothing more."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest
import trio

from bench.recorded_writes import ACKNOWLEDGED, Load
from dbos_actors.store import StoreSettings
from tests.support.clients import GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.lost_writes import problems
from tests.support.process import NotReadyError, ServerProcess
from tests.support.valkey import ValkeyServer

OWNER = "dbos:{p0}:owner"


def refusal(valkey: ValkeyServer) -> NotReadyError:
    """How a server that may not start there ends."""
    with ServerProcess(valkey.address) as second, pytest.raises(NotReadyError) as caught:
        second.wait_ready()
    return caught.value


def register(address: str, agent: str) -> bool:
    with GrpcioClient(address) as client:
        return bool(client.call("RegisterAgent", agent={"id": agent}).success)


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while True:
            if await trio.to_thread.run_sync(condition):
                return
            await trio.sleep(0.01)


async def test_a_second_server_refuses_to_start_and_names_the_owner(valkey: ValkeyServer) -> None:
    with ServerProcess(valkey.address) as first:
        await trio.to_thread.run_sync(first.wait_ready)
        refused = await trio.to_thread.run_sync(refusal, valkey)
        assert refused.status == 2
        assert str(first.pid) in refused.log
        assert socket.gethostname() in refused.log
        assert "--take-over" in refused.log
        assert await trio.to_thread.run_sync(register, first.address, "a")
        assert first.is_running


async def test_after_a_graceful_end_the_next_server_starts_at_once(valkey: ValkeyServer) -> None:
    for _ in range(2):
        with ServerProcess(valkey.address) as server:
            await trio.to_thread.run_sync(server.wait_ready)
            server.send(signal.SIGTERM)
            assert await trio.to_thread.run_sync(server.wait) == 0
    assert valkey.execute("EXISTS", OWNER) == 0


async def test_a_server_that_is_taken_over_from_exits_3_and_writes_nothing_more(
    valkey: ValkeyServer,
) -> None:
    load = Load()
    with (
        ServerProcess(valkey.address) as first,
        ServerProcess(valkey.address, "--take-over") as second,
    ):
        os.kill(second.pid, signal.SIGSTOP)  # the interpreter's start is not what is measured
        await trio.to_thread.run_sync(first.wait_ready)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run, first.address)
            await load.wait_acknowledged(1_000)
            second.send(signal.SIGCONT)
            await trio.to_thread.run_sync(second.wait_ready)
            ready_s = trio.current_time()
            assert await trio.to_thread.run_sync(first.wait) == 3
        assert second.is_running
        assert await trio.to_thread.run_sync(register, second.address, "after")
        with valkey.client() as client:
            kept = Keyspace(client)
    assert problems(load, kept) == []
    late = [write for write in load.history if write.issued_s > ready_s]
    assert not [write for write in late if write.outcome == ACKNOWLEDGED]
    assert not [
        write
        for write in late
        if write.method == "StoreResult" and write.subject in kept.results.get(write.agent, {})
    ]


async def test_an_idle_server_notices_that_it_was_taken_over_from(valkey: ValkeyServer) -> None:
    with ServerProcess(valkey.address) as first:
        await trio.to_thread.run_sync(first.wait_ready)
        with ServerProcess(valkey.address, "--take-over") as second:
            await trio.to_thread.run_sync(second.wait_ready)
            assert await trio.to_thread.run_sync(first.wait, 5.0) == 3
            assert second.is_running


async def test_of_servers_started_at_once_exactly_one_serves(valkey: ValkeyServer) -> None:
    def start() -> tuple[ServerProcess, int | None]:
        server = ServerProcess(valkey.address)
        try:
            server.wait_ready()
        except NotReadyError as error:
            return server, error.status
        return server, None

    outcomes: list[tuple[ServerProcess, int | None]] = []

    async def collect() -> None:
        outcomes.append(await trio.to_thread.run_sync(start))

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(collect)
        running = [server for server, status in outcomes if status is None]
        assert sorted(status or 0 for _, status in outcomes) == [0, 2, 2]
        assert await trio.to_thread.run_sync(register, running[0].address, "a")
    finally:
        for server, _ in outcomes:
            server.close()


async def test_a_server_stopped_for_longer_than_its_lease_exits_3_when_it_goes_on(
    valkey: ValkeyServer,
) -> None:
    load = Load()
    with ServerProcess(valkey.address) as first:
        await trio.to_thread.run_sync(first.wait_ready)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run, first.address)
            await load.wait_acknowledged(1_000)
            first.send(signal.SIGSTOP)
            stopped_s = trio.current_time()
            # On a busy machine a server may take longer to start than the lease lasts.
            valkey.execute("PEXPIRE", OWNER, 60_000)
            refused = await trio.to_thread.run_sync(refusal, valkey)
            assert refused.status == 2  # it lives, and its lease has not run out
            left_s = StoreSettings().lease_s - (trio.current_time() - stopped_s)
            valkey.execute("PEXPIRE", OWNER, max(1, round(left_s * 1_000)))
            await eventually(lambda: valkey.execute("EXISTS", OWNER) == 0)
            acknowledged = load.acknowledged
            with ServerProcess(valkey.address) as second:
                await trio.to_thread.run_sync(second.wait_ready)
                assert await trio.to_thread.run_sync(register, second.address, "after")
                first.send(signal.SIGCONT)
                assert await trio.to_thread.run_sync(first.wait) == 3
                assert second.is_running
                assert await trio.to_thread.run_sync(register, second.address, "later")
        with valkey.client() as client:
            kept = Keyspace(client)
    assert problems(load, kept) == []
    # What it had committed before it was stopped may still be told; no more than was in flight.
    assert load.acknowledged - acknowledged <= 1_200
    assert {"after", "later"} <= set(kept.agents)


async def test_a_killed_owner_is_replaced_without_waiting_for_its_lease(
    valkey: ValkeyServer,
) -> None:
    with ServerProcess(valkey.address) as first:
        await trio.to_thread.run_sync(first.wait_ready)
        first.kill()
    assert valkey.execute("PTTL", OWNER) > 1_000
    with ServerProcess(valkey.address) as second:
        await trio.to_thread.run_sync(second.wait_ready)
        assert await trio.to_thread.run_sync(register, second.address, "a")
