"""How calls of grpclib services end early, wait, and are cancelled, with raw and real clients."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import ProtocolError, StreamTerminatedError
from structlog.testing import capture_logs

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Options
from tests.rpc.server.raw_service import (
    DOWN,
    UNARY,
    UP,
    Connect,
    Raw,
    Serve,
    server_of,
)


async def test_a_deadline_cancels_the_handler_and_is_its_status(
    serve: Serve, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    ended: list[float] = []

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        assert stream.deadline is not None
        assert 9.9 <= stream.deadline.time_remaining() <= 10
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    server = server_of(handler)
    async with serve(server) as address:
        client = await connect(address)
        autojump_clock.autojump_threshold = 0.05
        started = trio.current_time()
        stream = client.raw.request(b"", end=False, grpc_timeout=b"10S")
        await client.flush()
        while not client.raw.answers[stream].closed:
            await client.receive()
        assert client.raw.answers[stream].status is Status.DEADLINE_EXCEEDED
        assert 10 <= ended[0] - started < 11
        assert server.statistics().calls_live == 0


async def test_a_client_that_cancels_or_vanishes_cancels_its_handlers(
    serve: Serve, connect: Connect
) -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        nonlocal begun
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    server = server_of(handler)
    async with serve(server) as address:
        for how in ("cancel", "vanish"):
            begun, cancelled = trio.Event(), trio.Event()
            client = await connect(address)
            stream = client.raw.request(b"", end=False)
            await client.flush()
            await begun.wait()
            if how == "cancel":
                client.raw.reset(stream)
                await client.flush()
            else:
                await trio.aclose_forcefully(client.stream)
            with trio.fail_after(5):
                await cancelled.wait()
                while server.statistics().calls_live:
                    await trio.lowlevel.checkpoint()


async def test_a_handler_may_reset_its_call(serve: Serve, connect: Connect) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        await stream.cancel()
        with pytest.raises(StreamTerminatedError):
            await stream.send_message(Raw(b""))

    async with serve(server_of(handler)) as address:
        client = await connect(address)
        assert (await client.call(b"")).reset == 8


async def test_misuse_of_the_stream_is_told(serve: Serve, connect: Connect) -> None:
    told: list[type[Exception]] = []

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        await stream.recv_message()
        for attempt in (
            stream.send_trailing_metadata,
            partial(stream.send_message, "text"),  # type: ignore[arg-type]
            partial(stream.send_initial_metadata, metadata={"grpc-status": "0"}),
        ):
            with pytest.raises((ProtocolError, TypeError, ValueError)) as caught:
                await attempt()
            told.append(caught.type)
        await stream.send_message(Raw(b"one"))
        with pytest.raises(ProtocolError):
            await stream.send_initial_metadata()
        with pytest.raises(ProtocolError):
            await stream.send_message(Raw(b"two"))
        await stream.send_trailing_metadata()
        with pytest.raises(ProtocolError):
            await stream.send_trailing_metadata()

    async with serve(server_of(handler, UNARY)) as address:
        client = await connect(address)
        answer = await client.call(b"")
    assert (answer.status, answer.body) == (Status.OK, frame(b"one"))
    assert [error.__name__ for error in told] == ["ProtocolError", "TypeError", "MetadataError"]


async def test_a_handler_that_sends_to_one_who_does_not_read_waits(
    serve: Serve, connect: Connect
) -> None:
    sent: list[int] = []

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        for number in range(100):
            await stream.send_message(Raw(b"x" * 10_000))
            sent.append(number)

    server = server_of(handler, DOWN)
    async with serve(server) as address:
        client = await connect(address, acknowledge=False)
        stream = client.raw.request(b"")
        await client.flush()
        for _ in range(30):
            with trio.move_on_after(0.01):
                await client.receive()
        assert len(sent) < 25  # a window and a queue of 64 KiB each
        other = await connect(address)
        quick = other.raw.request(b"")
        with trio.fail_after(20):
            assert len((await other.answer(quick)).body) == 100 * 10_005
        client.raw.reset(stream)
        await client.flush()
        while server.statistics().calls_live:
            await trio.lowlevel.checkpoint()
        assert server.statistics().mailbox_bytes == 0


async def test_a_handler_that_does_not_read_holds_its_client_back(
    serve: Serve, connect: Connect
) -> None:
    go = trio.Event()

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        await go.wait()
        total = 0
        async for message in stream:
            total += len(message.data)
        await stream.send_message(Raw(b"%d" % total))

    async with serve(server_of(handler, UP)) as address:
        client = await connect(address)
        stream = client.raw.request(None, end=False)
        client.raw.send(stream, frame(b"x" * 1_000) * 1_000, end=True)
        await client.flush()
        for _ in range(20):
            with trio.move_on_after(0.01):
                await client.receive()
        assert client.raw.engine.queued_bytes(stream) >= 1_005_000 - 65_535
        go.set()
        assert (await client.answer(stream)).body == frame(b"1000000")


async def test_an_early_status_stops_an_endless_upload(serve: Serve, connect: Connect) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        await stream.recv_message()
        await stream.send_message(Raw(b"enough"))

    async with serve(server_of(handler)) as address:
        client = await connect(address)
        stream = client.raw.request(b"x", end=False)
        client.raw.send(stream, frame(b"y" * 1_000_000))
        answer = await client.answer(stream)
        assert (answer.status, answer.body, answer.reset) == (Status.OK, frame(b"enough"), 0)


async def test_user_agent_peer_and_user_data(serve: Serve, connect: Connect) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        stream.user_data["x"] = 1
        host_and_port = stream.peer.addr()
        assert host_and_port is not None
        assert stream.peer.cert() is None
        text = f"{stream.user_agent} {host_and_port[0]} {stream.peer} {stream.path}"
        await stream.send_message(Raw(text.encode()))

    async with serve(server_of(handler)) as address:
        client = await connect(address)
        body = (await client.call(b"", user_agent=b"me/1")).body[5:].decode()
    assert body.startswith("me/1 127.0.0.1 ipv4:127.0.0.1:")
    assert body.endswith("/test.Test/Echo")


async def test_handlers_that_outlive_their_reset_streams_are_counted(
    serve: Serve, connect: Connect
) -> None:
    """Catches counting streams instead of handlers: resets would free what still runs."""
    running = 0
    most = 0
    release = trio.Event()

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            with trio.CancelScope(shield=True):
                await release.wait()
        finally:
            running -= 1

    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=20))
    server = server_of(handler, limits=limits)
    async with serve(server) as address:
        client = await connect(address)
        for _ in range(1_000):
            stream = client.raw.request(b"", end=False)
            await client.flush()
            await trio.lowlevel.checkpoint()
            client.raw.reset(stream)
            await client.flush()
        refused = await client.call(b"")
        assert refused.status is Status.RESOURCE_EXHAUSTED
        assert 0 < most <= 20
        assert server.statistics().calls_live == running
        release.set()
        while server.statistics().calls_live:
            await trio.lowlevel.checkpoint()


async def test_a_handler_that_fails_while_the_server_is_stopped_does_not_fail_the_server(
    serve: Serve, connect: Connect
) -> None:
    """One of its tasks is cancelled, another one raises: both leave its nursery together."""
    started = trio.Event()

    async def fail_when_cancelled(stream: ServerStream[Raw, Raw]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            await stream.send_message(Raw(b"too late"))

    async def raise_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise StreamTerminatedError("the call is over")

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, stream)
            nursery.start_soon(raise_when_cancelled)
            started.set()

    server = server_of(handler)
    with capture_logs() as logs:
        async with serve(server) as address:
            client = await connect(address)
            client.raw.request(b"", end=False)
            await client.flush()
            await started.wait()
            await server.drain(0.1)
    assert logs == []
