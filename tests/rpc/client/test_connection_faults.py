"""A connection that fails at any step: every call ends, and the next one is answered."""

from __future__ import annotations

import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from grpclib.const import Status

from dbos_actors.rpc.client.channel import BackoffPolicy
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode, Http2Error
from tests.rpc.client.scripted_network import End, Network, Plan, call

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
