"""``kill -9`` of the server under load: what was acknowledged is kept, nothing is half-written."""

from __future__ import annotations

import signal

import pytest
import trio

from bench.recorded_writes import ACKNOWLEDGED, UNKNOWN, Load
from tests.support.keyspace import Keyspace
from tests.support.lost_writes import problems
from tests.support.process import ServerProcess
from tests.support.valkey import ValkeyServer

ROUNDS = 10
IN_FLIGHT = 1_200


@pytest.mark.long
async def test_ten_kills_in_a_row_lose_no_acknowledged_write_and_leave_none_half_written(
    valkey: ValkeyServer,
) -> None:
    load = Load()
    for round_number in range(ROUNDS):
        with ServerProcess(valkey.address) as server:
            await trio.to_thread.run_sync(server.wait_ready)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run, server.address)
                await load.wait_acknowledged(load.acknowledged + 2_000)
                assert load.in_flight >= 1_000
                server.kill()
        with valkey.client() as client:
            kept = Keyspace(client)
        assert problems(load, kept) == [], f"round {round_number}"
    outcomes = load.outcomes()
    assert set(outcomes) == {ACKNOWLEDGED, UNKNOWN}
    assert outcomes[UNKNOWN] >= ROUNDS * 1_000


async def test_a_drained_server_settles_every_call_it_took(valkey: ValkeyServer) -> None:
    load = Load()
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: load.run(server.address, stop=stop))
            await load.wait_acknowledged(2_000)
            stop.set()
        assert set(load.outcomes()) == {ACKNOWLEDGED}
        server.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(server.wait) == 0
    with valkey.client() as client:
        kept = Keyspace(client)
    assert problems(load, kept) == []
    # Nothing more was written than what was answered.
    assert sum(len(results) for results in kept.results.values()) == sum(
        write.method == "StoreResult" for write in load.history
    )


async def test_sigterm_under_load_finishes_what_was_taken_and_takes_nothing_more(
    valkey: ValkeyServer,
) -> None:
    load = Load()
    with ServerProcess(valkey.address) as server:
        await trio.to_thread.run_sync(server.wait_ready)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run, server.address)
            await load.wait_acknowledged(3_000)
            assert load.in_flight >= 1_000
            server.send(signal.SIGTERM)
            assert await trio.to_thread.run_sync(server.wait) == 0
    with valkey.client() as client:
        kept = Keyspace(client)
    assert problems(load, kept) == []
    assert set(load.outcomes()) <= {ACKNOWLEDGED, UNKNOWN, "UNAVAILABLE"}
    # What was not answered was sent too late to be taken at all.
    assert not [
        write
        for write in load.history
        if write.method == "StoreResult"
        and write.outcome != ACKNOWLEDGED
        and write.subject in kept.results.get(write.agent, {})
    ]
