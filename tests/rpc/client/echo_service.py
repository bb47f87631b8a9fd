"""A service of grpclib's kind, its stub, and a channel to it, for tests of the client channel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpclib.client
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as GrpclibHandler

from dbos_actors.rpc.client.channel import Channel, ChannelOptions
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod

Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Func = Callable[[ServerStream[Any, Any]], Awaitable[None]]

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


async def echo(stream: ServerStream[BytesValue, BytesValue]) -> None:
    async for message in stream:
        await stream.send_message(message)


async def join(stream: ServerStream[BytesValue, BytesValue]) -> None:
    parts = [message.value async for message in stream]
    await stream.send_message(BytesValue(value=b"".join(parts)))


async def thrice(stream: ServerStream[BytesValue, BytesValue]) -> None:
    message = await stream.recv_message()
    assert message is not None
    for _ in range(3):
        await stream.send_message(message)


async def wait(stream: ServerStream[BytesValue, BytesValue]) -> None:
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
