"""How a channel makes, loses and replaces its connection, and what its calls see of that."""

from __future__ import annotations

import socket

import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.rpc.client.channel import Channel, ChannelState
from dbos_actors.rpc.wire.http2 import ErrorCode, Setting
from tests.rpc.client.scripted_network import PATH, REFUSED, End, Network, call, silent


async def test_calls_that_wait_for_the_server_have_it_tried_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = Network(nursery, *[REFUSED] * 5)
    began_s = trio.current_time()
    async with network.channel(wait_for_ready=True) as channel:
        # A real socket under a clock that jumps: it jumps only while all tasks wait for time.
        assert await call(channel) == b"x"
        times = [round(at_s - began_s, 3) for at_s in network.attempts_s]
        assert times == [0, 1, 2.6, 5.16, 9.256, 15.81]
        assert channel.state is ChannelState.READY


async def test_other_calls_fail_with_the_attempt_and_at_once_until_the_next_is_due(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    network = Network(nursery, REFUSED, REFUSED)
    async with network.channel() as channel:
        states = [channel.state]
        with pytest.raises(GRPCError, match=r"cannot connect to server\.test:1234.*refused"):
            await channel.unary(PATH, b"")
        states.append(channel.state)
        assert await call(channel) is Status.UNAVAILABLE
        assert len(network.attempts_s) == 1
        mock_clock.jump(1.01)
        states.append(channel.state)
        assert await call(channel) is Status.UNAVAILABLE
        assert len(network.attempts_s) == 2
        mock_clock.jump(1.61)
        assert await call(channel) == b"x"
        states.append(channel.state)
        idle, failing = ChannelState.IDLE, ChannelState.TRANSIENT_FAILURE
        assert states == [idle, failing, idle, ChannelState.READY]


async def test_pauses_start_anew_once_there_was_a_connection(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    async def greet(end: End) -> None:
        await end.request()

    network = Network(nursery, REFUSED, REFUSED, greet, REFUSED)
    async with network.channel() as channel:
        for pause_s in (1.01, 1.61):
            assert await call(channel) is Status.UNAVAILABLE
            assert channel.state is ChannelState.TRANSIENT_FAILURE
            mock_clock.jump(pause_s)
        assert await call(channel) is Status.UNAVAILABLE  # connected, and lost
        assert await call(channel) is Status.UNAVAILABLE
        mock_clock.jump(1.01)
        assert await call(channel) == b"x"


async def test_a_connection_lost_in_the_read_that_made_it_ready_loses_no_call(
    nursery: trio.Nursery,
) -> None:
    async def greet_and_close(end: End) -> None:
        await end.receive()
        end.sock.send(end.raw.output())
        end.sock.shutdown(socket.SHUT_RDWR)  # before the client can read

    network = Network(nursery, greet_and_close)
    async with network.channel() as channel:
        with trio.fail_after(5):
            assert await call(channel) == b"x"
    assert len(network.attempts_s) == 2


async def test_a_call_that_waits_for_the_server_has_its_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = Network(nursery, *[REFUSED] * 100)
    async with network.channel() as channel:
        began_s = trio.current_time()
        status = await call(channel, timeout=30, wait_for_ready=True)
        assert status is Status.DEADLINE_EXCEEDED
        assert trio.current_time() - began_s == pytest.approx(30, abs=0.01)
        attempts = len(network.attempts_s)
        await trio.sleep(1000)
        assert len(network.attempts_s) == attempts  # nobody asks for it any more


async def test_a_server_that_does_not_greet_is_given_up_in_time(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = Network(nursery, silent)
    async with network.channel() as channel:
        with pytest.raises(GRPCError, match="no answer for 20 s"):
            await channel.unary(PATH, b"")
        assert await call(channel) == b"x"  # the pause counts from the attempt's beginning
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100])
async def test_a_server_that_speaks_no_http2_is_no_server(
    nursery: trio.Nursery, said: bytes
) -> None:
    async def speak(end: End) -> None:
        await end.stream.send_all(said)

    network = Network(nursery, speak)
    async with network.channel() as channel:
        assert await call(channel) is Status.UNAVAILABLE
        assert channel.state is ChannelState.TRANSIENT_FAILURE
        assert channel.statistics().connections == 0


async def test_an_error_of_the_connector_that_nobody_expected_fails_the_calls(
    nursery: trio.Nursery,
) -> None:
    async def connect() -> socket.socket:
        raise LookupError("what")

    async with Channel(connector=connect) as channel:
        with pytest.raises(GRPCError, match="LookupError"):
            await channel.unary(PATH, b"")


async def test_a_server_that_allows_no_streams_lets_calls_wait(nursery: trio.Nursery) -> None:
    async def closed_for_now(end: End) -> None:
        end.raw.change_settings({Setting.MAX_CONCURRENT_STREAMS: 0})
        await end.flush()
        await end.receive()
        await end.flush()
        await wait_all_tasks_blocked(0.01)
        assert end.raw.requests == {}
        end.raw.change_settings({Setting.MAX_CONCURRENT_STREAMS: 5})
        await end.echo()

    network = Network(nursery, closed_for_now)
    async with network.channel() as channel:
        assert await call(channel, timeout=5) == b"x"


async def test_a_lost_connection_fails_its_calls_and_is_replaced_at_once(
    nursery: trio.Nursery,
) -> None:
    async def drop(end: End) -> None:
        await end.request(2)

    network = Network(nursery, drop)
    async with network.channel() as channel:
        results: list[bytes | Status] = []

        async def caller() -> None:
            results.append(await call(channel))

        async with trio.open_nursery() as callers:
            for _ in range(3):
                callers.start_soon(caller)
        assert results == [Status.UNAVAILABLE] * 3
        assert channel.state is ChannelState.IDLE
        assert await call(channel) == b"x"
        assert channel.statistics().connections_total == 2


async def test_calls_under_way_finish_on_a_connection_that_is_going_away(
    nursery: trio.Nursery,
) -> None:
    go = trio.Event()

    async def leave(end: End) -> None:
        first = await end.request()
        end.raw.engine.announce_shutdown()
        await end.flush()
        await go.wait()
        end.raw.answer(first, b"late")
        await end.flush()
        while await end.receive():
            pass

    network = Network(nursery, leave)
    async with network.channel() as channel:
        late: list[bytes | Status] = []

        async def caller() -> None:
            late.append(await call(channel))

        async with trio.open_nursery() as callers:
            callers.start_soon(caller)
            await wait_all_tasks_blocked(0.01)
            assert await call(channel) == b"x"
            assert channel.statistics().connections == 2
            assert late == []
            go.set()
        assert late == [b"late"]
        await wait_all_tasks_blocked(0.01)
        assert channel.statistics().connections == 1


async def test_a_call_that_is_refused_again_and_again_is_given_up(nursery: trio.Nursery) -> None:
    refusals = 0

    async def refuse(end: End) -> None:
        nonlocal refusals
        while True:
            end.raw.reset(await end.request(refusals), int(ErrorCode.REFUSED_STREAM))
            refusals += 1

    network = Network(nursery, refuse)
    async with network.channel(replays_max=3) as channel:
        assert await call(channel, timeout=5) is Status.UNAVAILABLE
        assert refusals == 4


async def test_a_refused_streaming_call_goes_on_where_it_was(nursery: trio.Nursery) -> None:
    async def refuse(end: End) -> None:
        while not end.raw.requests:
            await end.flush()
            await end.receive()
        end.raw.reset(1, int(ErrorCode.REFUSED_STREAM))
        await end.echo()

    network = Network(nursery, refuse)
    async with network.channel() as channel:
        request = channel.request(PATH, Cardinality.STREAM_STREAM, bytes, bytes)
        async with request as stream:
            await stream.send_message(b"a")
            await wait_all_tasks_blocked(0.01)
            await stream.send_message(b"b", end=True)
            assert [message async for message in stream] == [b"a", b"b"]
        assert channel.statistics().connections_total == 1


# ----------------------------------------------------------------- keepalive


async def test_a_server_that_answers_no_pings_is_lost(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    pings = 0

    async def mute(end: End) -> None:
        nonlocal pings
        await end.request()
        while await end.receive():
            pings = len(end.raw.seen.pings)

    network = Network(nursery, mute)
    async with network.channel(keepalive_s=60, keepalive_answer_s_max=5) as channel:
        began_s = trio.current_time()
        with pytest.raises(GRPCError, match="does not answer pings"):
            await channel.unary(PATH, b"")
        assert 65 <= trio.current_time() - began_s < 90
        assert pings == 1
        assert await call(channel) == b"x"


async def test_a_server_that_answers_pings_is_kept_and_one_that_complains_gets_fewer(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def answer_late(end: End) -> None:
        first = await end.request()
        while len(end.raw.seen.pings) < 10:
            await end.receive()
            await end.flush()
        end.raw.answer(first, b"late")
        await end.flush()
        await end.request(1)
        calm = int(ErrorCode.ENHANCE_YOUR_CALM)
        end.raw.goaway(first, code=calm, debug=b"too_many_pings")
        await end.flush()

    async def count(end: End) -> None:
        await end.request()
        while len(end.raw.seen.pings) < 2:
            await end.receive()
            await end.flush()
        await end.echo()

    network = Network(nursery, answer_late, count)
    async with network.channel(keepalive_s=60) as channel:
        began_s = trio.current_time()
        assert await call(channel) == b"late"
        assert 600 <= trio.current_time() - began_s < 700
        began_s = trio.current_time()
        assert await call(channel) == b"x"
        assert 240 <= trio.current_time() - began_s < 300
