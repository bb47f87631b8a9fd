"""Whose turn it is to read while many calls wait: nobody starves, and refusing has its price."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
import trio
from grpclib.const import Status
from trio.testing import wait_all_tasks_blocked

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.read_turns import HEAVY_MAX, ReadTurns
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.unary import UnaryCall

MakePipe = Callable[..., Any]


def core_with(calls_live: int, *, streams_live: int = 0) -> SharedState:
    core = SharedState(
        unary={},
        status_of=lambda error: (Status.UNKNOWN, str(error)),
        limits=ServerLimits(calls_busy=100),
    )
    core.calls_live, core.streams_live = calls_live, streams_live
    return core


def never() -> bool:
    return False


def always() -> bool:
    return True


@pytest.mark.parametrize(
    ("calls", "streams", "needed"),
    [(0, 0, False), (100, 0, False), (101, 0, True), (900, 800, False)],
)
def test_turns_are_needed_while_many_unary_calls_wait(
    calls: int, streams: int, *, needed: bool
) -> None:
    assert ReadTurns(core_with(calls, streams_live=streams), never).is_needed is needed


def test_a_connection_whose_client_is_not_known_always_takes_turns() -> None:
    turns = ReadTurns(core_with(0), never)
    assert turns.must_wait(is_stranger=True, is_heavy=False)
    assert not turns.must_wait(is_stranger=False, is_heavy=False)


def test_heavy_connections_take_turns_while_there_are_many_and_light_ones_never() -> None:
    turns = ReadTurns(core_with(0), never)
    for _ in range(HEAVY_MAX):
        turns.count_heavy(1)
    assert not turns.must_wait(is_stranger=False, is_heavy=True)
    turns.count_heavy(1)
    assert turns.must_wait(is_stranger=False, is_heavy=True)
    assert not turns.must_wait(is_stranger=False, is_heavy=False)
    turns.count_heavy(-1)
    assert not turns.must_wait(is_stranger=False, is_heavy=True)


async def test_a_turn_of_a_stranger_refuses_no_calls_while_few_wait() -> None:
    core = core_with(0)
    async with ReadTurns(core, always):
        assert not core.shedding


async def test_shedding_begins_with_a_turn_and_ends_when_few_calls_wait() -> None:
    core = core_with(101)
    turns = ReadTurns(core, always)
    async with turns:
        assert core.shedding
    assert turns.is_needed
    assert core.shedding
    core.calls_live = 100
    assert not turns.is_needed
    assert not core.shedding


async def test_one_connection_reads_in_a_round_in_the_order_of_arrival() -> None:
    turns = ReadTurns(core_with(101), never)
    rounds = 0
    order: list[tuple[int, int]] = []

    async def count() -> None:
        nonlocal rounds
        while True:
            await trio.lowlevel.checkpoint()
            rounds += 1

    async def busy(number: int) -> None:
        for _ in range(5):
            async with turns:
                order.append((rounds, number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        async with trio.open_nursery() as readers:
            for number in range(10):
                readers.start_soon(busy, number)
        nursery.cancel_scope.cancel()
    at = [when for when, _ in order]
    assert max(at.count(when) for when in at) <= 2
    numbers = [number for _, number in order]
    assert all(set(numbers[first : first + 10]) == set(range(10)) for first in range(0, 50, 10))


async def test_a_turn_that_shed_calls_is_paid_for_with_four_times_its_length(
    autojump_clock: Any,
) -> None:
    core = core_with(101)
    turns = ReadTurns(core, always)
    start = trio.current_time()
    for _ in range(20):
        async with turns:
            await trio.sleep(0.003)  # what a turn takes; it has no checkpoint in truth
            core.shed_total += 50
    assert 19 * 0.015 <= trio.current_time() - start <= 20 * 0.015 + 0.001


async def test_a_turn_that_shed_nothing_costs_no_pause(autojump_clock: Any) -> None:
    turns = ReadTurns(core_with(101), always)
    start = trio.current_time()
    for _ in range(20):
        async with turns:
            pass
    assert trio.current_time() == start


async def test_a_pause_is_never_long(autojump_clock: Any) -> None:
    core = core_with(101)
    turns = ReadTurns(core, always)
    async with turns:
        await trio.sleep(10.0)
        core.shed_total += 1
    start = trio.current_time()
    for _ in range(20):
        async with turns:
            pass
    assert trio.current_time() - start <= 0.051


async def test_who_is_cancelled_in_line_or_in_a_pause_passes_the_turn_on(
    autojump_clock: Any,
) -> None:
    core = core_with(101)
    turns = ReadTurns(core, always)
    async with turns:
        await trio.sleep(0.01)
        core.shed_total += 1  # a pause follows
    done: list[int] = []

    async def busy(number: int, scope: trio.CancelScope) -> None:
        with scope:
            async with turns:
                done.append(number)

    scopes = [trio.CancelScope() for _ in range(6)]
    async with trio.open_nursery() as nursery:
        for number, scope in enumerate(scopes):
            nursery.start_soon(busy, number, scope)
        await wait_all_tasks_blocked()
        for scope in scopes[:3]:
            scope.cancel()
    assert sorted(done) == [3, 4, 5]


def test_a_unary_call_is_refused_at_once_while_shedding(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    first = pipe.client.request(b"1")
    pipe.run()
    pipe.core.shedding = True
    second = pipe.client.request(b"2", end=False)
    pipe.run()
    pipe.core.shedding = False
    third = pipe.client.request(b"3")
    pipe.run()
    answers = pipe.client.answers
    assert answers[second].status is Status.RESOURCE_EXHAUSTED
    assert not answers[first].closed
    assert not answers[third].closed
    assert len(calls) == 2
    assert pipe.core.shed_total == 1


async def test_an_overloaded_server_serves_what_it_has_and_refuses_the_rest(
    serve: Callable[..., Any], make_server: Callable[..., Any]
) -> None:
    """Over real sockets: many connections, far more calls than are answered."""
    kept: list[UnaryCall] = []
    limits = ServerLimits(calls_busy=20)
    server = make_server({"Echo": kept.append}, limits=limits, overloaded=lambda: len(kept) > 40)

    async def work() -> None:
        while True:
            await trio.sleep(0.001)
            done, kept[:] = kept[:5], kept[5:]
            with server.answer_round:
                for call in done:
                    call.reply(call.request)

    def flood(address: str) -> list[Status]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.insecure_channel(address, options=options) for _ in range(10)]
        statuses = []
        for channel in channels:
            method = channel.unary_unary("/test.Test/Echo")
            futures = [method.future(b"x" * 1_000, timeout=20) for _ in range(200)]
            statuses += futures
        found = [Status(future.code().value[0]) for future in statuses]
        for channel in channels:
            channel.close()
        return found

    async with serve(server) as address, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        with trio.fail_after(30):
            found = await trio.to_thread.run_sync(flood, address)
        statistics = server.statistics()
        nursery.cancel_scope.cancel()
    assert set(found) == {Status.OK, Status.RESOURCE_EXHAUSTED}
    assert statistics.calls_shed == found.count(Status.RESOURCE_EXHAUSTED)
    assert found.count(Status.OK) >= 40
    assert statistics.calls_live == 0
