"""Which messages are compressed: what handlers and callers choose, and what they are told."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError

from dbos_actors.rpc.client.channel import Channel, ChannelOptions
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.framing import MessageReader, frame
from tests.rpc.conftest import Pipe, status_of

Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Asked = Callable[[UnaryCall], None]

GZIP = (b"grpc-accept-encoding", b"identity,gzip")


def flags(body: bytes) -> list[bool]:
    """Of the messages of a response, which are compressed."""
    reader = MessageReader()
    reader.feed(body)
    return [compressed for compressed, _ in reader]


# --------------------------------------------------------------------- unary


@pytest.mark.parametrize(
    ("choice", "least", "accepts", "compressed"),
    [
        (None, None, True, False),
        (None, 100, True, True),
        (None, 1_000, True, False),
        (True, None, True, True),
        (True, 1_000, True, True),
        (True, None, False, False),
        (False, 100, True, False),
    ],
)
def test_a_unary_handler_decides_whether_its_reply_is_compressed(
    choice: bool | None, least: int | None, accepts: bool, compressed: bool
) -> None:
    def handler(call: UnaryCall) -> None:
        if choice is not None:
            call.compress_reply(choice)
        call.reply(bytes(500))

    pipe = Pipe({"Echo": handler}, limits=ServerLimits(compress_bytes_min=least))
    stream_id = pipe.client.request(b"", extra=[GZIP] if accepts else [])
    pipe.run()
    answer = pipe.client.answers[stream_id]
    assert answer.status is Status.OK
    assert flags(answer.body) == [compressed]
    assert answer.headers.get(b"grpc-encoding") == (b"gzip" if compressed else None)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("announced", [False, True])
def test_a_unary_handler_is_told_whether_its_request_came_compressed(
    compressed: bool, announced: bool
) -> None:
    seen: list[bool] = []

    def handler(call: UnaryCall) -> None:
        seen.append(call.is_request_compressed)
        call.reply(call.request)

    pipe = Pipe({"Echo": handler})
    encoding = [(b"grpc-encoding", b"gzip")] if announced else []
    stream_id = pipe.client.request(None, end=False, extra=encoding)
    body = gzip.compress(b"hello") if compressed else b"hello"
    pipe.client.send(stream_id, frame(body, compressed=compressed), end=True)
    pipe.run()
    answer = pipe.client.answers[stream_id]
    if compressed and not announced:
        assert answer.status is Status.INTERNAL
        assert seen == []
    else:
        assert answer.body == frame(b"hello")
        assert seen == [compressed]


# ------------------------------------------------- streams, and their callers


class Service:
    """Answers each message with whether it came compressed; its first byte is the choice."""

    async def choose(self, stream: ServerStream[BytesValue, BytesValue]) -> None:
        async for message in stream:
            choice = {b"": None, b"y": True, b"n": False}[message.value[:1]]
            came = b"compressed" if stream.is_message_compressed else b"plain"
            await stream.send_message(BytesValue(value=came), compress=choice)

    async def announce(self, stream: ServerStream[BytesValue, BytesValue]) -> None:
        announced = stream.metadata.get("announce") == "yes"
        await stream.send_initial_metadata(announce_gzip=announced)
        async for _ in stream:
            await stream.send_message(BytesValue(value=b"first"))
            try:
                await stream.send_message(BytesValue(value=b"second"), compress=True)
            except ProtocolError as error:
                raise GRPCError(Status.FAILED_PRECONDITION, str(error)) from error

    def __mapping__(self) -> dict[str, Handler]:
        kinds = (Cardinality.STREAM_STREAM, BytesValue, BytesValue)
        return {
            "/test.Test/Choose": Handler(self.choose, *kinds),
            "/test.Test/Announce": Handler(self.announce, *kinds),
        }


def make_server(least: int | None = None) -> Server:
    def plain(call: UnaryCall) -> None:
        call.reply(b"compressed" if call.is_request_compressed else b"plain")

    return Server(
        unary={"/test.Test/Plain": UnaryMethod(plain, bytes)},
        services=[Service()],
        status_of=status_of,
        limits=ServerLimits(compress_bytes_min=least),
    )


def open_channel(address: str, least: int | None = None) -> Channel:
    host, _, port = address.rpartition(":")
    return Channel(host, int(port), options=ChannelOptions(compress_bytes_min=least))


def open_stream(channel: Channel, name: str, **options: Any) -> Any:
    kinds = (Cardinality.STREAM_STREAM, BytesValue, BytesValue)
    return channel.request(f"/test.Test/{name}", *kinds, **options)


async def test_both_sides_of_a_stream_choose_for_each_message(serve: Serve) -> None:
    choices: list[tuple[bytes, bool | None]] = [
        (b"y", True),
        (b"n", False),
        (b"", None),
        (b"n", True),
        (b"y", False),
    ]
    async with (
        serve(make_server()) as address,
        open_channel(address) as channel,
        open_stream(channel, "Choose") as stream,
    ):
        came = []
        for theirs, ours in choices:
            await stream.send_message(BytesValue(value=theirs), compress=ours)
            response = await stream.recv_message()
            came.append((response.value, stream.is_message_compressed))
        await stream.end()
    assert came == [
        (b"compressed", True),
        (b"plain", False),
        (b"plain", False),
        (b"compressed", False),
        (b"plain", True),
    ]


async def test_a_choice_overrides_what_server_and_channel_are_set_to(serve: Serve) -> None:
    async with (
        serve(make_server(0)) as address,
        open_channel(address, 0) as channel,
        open_stream(channel, "Choose") as stream,
    ):
        await stream.send_message(BytesValue(value=b""))
        first = await stream.recv_message()
        seen = [(first.value, stream.is_message_compressed)]
        await stream.send_message(BytesValue(value=b"n"), compress=False)
        second = await stream.recv_message()
        seen.append((second.value, stream.is_message_compressed))
        await stream.end()
    assert seen == [(b"compressed", True), (b"plain", False)]


async def test_a_unary_call_of_the_channel_chooses_too(serve: Serve) -> None:
    async with serve(make_server()) as address:
        async with open_channel(address) as channel:
            assert await channel.unary("/test.Test/Plain", b"x") == b"plain"
            assert await channel.unary("/test.Test/Plain", b"x", compress=True) == b"compressed"
        async with open_channel(address, 0) as channel:
            assert await channel.unary("/test.Test/Plain", b"x") == b"compressed"
            assert await channel.unary("/test.Test/Plain", b"x", compress=False) == b"plain"


async def test_gzip_must_be_announced_before_a_later_message_uses_it(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        async with open_stream(channel, "Choose") as stream:
            await stream.send_message(BytesValue(value=b""))
            with pytest.raises(ProtocolError, match=r"send_request\(announce_gzip=True\)"):
                await stream.send_message(BytesValue(value=b""), compress=True)
            await stream.end()
        async with open_stream(channel, "Choose") as stream:
            await stream.send_request(announce_gzip=True)
            await stream.send_message(BytesValue(value=b""))
            await stream.send_message(BytesValue(value=b""), compress=True)
            await stream.end()
            assert [one.value async for one in stream] == [b"plain", b"compressed"]


@pytest.mark.parametrize("announced", [False, True])
async def test_a_handler_must_announce_gzip_with_its_headers(serve: Serve, announced: bool) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        stream = open_stream(channel, "Announce", metadata={"announce": "yes" if announced else ""})
        await stream.send_message(BytesValue(value=b""), end=True)
        seen = []
        failure = None
        try:
            while (message := await stream.recv_message()) is not None:
                seen.append((message.value, stream.is_message_compressed))
        except GRPCError as error:
            failure = error
        if announced:
            assert seen == [(b"first", False), (b"second", True)]
            assert failure is None
        else:
            assert seen == [(b"first", False)]
            assert failure is not None
            assert "send_initial_metadata(announce_gzip=True)" in str(failure.message)
