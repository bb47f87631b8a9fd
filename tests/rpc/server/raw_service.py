"""A service of grpclib's kind whose messages are bytes, for tests of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import trio
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as GrpclibHandler

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream

Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Connect = Callable[..., Any]
Func = Callable[[ServerStream["Raw", "Raw"]], Awaitable[None]]


class Raw:
    """A message that is its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @classmethod
    def FromString(cls, data: bytes) -> Raw:  # noqa: N802
        if data == b"undecodable":
            raise ValueError(data)
        return cls(data)

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.data


class Service:
    """Methods made of functions: ``Service(Echo=(function, cardinality))``."""

    def __init__(self, **methods: tuple[Func, Cardinality]) -> None:
        self._methods = methods

    def __mapping__(self) -> dict[str, GrpclibHandler]:
        return {
            f"/test.Test/{name}": GrpclibHandler(func, cardinality, Raw, Raw)
            for name, (func, cardinality) in self._methods.items()
        }


UNARY = Cardinality.UNARY_UNARY
DOWN = Cardinality.UNARY_STREAM
UP = Cardinality.STREAM_UNARY
BOTH = Cardinality.STREAM_STREAM


def status_of(error: Exception) -> tuple[Status, str]:
    if isinstance(error, LookupError):
        return Status.NOT_FOUND, str(error)
    return Status.UNKNOWN, "untold"


def server_of(
    func: Func, cardinality: Cardinality = BOTH, *, limits: ServerLimits | None = None
) -> Server:
    return Server(
        unary={}, services=[Service(Echo=(func, cardinality))], status_of=status_of, limits=limits
    )


async def echo(stream: ServerStream[Raw, Raw]) -> None:
    async for message in stream:
        await stream.send_message(message)


async def join(stream: ServerStream[Raw, Raw]) -> None:
    await stream.send_message(Raw(b"".join([message.data async for message in stream])))


async def in_thread(address: str, client: Callable[[grpc.Channel], Any], **options: Any) -> Any:
    """Run a blocking gRPC core client."""

    def run() -> Any:
        settings = [("grpc.use_local_subchannel_pool", 1), *options.items()]
        with grpc.insecure_channel(address, options=settings) as channel:
            return client(channel)

    return await trio.to_thread.run_sync(run, abandon_on_cancel=True)
