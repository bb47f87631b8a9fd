"""The client channel against this package's own server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpclib.client
import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as GrpclibHandler
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.client import Channel, ChannelOptions
from dbos_actors.rpc.limits import ServerLimits
from dbos_actors.rpc.server import Server
from dbos_actors.rpc.stream import Stream
from dbos_actors.rpc.unary import UnaryCall, UnaryMethod

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
