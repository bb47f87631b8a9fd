"""Reading at ticks: what comes within one is read together, and nobody is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from grpclib.const import Status
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.rpc.server.gathering import CALLS_PER_S_MIN, SPAN_S, TICK_S
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.read_ticks import ReadTicks
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.framing import frame

SETTLE_S = 0.02
"""Real time in which nothing moves: what was written to a socket has been read."""


def ticks_of(shared: SharedState | None = None, cpu_s: Callable[[], float] = float) -> ReadTicks:
    shared = shared or SharedState(
        unary={}, status_of=lambda error: (Status.UNKNOWN, str(error)), limits=ServerLimits()
    )
    return ReadTicks(shared, cpu_s)


def gather(server: Server) -> None:
    """Have calls gathered from now on, whatever would be decided."""
    server._read_ticks.is_on = True
    server._read_ticks.due_s = math.inf


async def test_those_who_wait_go_on_together_and_ticks_keep_their_distance(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    ticks = ticks_of()
    nursery.start_soon(ticks.run)
    read_at_s: list[list[float]] = [[], [], []]

    async def reader(times: list[float]) -> None:
        while True:
            await ticks.wait()
            times.append(trio.current_time())

    async with trio.open_nursery() as readers:
        for times in read_at_s:
            readers.start_soon(reader, times)
        await trio.sleep(10.5 * TICK_S)
        readers.cancel_scope.cancel()
    assert read_at_s[0] == read_at_s[1] == read_at_s[2]
    assert len(read_at_s[0]) == 11
    gaps_s = [after - before for before, after in zip(read_at_s[0], read_at_s[0][1:], strict=False)]
    assert gaps_s == pytest.approx([TICK_S] * 10)


async def test_whoever_comes_long_after_the_last_tick_does_not_wait(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    ticks = ticks_of()
    nursery.start_soon(ticks.run)
    for _ in range(3):
        await trio.sleep(1.0)
        began_s = trio.current_time()
        await ticks.wait()
        assert trio.current_time() == began_s


async def test_one_who_is_cancelled_leaves_the_others_waiting_for_the_tick(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    ticks = ticks_of()
    nursery.start_soon(ticks.run)
    await ticks.wait()
    other_went_on = trio.Event()

    async def other() -> None:
        await ticks.wait()
        other_went_on.set()

    nursery.start_soon(other)
    with trio.move_on_after(TICK_S / 2) as scope:
        await ticks.wait()
    assert scope.cancelled_caught
    await other_went_on.wait()
    assert trio.current_time() == pytest.approx(TICK_S)


def test_a_look_takes_the_counts_of_the_server() -> None:
    cpu_s = 0.0
    ticks = ticks_of(cpu_s=lambda: cpu_s)
    shared = ticks._shared
    ticks.look(1000.0)
    assert (ticks.is_on, ticks.due_s) == (False, 1000.0 + SPAN_S)
    shared.calls_total += 2 * int(CALLS_PER_S_MIN * SPAN_S)
    ticks.reads += shared.calls_total
    cpu_s = 0.9 * SPAN_S
    ticks.look(1000.0 + SPAN_S)
    assert ticks.is_on


async def test_what_comes_within_a_tick_is_read_at_once_from_each_connection(
    mock_clock: MockClock, serve: Any, make_server: Any, connect: Any
) -> None:
    calls: list[UnaryCall] = []
    server = make_server({"Echo": calls.append})
    async with serve(server) as address:
        clients = [await connect(address) for _ in range(3)]
        for client in clients:
            client.raw.request(b"before")
            await client.flush()
        await wait_all_tasks_blocked(SETTLE_S)
        assert len(calls) == 3
        gather(server)
        for client in clients:  # each is read once more before it waits at a tick
            client.raw.request(b"first")
            await client.flush()
            await wait_all_tasks_blocked(SETTLE_S)
        mock_clock.jump(TICK_S)
        await wait_all_tasks_blocked(SETTLE_S)
        del calls[:]
        reads = server._read_ticks.reads
        for number in range(10):
            for client in clients:
                client.raw.request(b"%d" % number)
                await client.flush()
            await wait_all_tasks_blocked(SETTLE_S)
        assert not calls
        mock_clock.jump(TICK_S)
        await wait_all_tasks_blocked(SETTLE_S)
        assert len(calls) == 30
        assert server._read_ticks.reads == reads + 3
        with server.answer_round:
            for call in calls:
                call.reply(call.request)
        for client in clients:
            while not all(answer.closed for answer in list(client.raw.answers.values())[2:]):
                await client.receive()
            bodies = [answer.body for answer in list(client.raw.answers.values())[2:]]
            assert bodies == [frame(b"%d" % number) for number in range(10)]


async def test_a_connection_that_ends_or_is_silent_while_calls_are_gathered(
    mock_clock: MockClock, serve: Any, make_server: Any, connect: Any
) -> None:
    server = make_server({"Echo": lambda call: call.reply(call.request)})
    async with serve(server) as address:
        silent, ending = await connect(address), await connect(address)
        await wait_all_tasks_blocked(SETTLE_S)
        gather(server)
        for client in (silent, ending):
            client.raw.request(b"x")
            await client.flush()
        await ending.stream.aclose()
        for _ in range(4):
            mock_clock.jump(TICK_S)
            await wait_all_tasks_blocked(SETTLE_S)
        assert server.statistics().connections == 1
        # The silent one has left the ticks: it is woken by its socket alone.
        assert not server._read_ticks._line
        silent.raw.request(b"y")
        await silent.flush()
        mock_clock.jump(TICK_S)
        await wait_all_tasks_blocked(SETTLE_S)
        await silent.receive()
        assert [answer.body for answer in silent.raw.answers.values()] == [frame(b"x"), frame(b"y")]


async def test_a_server_stops_at_once_while_connections_wait_for_a_tick(
    mock_clock: MockClock, serve: Any, make_server: Any, connect: Any
) -> None:
    server = make_server({"Echo": lambda call: call.reply(call.request)})
    async with serve(server) as address:
        client = await connect(address)
        await wait_all_tasks_blocked(SETTLE_S)
        gather(server)
        for _ in range(2):
            client.raw.request(b"x")
            await client.flush()
            await wait_all_tasks_blocked(SETTLE_S)
        assert server._read_ticks._line
