"""How a channel makes, loses and replaces its connection, and what its calls see of that."""

from __future__ import annotations

import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.rpc.client.backoff import Backoff
from dbos_actors.rpc.client.channel import BackoffPolicy, Channel, ChannelOptions, ChannelState
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode, Http2Error, Setting
from tests.support.raw_server import RawServer

PATH = "/test.Test/Echo"


class End:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self.raw = RawServer()
        self.answered: set[int] = set()

    async def flush(self, mutate: Callable[[bytes], bytes] = bytes) -> None:
        if data := self.raw.output():
            await self.stream.send_all(mutate(data))

    async def receive(self) -> bool:
        data = await self.stream.receive_some(1 << 16)
        if data:
            self.raw.receive(bytes(data))
        return bool(data)

    async def request(self, number: int = 0) -> int:
        """The stream of the next request that has ended, after so many."""
        while True:
            ended = [n for n, request in self.raw.requests.items() if request.ended]
            if len(ended) > number:
                return ended[number]
            await self.flush()
            if not await self.receive():
                raise trio.EndOfChannel

    async def echo(self) -> None:
        """Answer everything until the client has gone."""
        while True:
            for stream_id, request in list(self.raw.requests.items()):
                if request.ended and request.reset is None and stream_id not in self.answered:
                    self.answered.add(stream_id)
                    self.raw.headers(stream_id)
                    self.raw.data(stream_id, request.body)
                    self.raw.trailers(stream_id)
            await self.flush()
            if not await self.receive():
                return


Plan = Callable[[End], Awaitable[None]]


class Network:
    """Connections through socket pairs; each attempt goes as the next plan says, then as usual."""

    def __init__(self, nursery: trio.Nursery, *plans: Plan | OSError) -> None:
        self._nursery = nursery
        self.plans = list(plans)
        self.attempts_s: list[float] = []
        self.ends: list[End] = []

    async def connect(self) -> socket.socket:
        self.attempts_s.append(trio.current_time())
        plan = self.plans.pop(0) if self.plans else End.echo
        if isinstance(plan, OSError):
            raise plan
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        end = End(theirs)
        self.ends.append(end)
        self._nursery.start_soon(self._serve, end, plan)
        return ours

    async def _serve(self, end: End, plan: Plan) -> None:
        try:
            with suppress(
                trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, Http2Error
            ):
                await plan(end)
        finally:
            end.stream.socket.close()

    def channel(self, **options: Any) -> Channel:
        return Channel(
            "server.test",
            1234,
            options=ChannelOptions(**{"backoff": BackoffPolicy(jitter=0), **options}),
            connector=self.connect,
        )


async def silent(_end: End) -> None:
    await trio.sleep_forever()


REFUSED = ConnectionRefusedError(111, "refused")


async def call(channel: Channel, body: bytes = b"x", **options: Any) -> bytes | Status:
    """What a call brings."""
    try:
        return await channel.unary(PATH, body, **options)
    except GRPCError as error:
        status: Status = error.status
        return status


# ------------------------------------------------------------------- backoff


def test_pauses_grow_to_their_limit_and_start_anew_after_a_success() -> None:
    backoff = Backoff(BackoffPolicy(jitter=0), random.Random(1))
    pauses = [backoff.next_s() for _ in range(15)]
    assert pauses[:3] == pytest.approx([1.0, 1.6, 2.56])
    assert all(later == min(earlier * 1.6, 120) for earlier, later in pairwise(pauses))
    assert pauses[-1] == 120
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_pauses_are_spread_by_their_jitter() -> None:
    pauses = [Backoff(BackoffPolicy(), random.Random(seed)).next_s() for seed in range(200)]
    assert 0.8 <= min(pauses) < 0.85
    assert 1.15 < max(pauses) <= 1.2


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


# --------------------------------------------- faults at every step of a call

Fault = Callable[[End], Awaitable[bool]]
"""Does it; whether the connection is of no more use then."""


async def close(end: End) -> bool:
    await end.stream.aclose()
    return True


async def half_close(end: End) -> bool:
    await end.stream.send_eof()
    return True


async def rst(end: End) -> bool:
    """A TCP reset is what closing over unread bytes gives; here, the closest to it."""
    end.stream.socket.shutdown(socket.SHUT_RDWR)
    return True


async def goaway_all(end: End) -> bool:
    """Nothing was done, and nothing will be."""
    end.raw.goaway(0)
    await end.flush()
    return True


async def goaway_later(end: End) -> bool:
    """Calls so far will be served."""
    end.raw.goaway(max(end.raw.requests, default=0))
    await end.flush()
    return False


async def goaway_gently(end: End) -> bool:
    end.raw.engine.announce_shutdown()
    await end.flush()
    return False


async def garbage(end: End) -> bool:
    await end.stream.send_all(random.Random(5).randbytes(500))
    return True


def reset_stream(code: int) -> Fault:
    async def reset(end: End) -> bool:
        for stream_id in end.raw.requests:
            with suppress(Http2Error):
                end.raw.reset(stream_id, code)
        await end.flush()
        return False

    return reset


FAULTS = {
    "close": close,
    "half_close": half_close,
    "rst": rst,
    "goaway_all": goaway_all,
    "goaway_later": goaway_later,
    "goaway_gently": goaway_gently,
    "garbage": garbage,
    "cancel": reset_stream(int(ErrorCode.CANCEL)),
    "refuse": reset_stream(int(ErrorCode.REFUSED_STREAM)),
    "internal": reset_stream(int(ErrorCode.INTERNAL_ERROR)),
}
STEPS = 6  # connected, greeted, asked, headers sent, message sent, trailers sent


def faulty(fault: Fault, at: int) -> Plan:
    """A server that answers its first call, with a fault after so many steps of that."""

    async def serve(end: End) -> None:
        if at == 0 and await fault(end):
            return
        await end.flush()
        if at == 1 and await fault(end):
            return
        stream_id = await end.request()
        end.answered.add(stream_id)
        if at == 2 and await fault(end):
            return
        steps: list[Callable[[], None]] = [
            lambda: end.raw.headers(stream_id),
            lambda: end.raw.data(stream_id, frame(b"x")),
            lambda: end.raw.trailers(stream_id),
        ]
        for number, step in enumerate(steps, 3):
            with suppress(Http2Error):  # on a stream that the fault has ended
                step()
            await end.flush()
            if at == number and await fault(end):
                return
        await end.echo()

    return serve


@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize("name", FAULTS)
async def test_after_a_fault_at_any_step_a_call_has_an_end_and_the_next_one_is_answered(
    nursery: trio.Nursery, name: str, at: int
) -> None:
    network = Network(nursery, faulty(FAULTS[name], at))
    options = {"backoff": BackoffPolicy(first_s=0.001), "wait_for_ready": True}
    async with network.channel(**options) as channel:
        with trio.fail_after(5):
            first = await call(channel)
            second = await call(channel)
            if at == STEPS - 1:  # the fault may be the second call's
                second = second if second == b"x" else await call(channel)
            assert second == b"x"
        assert first in {b"x", Status.UNAVAILABLE, Status.CANCELLED, Status.INTERNAL}
        if at == STEPS - 1 or at == 0 or name in {"goaway_later", "goaway_gently"}:
            assert first == b"x"
        if at == 2 and name in {"goaway_all", "refuse"}:
            assert first == b"x", "what was not begun with is sent again"
        assert channel.statistics().calls_waiting == 0
        assert channel.statistics().calls_live == 0
        assert channel.statistics().connections <= 1


@pytest.mark.parametrize("at", range(STEPS - 1))
async def test_silence_at_any_step_ends_with_the_deadline(nursery: trio.Nursery, at: int) -> None:
    async def silence(_end: End) -> bool:
        await trio.sleep_forever()
        return True

    network = Network(nursery, faulty(silence, at))
    async with network.channel() as channel:
        assert await call(channel, timeout=0.02) is Status.DEADLINE_EXCEEDED
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(40))
async def test_damaged_bytes_hurt_the_calls_of_their_connection_only(
    nursery: trio.Nursery, seed: int
) -> None:
    rng = random.Random(seed)

    def damage(data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)

    async def serve(end: End) -> None:
        await end.flush()
        count = 0
        while True:
            stream_id = await end.request(count)
            count += 1
            end.raw.answer(stream_id, b"x" * 50)
            await end.flush(damage)

    network = Network(nursery, *[serve] * 8)
    options = {"backoff": BackoffPolicy(first_s=0.001), "wait_for_ready": True}
    async with network.channel(**options) as channel:
        with trio.fail_after(20):
            while network.plans:
                await call(channel, timeout=0.02)
                if rng.random() < 0.3:  # a connection that damage has left alive, but useless
                    for end in network.ends:
                        await end.stream.aclose()
                await trio.lowlevel.checkpoint()
            for end in network.ends:
                await end.stream.aclose()
            while await call(channel, timeout=5) != b"x":
                pass
        assert channel.statistics().calls_live == 0


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
