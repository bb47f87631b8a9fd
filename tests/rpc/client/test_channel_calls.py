"""Deadlines, cancellation and flow control of the channel's calls, against a real server."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from dbos_actors.rpc.client.channel import Channel
from dbos_actors.rpc.server.stream import ServerStream
from tests.rpc.client.echo_service import (
    BOTH,
    DOWN,
    UNARY,
    UP,
    Serve,
    Stub,
    make_server,
    method,
    open_channel,
    value,
)

# --------------------------------------------------- deadlines, cancellation


TIMEOUT_S = 0.5
"""Long enough for a busy machine to begin the call."""


async def test_the_deadline_holds_here_and_there(serve: Serve) -> None:
    cancelled = trio.Event()
    remaining = []

    async def hang(stream: ServerStream[BytesValue, BytesValue]) -> None:
        assert stream.deadline is not None
        remaining.append(stream.deadline.time_remaining())
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = make_server(Hang=(hang, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        hanging = method(channel, "Hang")
        for call in (
            lambda: hanging(value(b""), timeout=TIMEOUT_S),
            lambda: channel.unary("/test.Test/Hang", b"", timeout=TIMEOUT_S),
        ):
            with pytest.raises(GRPCError) as caught:
                await call()
            assert caught.value.status is Status.DEADLINE_EXCEEDED
            with trio.fail_after(5):
                await cancelled.wait()
            cancelled = trio.Event()
        assert all(0 < s <= TIMEOUT_S for s in remaining)
        with pytest.raises(GRPCError, match="deadline exceeded"):
            await hanging(value(b""), timeout=0)
        assert len(remaining) == 2  # the last one was not even sent
        assert channel.statistics().calls_live == 0


async def test_a_servers_deadline_is_passed_on_as_it_is(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        outer = channel.request("/", UNARY, bytes, bytes, timeout=100)
        assert outer._deadline is not None
        inner = channel.request("/", UNARY, bytes, bytes, timeout=500, deadline=outer._deadline)
        assert inner._deadline is not None
        assert inner._deadline.deadline_s == pytest.approx(outer._deadline.deadline_s)


async def test_a_cancelled_task_resets_its_call(serve: Serve) -> None:
    began, cancelled = trio.Event(), trio.Event()

    async def hang(_stream: ServerStream[BytesValue, BytesValue]) -> None:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = make_server(Hang=(hang, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        hanging = method(channel, "Hang")
        for call in (hanging, lambda _: channel.unary("/test.Test/Hang", b"")):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, value(b""))
                await began.wait()
                nursery.cancel_scope.cancel()
            with trio.fail_after(5):
                await cancelled.wait()
            began, cancelled = trio.Event(), trio.Event()
        assert await Stub(channel).Echo(value(b"x")) == value(b"x")


async def test_a_call_can_be_cancelled_by_hand_before_and_after_a_response(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        types = (BytesValue, BytesValue)
        async with channel.request("/test.Test/Wait", BOTH, *types) as stream:
            await stream.send_request()
            await stream.cancel()
            with pytest.raises(GRPCError) as caught:
                await stream.recv_message()
            assert caught.value.status is Status.CANCELLED
        async with channel.request("/test.Test/EchoAll", BOTH, *types) as stream:
            await stream.send_message(value(b"x"))
            assert await stream.recv_message() == value(b"x")
            await stream.cancel()
        assert await Stub(channel).Echo(value(b"x")) == value(b"x")


async def test_calls_cancelled_at_any_moment_leave_nothing_behind(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:

        async def call(delay_s: float, size: int) -> None:
            with trio.move_on_after(delay_s):
                await Stub(channel).EchoAll([value(bytes(size))] * 3)

        async with trio.open_nursery() as nursery:
            for n in range(300):
                nursery.start_soon(call, n / 10_000, (n % 5) * 30_000)
        body = bytes(1_000_000)
        assert await channel.unary("/test.Test/Plain", body) == body
        assert channel.statistics().calls_live == 0
        assert channel.statistics().calls_waiting == 0
        assert channel.statistics().connections_total == 1


# ----------------------------------------------------- streams, flow control


async def test_a_slow_reader_slows_its_server_down(serve: Serve) -> None:
    sent = 0

    async def flood(stream: ServerStream[BytesValue, BytesValue]) -> None:
        nonlocal sent
        await stream.recv_message()
        for _ in range(2_000):
            await stream.send_message(value(bytes(10_000)))
            sent += 1

    server = make_server(Flood=(flood, DOWN))
    async with serve(server) as address, open_channel(address) as channel:
        request = channel.request("/test.Test/Flood", DOWN, BytesValue, BytesValue)
        async with request as stream:
            await stream.send_message(value(b""), end=True)
            await stream.recv_message()
            assert await Stub(channel).Echo(value(b"x")) == value(b"x")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sent < 60
            assert len([1 async for _ in stream]) == 1_999


async def test_a_slow_server_slows_its_sender_down(serve: Serve) -> None:
    go = trio.Event()

    async def slow(stream: ServerStream[BytesValue, BytesValue]) -> None:
        await go.wait()
        await stream.send_message(value(str(len([1 async for _ in stream])).encode()))

    server = make_server(Slow=(slow, UP))
    async with serve(server) as address, open_channel(address) as channel:
        sent = 0
        reply: BytesValue | None = None

        async def call() -> None:
            nonlocal sent, reply
            request = channel.request("/test.Test/Slow", UP, BytesValue, BytesValue)
            async with request as stream:
                for _ in range(1_000):
                    await stream.send_message(value(bytes(10_000)))
                    sent += 1
                await stream.end()
                reply = await stream.recv_message()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sent < 40
            go.set()
        assert reply == value(b"1000")


async def test_an_early_answer_is_received_whatever_is_still_sent(serve: Serve) -> None:
    async def first(stream: ServerStream[BytesValue, BytesValue]) -> None:
        message = await stream.recv_message()
        assert message is not None
        await stream.send_message(message)

    async def refuse(stream: ServerStream[BytesValue, BytesValue]) -> None:
        raise GRPCError(Status.PERMISSION_DENIED, "no")

    server = make_server(First=(first, UP), Refuse=(refuse, UP))
    async with serve(server) as address, open_channel(address) as channel:
        first_of = method(channel, "First", UP)
        assert await first_of([value(bytes(100_000))] * 20) == value(bytes(100_000))
        refused = method(channel, "Refuse", UP)
        with pytest.raises(GRPCError, match="no"):
            await refused([value(bytes(100_000))] * 20)


async def test_a_request_sent_from_an_iterable_goes_on_beside_the_responses(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        types = (BytesValue, BytesValue)
        closed = trio.Event()
        answered = trio.Semaphore(1)

        async def requests() -> Any:
            try:
                for n in range(5):
                    await answered.acquire()  # each waits for the response to the one before
                    yield value(b"%d" % n)
            finally:
                closed.set()

        async with channel.request("/test.Test/EchoAll", BOTH, *types) as stream:
            await stream.send_request()
            stream.send_from(requests())
            got = []
            async for message in stream:
                got.append(message.value)
                answered.release()
        assert got == [b"0", b"1", b"2", b"3", b"4"]
        await closed.wait()

        async def broken() -> Any:
            yield value(b"x")
            raise LookupError("broken")

        with pytest.raises(LookupError, match="broken"):  # noqa: PT012
            async with channel.request("/test.Test/EchoAll", BOTH, *types) as stream:
                await stream.send_request()
                stream.send_from(broken())
                async for _ in stream:
                    pass
        assert await Stub(channel).Echo(value(b"x")) == value(b"x")


async def test_a_stream_abandoned_in_a_generator_is_reset(serve: Serve) -> None:
    """As betterproto's stubs are used: the block is left by GeneratorExit."""

    async def responses(channel: Channel) -> Any:
        types = (BytesValue, BytesValue)
        async with channel.request("/test.Test/EchoAll", BOTH, *types) as stream:
            await stream.send_message(value(b"x"))
            async for message in stream:
                yield message

    async with serve(make_server()) as address, open_channel(address) as channel:
        generator = responses(channel)
        assert await anext(generator) == value(b"x")
        await generator.aclose()
        await channel.unary("/test.Test/Plain", b"")
        assert channel.statistics().calls_live == 0


async def test_a_call_that_is_over_by_itself_takes_no_more_messages(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        types = (BytesValue, BytesValue)
        async with channel.request("/test.Test/Wait", BOTH, *types) as stream:
            await stream.send_request()
            await stream.cancel()
            with pytest.raises((GRPCError, StreamTerminatedError)):
                await stream.send_message(value(b"x"))
