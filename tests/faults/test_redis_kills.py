"""``kill -9`` of Redis under load, with its whole append-only file and with a second of it lost."""

from __future__ import annotations

import pytest
import trio

from bench.recorded_writes import ACKNOWLEDGED, Load
from tests.support.clients import CallError, GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.lost_writes import problems
from tests.support.process import ServerProcess
from tests.support.valkey import ValkeyServer

DEADLINE_S = 4.0
BACK_WITHIN_S = 2.0


async def served_again(load: Load) -> float:
    """Seconds until the next write is acknowledged."""
    start = trio.current_time()
    await load.wait_acknowledged(load.acknowledged + 1)
    return trio.current_time() - start


@pytest.mark.parametrize("is_cut", [False, True], ids=["whole file", "cut back by a second"])
async def test_every_acknowledged_write_is_there_once_after_redis_was_killed_twice(
    valkey: ValkeyServer, is_cut: bool
) -> None:
    load = Load()
    pauses: list[float] = []
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: load.run(server.address, deadline_s=DEADLINE_S, stop=stop))
            for _ in range(2):
                await load.wait_acknowledged(load.acknowledged + 2_000)
                mark = valkey.aof_mark()
                if is_cut:
                    await trio.sleep(1.0)  # what is written in this second will be lost
                assert load.in_flight >= 1_000
                valkey.kill()
                if is_cut:
                    assert valkey.aof_mark() > mark
                    valkey.cut_aof(mark)
                await trio.to_thread.run_sync(valkey.start)
                pauses.append(await served_again(load))
            await load.wait_acknowledged(load.acknowledged + 1_000)
            stop.set()
        assert server.is_running
        with valkey.client() as client:
            kept = Keyspace(client)
    assert problems(load, kept) == []
    assert set(load.outcomes()) <= {ACKNOWLEDGED, "UNAVAILABLE"}
    assert max(write.settled_s - write.issued_s for write in load.history) < DEADLINE_S + 1.0
    assert max(pauses) < BACK_WITHIN_S, pauses


async def test_while_redis_is_away_calls_end_as_unavailable_within_their_deadline(
    valkey: ValkeyServer,
) -> None:
    load = Load()
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: load.run(server.address, deadline_s=1.0, stop=stop))
            await load.wait_acknowledged(2_000)
            valkey.kill()
            await trio.sleep(2.0)  # twice the deadline: calls of before and of meanwhile end
            before = load.acknowledged
            await trio.to_thread.run_sync(valkey.start)
            pause = await served_again(load)
            assert before < load.acknowledged
            stop.set()
        with valkey.client() as client:
            kept = Keyspace(client)
    assert problems(load, kept) == []
    outcomes = load.outcomes()
    assert outcomes["UNAVAILABLE"] > 1_000
    assert set(outcomes) <= {ACKNOWLEDGED, "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert max(write.settled_s - write.issued_s for write in load.history) < 1.0 + 1.0
    assert pause < BACK_WITHIN_S


async def test_a_redis_that_stands_still_is_away_and_comes_back(valkey: ValkeyServer) -> None:
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        with GrpcioClient(server.address) as client:

            def register() -> str:
                try:
                    return str(
                        client.call("RegisterAgent", agent={"id": "a"}, timeout_s=1.5).success
                    )
                except CallError as error:
                    return error.status

            assert await trio.to_thread.run_sync(register) == "True"
            valkey.pause()
            outcome = await trio.to_thread.run_sync(register)
            assert outcome in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            valkey.resume()
            start = trio.current_time()
            while await trio.to_thread.run_sync(register) != "True":
                assert trio.current_time() - start < BACK_WITHIN_S
        assert server.is_running
