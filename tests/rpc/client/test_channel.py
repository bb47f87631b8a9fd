"""The client channel against this package's own server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpclib.client
import pytest
import trio
import trio.testing
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as GrpclibHandler
from grpclib.events import RecvTrailingMetadata, SendRequest, listen
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from dbos_actors.rpc.client.channel import BackoffPolicy, Channel, ChannelOptions, ChannelState
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import Stream
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.http2 import Http2Options
from dbos_actors.rpc.wire.metadata import MetadataError

Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Func = Callable[[Stream[Any, Any]], Awaitable[None]]

UNARY = Cardinality.UNARY_UNARY
DOWN = Cardinality.UNARY_STREAM
UP = Cardinality.STREAM_UNARY
BOTH = Cardinality.STREAM_STREAM


class Service:
    """Methods made of functions: ``Service(Echo=(function, cardinality))``."""

    def __init__(self, **methods: tuple[Func, Cardinality]) -> None:
        self._methods = methods

    def __mapping__(self) -> dict[str, GrpclibHandler]:
        return {
            f"/test.Test/{name}": GrpclibHandler(func, cardinality, BytesValue, BytesValue)
            for name, (func, cardinality) in self._methods.items()
        }


async def echo(stream: Stream[BytesValue, BytesValue]) -> None:
    async for message in stream:
        await stream.send_message(message)


async def join(stream: Stream[BytesValue, BytesValue]) -> None:
    parts = [message.value async for message in stream]
    await stream.send_message(BytesValue(value=b"".join(parts)))


async def thrice(stream: Stream[BytesValue, BytesValue]) -> None:
    message = await stream.recv_message()
    assert message is not None
    for _ in range(3):
        await stream.send_message(message)


async def wait(stream: Stream[BytesValue, BytesValue]) -> None:
    """Answers headers, and then nothing."""
    await stream.send_initial_metadata()
    await trio.sleep_forever()


class Stub:
    """As grpclib's compiler would write it."""

    def __init__(self, channel: Any) -> None:
        types = (BytesValue, BytesValue)
        self.Echo = grpclib.client.UnaryUnaryMethod(channel, "/test.Test/Echo", *types)
        self.Thrice = grpclib.client.UnaryStreamMethod(channel, "/test.Test/Thrice", *types)
        self.Join = grpclib.client.StreamUnaryMethod(channel, "/test.Test/Join", *types)
        self.EchoAll = grpclib.client.StreamStreamMethod(channel, "/test.Test/EchoAll", *types)
        self.Wait = grpclib.client.StreamStreamMethod(channel, "/test.Test/Wait", *types)


def status_of(error: Exception) -> tuple[Status, str]:
    return Status.UNKNOWN, str(error)


def make_server(
    *, limits: ServerLimits | None = None, **methods: tuple[Func, Cardinality]
) -> Server:
    service = Service(
        Echo=(echo, UNARY),
        Thrice=(thrice, DOWN),
        Join=(join, UP),
        EchoAll=(echo, BOTH),
        Wait=(wait, BOTH),
        **methods,
    )

    def plain(call: UnaryCall) -> None:
        call.reply(call.request)

    return Server(
        unary={"/test.Test/Plain": UnaryMethod(plain, bytes)},
        services=[service],
        status_of=status_of,
        limits=limits or ServerLimits(),
    )


def open_channel(address: str, **options: Any) -> Channel:
    host, _, port = address.rpartition(":")
    return Channel(host, int(port), options=ChannelOptions(**options))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - it is nobody's event
            await trio.sleep(0.001)


def method(channel: Channel, name: str, cardinality: Cardinality = UNARY) -> Any:
    """A method of grpclib's; its types name grpclib's own channel."""
    kinds: dict[Cardinality, Any] = {
        UNARY: grpclib.client.UnaryUnaryMethod,
        UP: grpclib.client.StreamUnaryMethod,
    }
    return kinds[cardinality](channel, f"/test.Test/{name}", BytesValue, BytesValue)


def value(data: bytes) -> BytesValue:
    return BytesValue(value=data)


async def test_grpclib_stubs_of_all_cardinalities_run_unchanged(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        stub = Stub(channel)
        messages = [value(b"a"), value(b""), value(b"c" * 100_000)]
        assert await stub.Echo(value(b"x")) == value(b"x")
        assert await stub.Thrice(value(b"x")) == [value(b"x")] * 3
        assert await stub.Join(messages) == value(b"ac" + b"c" * 99_999)
        assert await stub.EchoAll(messages) == messages
        assert await stub.EchoAll([]) == []
        assert channel.statistics().connections_total == 1


async def test_serialised_messages_have_a_short_way(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        for size in (0, 1, 70_000, 4_000_000):
            body = bytes(size)
            assert await channel.unary("/test.Test/Plain", body, timeout=10) == body
        with pytest.raises(GRPCError, match="unknown method") as caught:
            await channel.unary("/test.Test/Nothing", b"")
        assert caught.value.status is Status.UNIMPLEMENTED


# ------------------------------------------------------------------ metadata


async def greet(stream: Stream[BytesValue, BytesValue]) -> None:
    """Sends the request's metadata back twice, as initial and as trailing metadata."""
    message = await stream.recv_message()
    assert message is not None
    given = [(key, item) for key, item in stream.metadata.items() if key.startswith("x-")]
    await stream.send_initial_metadata(metadata=given)
    await stream.send_message(message)
    await stream.send_trailing_metadata(metadata=given)


async def test_metadata_goes_both_ways_binary_too(serve: Serve) -> None:
    server = make_server(Greet=(greet, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        given: list[tuple[str, str | bytes]] = [
            ("x-text", "a b"),
            ("x-data-bin", b"\x00\xff\x01"),
            ("x-text", "c"),
        ]
        request = channel.request("/test.Test/Greet", UNARY, BytesValue, BytesValue, metadata=given)
        async with request as stream:
            await stream.send_message(value(b"x"), end=True)
            assert str(stream.peer).startswith("ipv4:127.0.0.1:")
            assert stream.peer is not None
            assert stream.peer.addr() == ("127.0.0.1", int(address.rpartition(":")[2]))
            await stream.recv_initial_metadata()
            assert [*stream.initial_metadata.items()] == given  # type: ignore[union-attr]
            assert await stream.recv_message() == value(b"x")
            await stream.recv_trailing_metadata()
            assert [*stream.trailing_metadata.items()] == given  # type: ignore[union-attr]


async def test_metadata_that_must_not_be_sent_is_refused(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        for metadata in ({"grpc-x": "a"}, {"Upper": "a"}, {"a": "\n"}, {"a-bin": "text"}):
            with pytest.raises(MetadataError):
                await Stub(channel).Echo(value(b""), metadata=metadata)
        with pytest.raises(GRPCError, match="larger than the server's limit") as caught:
            await Stub(channel).Echo(value(b""), metadata={"a": "x" * 100_000})
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        assert await Stub(channel).Echo(value(b"x")) == value(b"x")


async def test_listeners_of_grpclib_are_heard(serve: Serve) -> None:
    async def add_token(event: SendRequest) -> None:
        event.metadata["x-token"] = event.method_name

    seen = []

    async def see(event: RecvTrailingMetadata) -> None:
        seen.append((event.status, event.metadata["x-token"]))

    server = make_server(Greet=(greet, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        listen(channel, SendRequest, add_token)
        listen(channel, RecvTrailingMetadata, see)
        greeting = method(channel, "Greet")
        await greeting(value(b""))
    assert seen == [(Status.OK, "/test.Test/Greet")]


# -------------------------------------------------------------------- status


async def fail(stream: Stream[BytesValue, BytesValue]) -> None:
    """Sends a message, then a status with details."""
    await stream.recv_message()
    await stream.send_message(value(b"before"))
    details = [StringValue(value="what"), AnyMessage(type_url="x/y")]
    raise GRPCError(Status.DATA_LOSS, "gone: \N{SNOWMAN}", details)


async def test_a_status_is_raised_with_its_message_and_details(serve: Serve) -> None:
    server = make_server(Fail=(fail, BOTH))
    async with serve(server) as address, open_channel(address) as channel:
        request = channel.request("/test.Test/Fail", BOTH, BytesValue, BytesValue)
        with pytest.raises(GRPCError) as caught:  # noqa: PT012
            async with request as stream:
                await stream.send_message(value(b""), end=True)
                assert await stream.recv_message() == value(b"before")
                await stream.recv_message()
        error = caught.value
        assert (error.status, error.message) == (Status.DATA_LOSS, "gone: \N{SNOWMAN}")
        assert error.details == [StringValue(value="what"), AnyMessage(type_url="x/y")]


async def test_a_status_is_raised_at_the_end_of_the_block_at_the_latest(serve: Serve) -> None:
    server = make_server(Fail=(fail, BOTH))
    async with serve(server) as address, open_channel(address) as channel:
        request = channel.request("/test.Test/Fail", BOTH, BytesValue, BytesValue)
        with pytest.raises(GRPCError, match="gone"):
            async with request as stream:
                await stream.send_message(value(b""), end=True)


async def test_misuse_is_a_protocol_error(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        types = (BytesValue, BytesValue)
        async with channel.request("/test.Test/Echo", UNARY, *types) as stream:
            for early in (stream.recv_message, stream.recv_initial_metadata, stream.end):
                with pytest.raises(ProtocolError):
                    await early()
            with pytest.raises(ProtocolError):
                await stream.send_request(end=True)
            with pytest.raises(TypeError):
                await stream.send_message(StringValue())  # type: ignore[arg-type]
            await stream.send_message(value(b""))
            for late in (stream.send_request(), stream.send_message(value(b""))):
                with pytest.raises(ProtocolError):
                    await late
            await stream.recv_initial_metadata()
            with pytest.raises(ProtocolError):
                await stream.recv_initial_metadata()
            await stream.recv_trailing_metadata()
            with pytest.raises(ProtocolError):
                await stream.recv_trailing_metadata()
        with pytest.raises(ProtocolError, match="has not ended"):
            async with channel.request("/test.Test/EchoAll", BOTH, *types) as stream:
                await stream.send_request()
        async with channel.request("/test.Test/Echo", UNARY, *types):
            pass  # a call that was not made is none
    with pytest.raises(RuntimeError, match="async with"):
        await Channel().unary("/a/b", b"")


async def test_undecodable_responses_fail_their_call_only(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        plain = method(channel, "Plain")
        with pytest.raises(GRPCError, match="cannot be decoded") as caught:
            await plain(b"\xff\xff")
        assert caught.value.status is Status.INTERNAL


# --------------------------------------------------- deadlines, cancellation


async def test_the_deadline_holds_here_and_there(serve: Serve) -> None:
    cancelled = trio.Event()
    remaining = []

    async def hang(stream: Stream[BytesValue, BytesValue]) -> None:
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
            lambda: hanging(value(b""), timeout=0.05),
            lambda: channel.unary("/test.Test/Hang", b"", timeout=0.05),
        ):
            with pytest.raises(GRPCError) as caught:
                await call()
            assert caught.value.status is Status.DEADLINE_EXCEEDED
            await cancelled.wait()
            cancelled = trio.Event()
        assert all(0 < s <= 0.05 for s in remaining)
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

    async def hang(_stream: Stream[BytesValue, BytesValue]) -> None:
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

    async def flood(stream: Stream[BytesValue, BytesValue]) -> None:
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

    async def slow(stream: Stream[BytesValue, BytesValue]) -> None:
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
    async def first(stream: Stream[BytesValue, BytesValue]) -> None:
        message = await stream.recv_message()
        assert message is not None
        await stream.send_message(message)

    async def refuse(stream: Stream[BytesValue, BytesValue]) -> None:
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


# --------------------------------------------------------------- connections


async def test_calls_beyond_the_servers_limit_wait_their_turn(serve: Serve) -> None:
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=3))
    live = most = 0

    async def count(stream: Stream[BytesValue, BytesValue]) -> None:
        nonlocal live, most
        live += 1
        most = max(most, live)
        message = await stream.recv_message()
        assert message is not None
        await trio.sleep(0.001)
        live -= 1
        await stream.send_message(message)

    server = make_server(limits=limits, Count=(count, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        replies = []

        async def call(n: int) -> None:
            body = value(b"%d" % n)
            assert body.SerializeToString() == await channel.unary(
                "/test.Test/Count", body.SerializeToString()
            )
            replies.append(n)

        async with trio.open_nursery() as nursery:
            for n in range(60):
                nursery.start_soon(call, n)
        assert sorted(replies) == [*range(60)]
        assert most == 3
        assert channel.statistics().connections_total == 1


async def test_a_call_that_waits_for_its_turn_has_its_deadline(serve: Serve) -> None:
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=1))
    server = make_server(limits=limits)
    async with serve(server) as address, open_channel(address) as channel:
        types = (BytesValue, BytesValue)
        async with channel.request("/test.Test/Wait", BOTH, *types) as stream:
            await stream.send_request()
            with pytest.raises(GRPCError, match="deadline exceeded"):
                await channel.unary("/test.Test/Plain", b"", timeout=0.02)
            with trio.move_on_after(0.02):
                await channel.unary("/test.Test/Plain", b"")
            assert channel.statistics().calls_waiting == 0
            await stream.cancel()
        assert await channel.unary("/test.Test/Plain", b"x") == b"x"


async def test_draining_servers_lose_no_call(serve: Serve) -> None:
    """Two servers in turn on one address, each drained under load."""
    path_calls = 0
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1:0")
        listener = listeners[0]
        assert isinstance(listener, trio.SocketListener)
        port = listener.socket.getsockname()[1]
        server = make_server()
        await nursery.start(server.serve, listeners)
        done = False
        options = ChannelOptions(wait_for_ready=True, backoff=BackoffPolicy(first_s=0.01))
        async with Channel("127.0.0.1", port, options=options) as channel:

            async def call() -> None:
                nonlocal path_calls
                while not done:
                    await channel.unary("/test.Test/Plain", b"x", timeout=20)
                    path_calls += 1

            async def until_calls(count: int) -> None:
                await until(lambda: path_calls >= count)

            async with trio.open_nursery() as callers:
                for _ in range(10):
                    callers.start_soon(call)
                for _ in range(3):
                    await until_calls(path_calls + 50)
                    successor = make_server()
                    # The port is taken over, as a process with a passed socket would.
                    old, server = server, successor
                    await old.drain(5)
                    listeners = await open_listeners(f"127.0.0.1:{port}")
                    await nursery.start(server.serve, listeners)
                done = True
            assert channel.statistics().connections_total >= 3
        nursery.cancel_scope.cancel()


async def test_unix_sockets_are_spoken_to(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with trio.open_nursery() as nursery:
        await nursery.start(make_server().serve, await open_listeners(f"unix:{path}"))
        async with Channel(path=path) as channel:
            assert await channel.unary("/test.Test/Plain", b"x") == b"x"
            assert channel.state is ChannelState.READY
        nursery.cancel_scope.cancel()
    with pytest.raises(ValueError, match="path"):
        Channel("host", path=path)


async def test_requests_are_compressed_if_asked_for(serve: Serve) -> None:
    limits = ServerLimits(compress_bytes_min=100)
    async with (
        serve(make_server(limits=limits)) as address,
        open_channel(address, compress_bytes_min=1_000) as channel,
    ):
        for size in (0, 500, 5_000, 500_000):
            assert await Stub(channel).Echo(value(bytes(size))) == value(bytes(size))


async def test_responses_larger_than_the_limit_are_refused(serve: Serve) -> None:
    async with (
        serve(make_server()) as address,
        open_channel(address, message_bytes_max=1_000) as channel,
    ):
        with pytest.raises(GRPCError, match="response message of 2000 bytes") as caught:
            await channel.unary("/test.Test/Plain", bytes(2_000))
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        assert await channel.unary("/test.Test/Plain", b"x") == b"x"


async def test_closing_the_channel_ends_its_calls(serve: Serve) -> None:
    async with serve(make_server()) as address:
        channel = open_channel(address)
        caught = []

        async def call() -> None:
            with pytest.raises(GRPCError) as error:
                await Stub(channel).Wait([value(b"")])
            caught.append(error.value.status)

        async with trio.open_nursery() as nursery:
            async with channel:
                nursery.start_soon(call)
                nursery.start_soon(call)
                await until(lambda: channel.statistics().calls_live == 2)
            assert channel.state is ChannelState.SHUTDOWN
        assert caught == [Status.CANCELLED] * 2
        with pytest.raises(GRPCError, match="closed"):
            await channel.unary("/test.Test/Plain", b"")
        with pytest.raises(RuntimeError):
            await channel.__aenter__()


async def test_a_channel_may_be_closed_inside_its_block(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        await channel.unary("/test.Test/Plain", b"")
        channel.close()
        await trio.lowlevel.checkpoint()  # the block is not cancelled
        for _ in range(2):
            with pytest.raises(GRPCError, match="closed") as caught:
                await channel.unary("/test.Test/Plain", b"")
            assert caught.value.status is Status.CANCELLED
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert channel.statistics().connections == 0


async def test_a_failure_of_the_channels_own_is_not_lost(serve: Serve) -> None:
    async def bug() -> None:
        raise AssertionError("bug")

    with pytest.RaisesGroup(pytest.RaisesGroup(AssertionError)):
        async with Channel() as channel:
            channel.start_soon(bug)
            await trio.sleep_forever()


async def test_the_blocks_own_error_comes_out_as_it_is(serve: Serve) -> None:
    async with serve(make_server()) as address:
        with pytest.raises(LookupError, match="mine"):  # noqa: PT012
            async with open_channel(address) as channel:
                await channel.unary("/test.Test/Plain", b"")
                raise LookupError("mine")
        with trio.CancelScope() as scope:
            async with open_channel(address) as channel:
                await channel.unary("/test.Test/Plain", b"")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


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
