"""A peer: grpclib server on asyncio, `redis.asyncio` client, upb messages."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpclib.const
import grpclib.server

from bench.peers.durable import Durable, connect


def _handler(call: Any, request_class: Any, response_class: Any) -> Any:
    async def behaviour(stream: Any) -> None:
        request = await stream.recv_message()
        await stream.send_message(await call(request))

    return grpclib.const.Handler(
        behaviour, grpclib.const.Cardinality.UNARY_UNARY, request_class, response_class
    )


class _Service:
    """What a generated grpclib service base looks like to the server."""

    def __init__(self, durable: Durable) -> None:
        self._mapping = {path: _handler(*method) for path, method in durable.methods().items()}

    def __mapping__(self) -> dict[str, Any]:
        return self._mapping


async def _serve() -> None:
    server = grpclib.server.Server([_Service(Durable(connect()))])
    await server.start("127.0.0.1", int(os.environ.get("PORT", "0")))
    # grpclib does not tell which port it was given.
    listening: Any = server._server  # noqa: SLF001
    port = listening.sockets[0].getsockname()[1]
    print(f"ready address=127.0.0.1:{port}", flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(_serve())
