"""grpclib services with gRPC core as client: four cardinalities, metadata, statuses, gzip."""

from __future__ import annotations

import asyncio
import gzip
import queue
from typing import Any

import grpc
import grpclib.client
import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from structlog.testing import capture_logs

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.wire.framing import frame
from tests.rpc.server.raw_service import (
    BOTH,
    DOWN,
    UNARY,
    UP,
    Connect,
    Raw,
    Serve,
    echo,
    in_thread,
    join,
    server_of,
)


async def test_unary_unary(serve: Serve) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        request = await stream.recv_message()
        assert request is not None
        assert await stream.recv_message() is None
        await stream.send_message(Raw(request.data * 2))

    async with serve(server_of(handler, UNARY)) as address:
        reply = await in_thread(
            address, lambda channel: channel.unary_unary("/test.Test/Echo")(b"ab", timeout=10)
        )
    assert reply == b"abab"


async def test_unary_stream(serve: Serve) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        request = await stream.recv_message()
        assert request is not None
        for number in range(int(request.data)):
            await stream.send_message(Raw(b"%d" % number))

    async with serve(server_of(handler, DOWN)) as address:
        replies = await in_thread(
            address,
            lambda channel: list(channel.unary_stream("/test.Test/Echo")(b"1000", timeout=20)),
        )
    assert replies == [b"%d" % number for number in range(1000)]


async def test_stream_unary(serve: Serve) -> None:
    parts = [b"%d," % number for number in range(1000)]
    async with serve(server_of(join, UP)) as address:
        reply = await in_thread(
            address,
            lambda channel: channel.stream_unary("/test.Test/Echo")(iter(parts), timeout=20),
        )
    assert reply == b"".join(parts)


async def test_stream_stream_in_step(serve: Serve) -> None:
    def client(channel: grpc.Channel) -> list[bytes]:
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = channel.stream_stream("/test.Test/Echo")(iter(requests.get, None), timeout=20)
        replies = []
        for number in range(50):
            requests.put(b"%d" % number)
            replies.append(next(call))
        requests.put(None)
        assert list(call) == []
        return replies

    async with serve(server_of(echo)) as address:
        replies = await in_thread(address, client)
    assert replies == [b"%d" % number for number in range(50)]


async def test_grpclibs_client_streams_too(serve: Serve) -> None:
    async def client(address: str) -> list[bytes]:
        host, _, port = address.rpartition(":")
        async with grpclib.client.Channel(host, int(port)) as channel:
            method = grpclib.client.StreamStreamMethod(channel, "/test.Test/Echo", Raw, Raw)
            replies = await method([Raw(b"%d" % n) for n in range(20)], timeout=10)
            return [reply.data for reply in replies]

    async with serve(server_of(echo)) as address:
        replies = await trio.to_thread.run_sync(asyncio.run, client(address))
    assert replies == [b"%d" % n for n in range(20)]


async def test_messages_as_large_as_allowed_cross_small_windows(serve: Serve) -> None:
    """Catches acknowledging per message: 4 MiB over 64 KiB windows would never end."""
    body = bytes(range(256)) * (4 * 1024 * 4)
    async with serve(server_of(echo)) as address:
        replies = await in_thread(
            address,
            lambda channel: list(
                channel.stream_stream("/test.Test/Echo")(iter([body] * 3), timeout=30)
            ),
            **{"grpc.max_receive_message_length": -1, "grpc.http2.bdp_probe": 0},
        )
    assert replies == [body] * 3


async def test_messages_taken_together_are_all_there(serve: Serve) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        count = 0
        while batch := await stream.recv_messages(7):
            assert len(batch) <= 7
            count += len(batch)
        await stream.send_message(Raw(b"%d" % count))

    async with serve(server_of(handler, UP)) as address:
        reply = await in_thread(
            address,
            lambda channel: channel.stream_unary("/test.Test/Echo")(iter([b"x"] * 500), timeout=20),
        )
    assert reply == b"500"


async def test_metadata_goes_both_ways_and_binary_values_stay_bytes(serve: Serve) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        await stream.recv_message()
        await stream.send_initial_metadata(
            metadata=[("initial", "1"), ("initial-bin", b"\x00\xff")]
        )
        await stream.send_message(Raw(str(sorted(stream.metadata.items())).encode()))
        await stream.send_trailing_metadata(metadata=[("t", "1"), ("t", "2"), ("t-bin", b"\xfe")])

    def client(channel: grpc.Channel) -> Any:
        call = channel.unary_unary("/test.Test/Echo")
        reply, outcome = call.with_call(
            b"", timeout=10, metadata=[("a", "1"), ("b-bin", b"\x00\x01"), ("a", "2")]
        )
        return reply, list(outcome.initial_metadata()), list(outcome.trailing_metadata())

    async with serve(server_of(handler, UNARY)) as address:
        reply, initial, trailing = await in_thread(address, client)
    assert reply == b"[('a', '1'), ('a', '2'), ('b-bin', b'\\x00\\x01')]"
    assert [tuple(pair) for pair in initial] == [("initial", "1"), ("initial-bin", b"\x00\xff")]
    assert [tuple(pair) for pair in trailing] == [("t", "1"), ("t", "2"), ("t-bin", b"\xfe")]


@pytest.mark.parametrize(
    ("cardinality", "after"), [(UNARY, 0), (DOWN, 0), (DOWN, 1), (UP, 0), (BOTH, 0), (BOTH, 1)]
)
async def test_what_a_handler_raises_is_the_calls_status(
    serve: Serve, connect: Connect, cardinality: Cardinality, after: int
) -> None:
    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        request = await stream.recv_message()
        assert request is not None
        if after:
            await stream.send_message(Raw(b"some"))
        match request.data:
            case b"grpc":
                raise GRPCError(Status.ABORTED, "100% \u00e9")
            case b"group":
                async with trio.open_nursery():
                    raise GRPCError(Status.DATA_LOSS, "in a group")
            case b"table":
                raise LookupError("who")
            case b"bug":
                raise ZeroDivisionError("secret")
            case b"silent" if not cardinality.server_streaming:
                return
            case _:
                await stream.send_trailing_metadata(status=Status.OUT_OF_RANGE)

    async with serve(server_of(handler, cardinality)) as address:
        client = await connect(address)
        with capture_logs():
            answers = [
                await client.call(body)
                for body in (b"grpc", b"group", b"table", b"bug", b"silent", b"undecodable")
            ]
    assert [(answer.status, answer.message) for answer in answers] == [
        (Status.ABORTED, "100%25 %C3%A9"),
        (Status.DATA_LOSS, "in a group"),
        (Status.NOT_FOUND, "who"),
        (Status.INTERNAL, "internal error"),
        (Status.OUT_OF_RANGE, "")
        if cardinality.server_streaming
        else (Status.INTERNAL, "internal error"),
        (Status.INTERNAL, "the request message cannot be decoded"),
    ]
    assert [answer.body for answer in answers[:5]] == [frame(b"some") * after] * 5


async def test_tasks_of_a_handler_that_find_its_client_gone_are_no_error(
    serve: Serve, connect: Connect
) -> None:
    ended = trio.Event()

    async def send_until_gone(stream: ServerStream[Raw, Raw]) -> None:
        with trio.CancelScope(shield=True):
            while True:
                await stream.send_message(b"x" * 1_000)

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_until_gone, stream)
                nursery.start_soon(send_until_gone, stream)
        finally:
            ended.set()

    async with serve(server_of(handler, DOWN)) as address:
        client = await connect(address)
        with capture_logs() as logs:
            stream_id = client.raw.request(b"")
            await client.flush()
            while not client.raw.answers[stream_id].body:  # the handler has begun
                assert await client.receive()
            client.raw.reset(stream_id)
            await client.flush()
            with trio.fail_after(10):
                await ended.wait()
            await trio.testing.wait_all_tasks_blocked()
    assert logs == []


async def test_status_details_reach_the_client(serve: Serve) -> None:
    from google.protobuf.wrappers_pb2 import StringValue  # noqa: PLC0415

    async def handler(stream: ServerStream[Raw, Raw]) -> None:
        raise GRPCError(Status.FAILED_PRECONDITION, "m", [StringValue(value="detail")])

    def client(channel: grpc.Channel) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Test/Echo")(b"", timeout=10)
        return dict(caught.value.trailing_metadata())["grpc-status-details-bin"]

    async with serve(server_of(handler, UNARY)) as address:
        details = await in_thread(address, client)
    assert details == (
        b"\x08\x09\x12\x01m\x1a\x3b\n/type.googleapis.com/google.protobuf.StringValue\x12\x08\n\x06detail"
    )


@pytest.mark.parametrize("cardinality", [UNARY, DOWN])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", Status.UNIMPLEMENTED),
        (frame(b"a") + frame(b"b"), Status.UNIMPLEMENTED),
        (frame(b"abc")[:-1], Status.INTERNAL),
        (frame(b"a", compressed=True), Status.INTERNAL),
        (b"\x07" + frame(b"a")[1:], Status.INTERNAL),
        (frame(b"x" * 101), Status.RESOURCE_EXHAUSTED),
    ],
)
async def test_anything_but_one_message_is_refused_where_one_is_expected(
    serve: Serve, connect: Connect, cardinality: Cardinality, data: bytes, status: Status
) -> None:
    server = server_of(echo, cardinality, limits=ServerLimits(message_bytes_max=100))
    async with serve(server) as address:
        client = await connect(address)
        stream = client.raw.request(None, end=False)
        client.raw.send(stream, data, end=True)
        assert (await client.answer(stream)).status is status
        stream = client.raw.request(None, end=False)
        for byte in data:
            client.raw.send(stream, bytes([byte]))
            await client.flush()
        client.raw.send(stream, b"", end=True)
        assert (await client.answer(stream)).status is status
        assert server.statistics().calls_live == 0


@pytest.mark.parametrize(
    ("data", "status", "echoed"),
    [
        (frame(b"a") + frame(b"b")[:-1], Status.INTERNAL, frame(b"a")),
        (frame(b"a") + frame(b"x" * 101), Status.RESOURCE_EXHAUSTED, frame(b"a")),
        (frame(b"a") + b"\x09\0\0\0\0", Status.INTERNAL, frame(b"a")),
        (b"", Status.OK, b""),
    ],
)
async def test_a_bad_message_in_a_stream_fails_the_call_there(
    serve: Serve,
    connect: Connect,
    data: bytes,
    status: Status,
    echoed: bytes,
) -> None:
    server = server_of(echo, limits=ServerLimits(message_bytes_max=100))
    async with serve(server) as address:
        client = await connect(address)
        stream = client.raw.request(None, end=False)
        client.raw.send(stream, data, end=True)
        answer = await client.answer(stream)
        assert (answer.status, answer.body) == (status, echoed)


async def test_gzipped_requests_are_read_and_bombs_are_not(serve: Serve, connect: Connect) -> None:
    limits = ServerLimits(message_bytes_max=10_000)
    async with serve(server_of(echo, limits=limits)) as address:
        client = await connect(address)

        async def call(data: bytes, encoding: bytes = b"gzip") -> Any:
            stream = client.raw.request(None, end=False, grpc_encoding=encoding)
            client.raw.send(stream, data, end=True)
            return await client.answer(stream)

        answer = await call(frame(gzip.compress(b"hello"), compressed=True) + frame(b"plain"))
        assert (answer.status, answer.body) == (Status.OK, frame(b"hello") + frame(b"plain"))
        bomb = await call(frame(gzip.compress(bytes(5_000_000)), compressed=True))
        assert bomb.status is Status.RESOURCE_EXHAUSTED
        assert (await call(frame(b"no gzip", compressed=True))).status is Status.INTERNAL
        half = gzip.compress(b"hello")[:-4]
        assert (await call(frame(half, compressed=True))).status is Status.INTERNAL
        unknown = await call(frame(b""), b"snappy")
        assert unknown.status is Status.UNIMPLEMENTED
        assert unknown.headers[b"grpc-accept-encoding"] == b"identity,gzip"
        plain = await call(frame(b"", compressed=True), b"identity")
        assert plain.status is Status.INTERNAL


async def test_responses_are_gzipped_only_when_the_server_is_set_to_and_the_client_accepts(
    serve: Serve, connect: Connect
) -> None:
    limits = ServerLimits(compress_bytes_min=100)
    async with serve(server_of(echo, limits=limits)) as address:
        client = await connect(address)
        small = await client.call(b"x" * 99, grpc_accept_encoding=b"identity, gzip")
        large = await client.call(b"x" * 100, grpc_accept_encoding=b"identity, gzip")
        other = await client.call(b"x" * 100, grpc_accept_encoding=b"deflate")
        assert small.body == frame(b"x" * 99)
        assert large.headers[b"grpc-encoding"] == b"gzip"
        assert large.body[0] == 1
        assert gzip.decompress(large.body[5:]) == b"x" * 100
        assert other.body == frame(b"x" * 100)
        assert b"grpc-encoding" not in other.headers
    async with serve(server_of(echo)) as address:
        client = await connect(address)
        plain = await client.call(b"x" * 100, grpc_accept_encoding=b"gzip")
        assert plain.body == frame(b"x" * 100)


async def test_grpcio_with_gzip(serve: Serve) -> None:
    async with serve(server_of(echo, limits=ServerLimits(compress_bytes_min=0))) as address:
        replies = await in_thread(
            address,
            lambda channel: list(
                channel.stream_stream("/test.Test/Echo")(
                    iter([b"y" * 10_000, b""]), timeout=10, compression=grpc.Compression.Gzip
                )
            ),
        )
    assert replies == [b"y" * 10_000, b""]
