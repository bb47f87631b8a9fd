from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.health import Health
from dbos_actors.rpc.server.interceptors import Interceptor, StreamHandler, UnaryHandler
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod

Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Connect = Callable[..., Any]


class Trace(Interceptor):
    """Writes down what passes, and how it ended."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self._name = name
        self._lines = lines

    def unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:
        def traced(call: UnaryCall) -> None:
            self._lines.append(f"{self._name} {path}")
            call.when_answered(lambda status: self._lines.append(f"{self._name} {status}"))
            handler(call)

        return traced

    def stream(self, path: str, handler: StreamHandler) -> StreamHandler:
        async def traced(stream: Any) -> None:
            self._lines.append(f"{self._name} {path}")
            stream.when_answered(lambda status: self._lines.append(f"{self._name} {status}"))
            await handler(stream)

        return traced


class Guard(Interceptor):
    """Lets no one in without the token."""

    def unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:
        def guarded(call: UnaryCall) -> None:
            if call.metadata.get("authorization") != "Bearer t":
                raise GRPCError(Status.UNAUTHENTICATED, "no token")
            handler(call)

        return guarded

    def stream(self, path: str, handler: StreamHandler) -> StreamHandler:
        async def guarded(stream: Any) -> None:
            if stream.metadata.get("authorization") != "Bearer t":
                raise GRPCError(Status.UNAUTHENTICATED, "no token")
            await handler(stream)

        return guarded


class Echo:
    """The same method, as a grpclib service."""

    async def echo(self, stream: Any) -> None:
        await stream.send_message(await stream.recv_message())

    def __mapping__(self) -> dict[str, Handler]:
        message = type(
            "Message", (bytes,), {"FromString": classmethod(bytes.__new__), "__slots__": ()}
        )
        return {"/test.Test/Echo": Handler(self.echo, Cardinality.UNARY_UNARY, message, message)}


def unary_server(interceptors: list[Interceptor]) -> Server:
    method = UnaryMethod(lambda call: call.reply(call.request), bytes)
    return Server(
        unary={"/test.Test/Echo": method},
        status_of=lambda e: (Status.UNKNOWN, str(e)),
        interceptors=interceptors,
    )


def stream_server(interceptors: list[Interceptor]) -> Server:
    return Server(
        unary={},
        services=[Echo()],
        status_of=lambda e: (Status.UNKNOWN, str(e)),
        interceptors=interceptors,
    )


@pytest.mark.parametrize("make", [unary_server, stream_server])
async def test_the_first_interceptor_is_the_outermost_and_hears_how_calls_end(
    serve: Serve, connect: Connect, make: Callable[[list[Interceptor]], Server]
) -> None:
    lines: list[str] = []
    async with serve(make([Trace("a", lines), Guard()])) as address:
        client = await connect(address)
        stranger = await client.call(b"x")
        friend = await client.call(b"x", authorization=b"Bearer t")
    assert (stranger.status, friend.status) == (Status.UNAUTHENTICATED, Status.OK)
    assert lines == [
        "a /test.Test/Echo",
        "a Status.UNAUTHENTICATED",
        "a /test.Test/Echo",
        "a Status.OK",
    ]


def test_without_interceptors_a_handler_is_called_itself() -> None:
    handler: Callable[[UnaryCall], None] = print
    server = Server(
        unary={"/a/b": UnaryMethod(handler, bytes)},
        services=[service := Health()],
        status_of=lambda e: (Status.UNKNOWN, str(e)),
    )
    routes = server._shared.routes
    assert routes[b"/a/b"].handler is handler
    check: Callable[..., Awaitable[None]] = service.check
    assert routes[b"/grpc.health.v1.Health/Check"].handler == check
