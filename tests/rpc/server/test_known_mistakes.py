"""Mistakes that HTTP/2 servers are known to make, one test each; see the names.

Some have further tests where they belong (`test_protocol`, `test_stream`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from structlog.testing import capture_logs

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Options

MakePipe = Callable[..., Any]
MakeServer = Callable[..., Server]
Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Connect = Callable[..., Any]


class Blob:
    """A message that is its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @classmethod
    def FromString(cls, data: bytes) -> Blob:  # noqa: N802
        return cls(data)

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.data


class Service:
    """One method, of a function."""

    def __init__(self, name: str, func: Any, cardinality: Cardinality) -> None:
        self._handler = {f"/test.Test/{name}": Handler(func, cardinality, Blob, Blob)}

    def __mapping__(self) -> dict[str, Handler]:
        return self._handler


def server_of(unary: dict[str, Any], *services: Service, **options: Any) -> Server:
    return Server(
        unary={f"/test.Test/{name}": UnaryMethod(func, bytes) for name, func in unary.items()},
        services=services,
        status_of=lambda e: (Status.UNKNOWN, str(e)),
        **options,
    )


def echo(call: UnaryCall) -> None:
    call.reply(call.request)


async def test_a_reset_never_overtakes_the_trailers(serve: Serve, connect: Connect) -> None:
    async with serve(server_of({})) as address:
        client = await connect(address)
        for _ in range(200):
            answer = await client.call(b"x" * 3_000_000, path=b"/nobody/Home")
            assert (answer.status, answer.reset) == (Status.UNIMPLEMENTED, 0)


async def test_a_unary_call_does_not_wait_behind_a_large_stream(
    serve: Serve, connect: Connect
) -> None:
    async def pour(stream: ServerStream[Blob, Blob]) -> None:
        for _ in range(16):
            await stream.send_message(Blob(bytes(1 << 20)))

    def large(call: UnaryCall) -> None:
        call.reply(bytes(16 << 20))

    async def large_of_grpclib(stream: ServerStream[Blob, Blob]) -> None:
        await stream.send_message(Blob(bytes(16 << 20)))

    services = [
        Service("Pour", pour, Cardinality.UNARY_STREAM),
        Service("LargeToo", large_of_grpclib, Cardinality.UNARY_UNARY),
    ]
    limits = ServerLimits(unsent_bytes_max=32 << 20)
    server = server_of({"Echo": echo, "Large": large}, *services, limits=limits)
    async with serve(server) as address:
        for path in (b"/test.Test/Pour", b"/test.Test/Large", b"/test.Test/LargeToo"):
            client = await connect(address, options=Http2Options(stream_window_bytes=1 << 24))
            big = client.raw.request(b"", path=path)
            await client.flush()
            while len(client.raw.answers[big].body) < 100_000:
                await client.receive()
            answer = await client.call(b"quick")
            assert answer.body == frame(b"quick")
            # What the socket's buffers held is ahead of it, and no more.
            assert len(client.raw.answers[big].body) < 12 << 20
            assert not client.raw.answers[big].closed
            await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize("chunk", [None, 1_000])
@pytest.mark.parametrize("path", [b"/test.Test/Echo", b"/test.Test/Stream", b"/no/Where"])
def test_cancelled_uploads_give_their_window_back(
    make_pipe: MakePipe, chunk: int | None, path: bytes
) -> None:
    """In pieces, so that some resets come in the middle of a DATA frame."""

    async def never(stream: ServerStream[Blob, Blob]) -> None:
        raise AssertionError

    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=4))
    services = [Service("Stream", never, Cardinality.UNARY_UNARY)]
    pipe = make_pipe({"Echo": echo}, limits=limits, services=services)
    pipe.run()
    for _ in range(1_000 if chunk is None else 50):
        stream = pipe.client.request(None, end=False, path=path)
        if not pipe.client.answers[stream].closed:
            pipe.client.send(stream, frame(b"x" * 30_000)[:20_000])
        pipe.to_server(chunk=chunk)
        pipe.client.reset(stream)
        pipe.run()
    stream = pipe.client.request(b"x" * (1 << 20))
    pipe.run()
    assert pipe.client.answers[stream].status is Status.OK


def test_a_connection_whose_window_refused_uploads_have_used_up_is_replaced(
    make_pipe: MakePipe,
) -> None:
    """The engine gives nothing back for the rest of a DATA frame that a reset has cut."""
    calls: list[UnaryCall] = []
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=100))
    pipe = make_pipe({"Echo": calls.append}, limits=limits)
    running = pipe.client.request(b"x")
    pipe.run()
    uploads = 0
    while pipe.client.goaway is None:
        assert uploads < 16_000
        uploads += 1
        refused = pipe.client.request(bytes(20_000), path=b"/no/Where")
        pipe.to_server(chunk=1_000)
        pipe.run()
        assert pipe.client.answers[refused].status is Status.UNIMPLEMENTED
    # Long before it is empty, and what runs there goes on.
    assert pipe.client.engine.remote_window_bytes(0) > 100 * 65_535 // 5
    calls[0].reply(b"done")
    pipe.core.flush()
    pipe.run()
    assert pipe.client.answers[running].body == frame(b"done")
    assert pipe.client.closed


def test_a_window_that_handlers_hold_back_is_not_taken_for_lost(make_pipe: MakePipe) -> None:
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=4))
    services = [Service("Both", unused, Cardinality.STREAM_STREAM)]
    pipe = make_pipe({}, limits=limits, services=services)
    for _ in range(4):
        stream = pipe.client.request(b"", end=False, path=b"/test.Test/Both")
        pipe.client.send(stream, frame(bytes(100_000)))
    pipe.run()
    assert pipe.server._engine._engine.local_window_size < 4 * 65_535 // 4
    pipe.started[0].cancel()
    pipe.core.flush()
    pipe.run()
    assert pipe.client.goaway is None


async def test_a_message_larger_than_every_window_does_not_deadlock(
    serve: Serve, connect: Connect
) -> None:
    async def join(stream: ServerStream[Blob, Blob]) -> None:
        sizes = [len(message.data) async for message in stream]
        await stream.send_message(Blob(str(sizes).encode()))

    service = Service("Join", join, Cardinality.STREAM_STREAM)
    async with serve(server_of({}, service)) as address:
        client = await connect(address)
        stream = client.raw.request(bytes(4_000_000), end=False, path=b"/test.Test/Join")
        client.raw.send(stream, frame(b"") + frame(bytes(4_194_304)), end=True)
        answer = await client.answer(stream)
        assert answer.body == frame(b"[4000000, 0, 4194304]")


async def test_headers_and_their_reset_in_one_write_are_no_trouble(
    serve: Serve, connect: Connect
) -> None:
    async def wait(stream: ServerStream[Blob, Blob]) -> None:
        await stream.recv_message()
        await trio.sleep_forever()

    service = Service("Wait", wait, Cardinality.STREAM_STREAM)
    server = server_of({"Echo": echo}, service)
    async with serve(server) as address:
        client = await connect(address)
        output = b""
        for path in (b"/test.Test/Echo", b"/test.Test/Wait", b"/no/Where") * 100:
            stream = client.raw.request(b"x", path=path)
            output += client.raw.output()
            client.raw.reset(stream)
            output += client.raw.output()
        await client.stream.send_all(output)
        assert (await client.call(b"alive")).body == frame(b"alive")
        while server.statistics().calls_live:
            await trio.lowlevel.checkpoint()


async def test_no_exception_of_one_call_reaches_another(serve: Serve, connect: Connect) -> None:
    def decode(data: bytes) -> bytes:
        if data == b"codec":
            raise RecursionError
        return data

    class Unserialisable:
        def SerializeToString(self) -> bytes:  # noqa: N802
            raise UnicodeError

    def handler(call: UnaryCall) -> None:
        match call.request:
            case b"handler":
                raise ExceptionGroup("many", [KeyError("x"), OSError(9, "x")])
            case b"metadata":
                call.reply(str(call.metadata).encode())
            case b"reply":
                call.reply(Unserialisable())
            case b"table":
                call.fail(ArithmeticError())
            case _:
                call.reply(call.request)

    def status_of(error: Exception) -> tuple[Status, str]:
        raise error

    methods = {"/test.Test/Echo": UnaryMethod(handler, decode)}
    async with serve(Server(unary=methods, status_of=status_of)) as address:
        bad, good = await connect(address), await connect(address)
        with capture_logs():
            for body in (b"handler", b"codec", b"metadata", b"reply", b"table"):
                answer = await bad.call(body, x_bin=b"!!!")
                assert answer.status is Status.INTERNAL
                assert (await bad.call(b"fine")).status is Status.OK
                assert (await good.call(b"fine")).status is Status.OK


async def test_cancelling_calls_beside_a_slow_reader_corrupts_nothing(
    serve: Serve, connect: Connect
) -> None:
    """Catches an output that is cut where a cancelled task was writing."""

    async def pour(stream: ServerStream[Blob, Blob]) -> None:
        request = await stream.recv_message()
        assert request is not None
        for number in range(40):
            await stream.send_message(Blob(request.data + b"%04d" % number * 5_000))

    service = Service("Pour", pour, Cardinality.UNARY_STREAM)
    async with serve(server_of({}, service)) as address:
        client = await connect(address)
        streams = [client.raw.request(b"%02d" % n, path=b"/test.Test/Pour") for n in range(20)]
        await client.flush()
        for stream in streams[::2]:
            await client.receive()
            client.raw.reset(stream)
            await client.flush()
        for number, stream in enumerate(streams):
            if number % 2:
                answer = await client.answer(stream)
                prefix = b"%02d" % number
                messages = [frame(prefix + b"%04d" % n * 5_000) for n in range(40)]
                assert answer.body == b"".join(messages)


def test_trailers_behind_a_body_that_fills_the_window_arrive(make_pipe: MakePipe) -> None:
    def handler(call: UnaryCall) -> None:
        call.reply(b"x" * (65_535 - 5))

    pipe = make_pipe({"Echo": handler})
    stream = pipe.client.request(b"")
    pipe.to_server()
    pipe.to_client()
    answer = pipe.client.answers[stream]
    assert len(answer.body) == 65_535
    pipe.run()
    assert answer.status is Status.OK


async def test_a_drain_is_not_held_up_by_a_client_that_never_reads(
    serve: Serve, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    server = server_of({"Echo": lambda call: call.reply(bytes(4_000_000))})
    async with serve(server) as address:
        client = await connect(address)
        client.raw.request(b"")
        await client.flush()
        while not server.statistics().calls_total:
            await trio.lowlevel.checkpoint()
        autojump_clock.autojump_threshold = 0.05
        with trio.fail_after(20):
            await server.drain(10)
        while server.statistics().connections:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "order", list(itertools.permutations(["deadline", "reset", "answer", "lost"]))
)
def test_deadline_reset_answer_and_disconnect_in_any_order_give_one_end(
    make_pipe: MakePipe, streaming: bool, order: tuple[str, ...]
) -> None:
    ends: list[Status | None] = []
    calls: list[UnaryCall] = []

    def keep(call: UnaryCall) -> None:
        call.when_answered(ends.append)
        calls.append(call)

    async def unused(stream: ServerStream[Blob, Blob]) -> None:
        raise AssertionError

    services = [Service("Stream", unused, Cardinality.STREAM_STREAM)]
    pipe = make_pipe({"Echo": keep}, services=services)
    path = b"/test.Test/Stream" if streaming else b"/test.Test/Echo"
    stream = pipe.client.request(b"x", grpc_timeout=b"5S", path=path)
    pipe.run()
    if streaming:
        (call,) = pipe.started
        call.when_answered(ends.append)
    for step in order:
        match step:
            case "deadline":
                pipe.now_s += 5
                pipe.core.deadlines.expire(pipe.now_s)
            case "reset":
                if not pipe.client.answers[stream].closed:
                    pipe.client.reset(stream)
                pipe.to_server()
            case "answer" if streaming:
                call.end(Status.OK)
            case "answer":
                calls[0].reply(b"x")
            case "lost":
                pipe.server.lost()
        pipe.core.flush()
        if not pipe.server.closed:
            pipe.to_client()
    if streaming:
        assert pipe.core.calls_live == 1  # until its handler has returned
        call.finished()
    expected = {"deadline": Status.DEADLINE_EXCEEDED, "answer": Status.OK}.get(order[0])
    assert ends == [expected]
    answer = pipe.client.answers[stream]
    if expected is not None:
        assert answer.status is expected
    assert pipe.core.calls_live == pipe.core.streams_live == 0
    pipe.core.deadlines.expire(float("inf"))
    assert len(pipe.core.deadlines) == 0


async def unused(stream: ServerStream[Blob, Blob]) -> None:
    raise AssertionError


def test_a_status_before_the_requests_end_leaves_the_body_whole(make_pipe: MakePipe) -> None:
    """Catches the reset that follows it going out while windows still hold the body back."""
    pipe = make_pipe({}, services=[Service("Both", unused, Cardinality.STREAM_STREAM)])
    stream = pipe.client.request(b"x", end=False, path=b"/test.Test/Both")
    pipe.run()
    (call,) = pipe.started
    call.send_headers([])
    call.send(bytes(200_000), None)
    call.end(Status.OK)
    call.finished()
    pipe.core.flush()
    pipe.run()
    answer = pipe.client.answers[stream]
    assert len(answer.body) == 200_005
    assert (answer.status, answer.reset) == (Status.OK, 0)


def test_streams_are_sent_side_by_side(make_pipe: MakePipe, make_client: Any) -> None:
    services = [Service("Both", unused, Cardinality.STREAM_STREAM)]
    client = make_client(options=Http2Options(stream_window_bytes=1 << 20))
    pipe = make_pipe({}, services=services, client=client)
    streams = [client.request(b"", path=b"/test.Test/Both") for _ in range(2)]
    pipe.run()
    for call in pipe.started:
        call.send_headers([])
        call.send(bytes(500_000), None)
    client.receive(pipe.server.output(400_000))
    sizes = [len(client.answers[stream].body) for stream in streams]
    assert min(sizes) > 150_000


def test_what_follows_a_large_message_is_not_acknowledged_with_it(make_pipe: MakePipe) -> None:
    pipe = make_pipe({}, services=[Service("Both", unused, Cardinality.STREAM_STREAM)])
    stream = pipe.client.request(bytes(100_000), end=False, path=b"/test.Test/Both")
    pipe.client.send(stream, frame(bytes(1_000)) * 500)
    pipe.run()
    sent = 100_005 + 502_500 - pipe.client.engine.queued_bytes(stream)
    assert 100_005 <= sent <= 100_005 + 65_535
    (call,) = pipe.started
    taken = 0
    while (body := call.take()) is not None:
        taken += len(body)
        pipe.core.flush()
        pipe.run()
    assert taken == 600_000


def test_of_many_messages_none_behind_a_damaged_one_is_delivered(make_pipe: MakePipe) -> None:
    pipe = make_pipe({}, services=[Service("Both", unused, Cardinality.STREAM_STREAM)])
    stream = pipe.client.request(b"1", end=False, path=b"/test.Test/Both", grpc_encoding=b"gzip")
    pipe.client.send(stream, frame(b"2") + frame(b"no gzip", compressed=True) + frame(b"4"))
    pipe.run()
    (call,) = pipe.started
    assert call.take_many(10) == [b"1", b"2"]
    for _ in range(2):
        with pytest.raises(GRPCError):
            call.take_many(10)


async def test_a_client_that_reads_nothing_is_not_read_either(
    serve: Serve, connect: Connect
) -> None:
    server = server_of({"Echo": lambda call: call.reply(bytes(4_000_000))})
    async with serve(server) as address:
        options = Http2Options(stream_window_bytes=1 << 24)
        client = await connect(address, options=options)
        for _ in range(10):
            client.raw.request(b"")
        await client.flush()
        while server.statistics().mailbox_bytes < 9 << 20:
            await trio.lowlevel.checkpoint()
        window_update = b"\0\0\4\x08\0\0\0\0\0\0\0\0\1"
        with trio.move_on_after(1) as scope:
            await client.stream.send_all(window_update * 2_000_000)
        assert scope.cancelled_caught
        other = await connect(address, options=options)
        assert (await other.call(b"")).status is Status.OK
