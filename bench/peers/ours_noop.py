"""The service's own transport with a method that does nothing: what its calls cost at least.

The contract has no such method, so this program serves one on `dbos_actors.rpc`,
decoding and answering the same messages as StoreResult.
"""

from __future__ import annotations

import os

import trio
from grpclib.const import Status

from dbos_actors.api import messages
from dbos_actors.rpc.server.listeners import open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod


def _no_op(call: UnaryCall) -> None:
    call.reply(messages.StoreResultResponse(success=True))


def _status_of(error: Exception) -> tuple[Status, str]:
    return Status.INTERNAL, str(error)


async def _serve() -> None:
    method = UnaryMethod(_no_op, messages.StoreResultRequest.FromString)
    server = Server(unary={"/dbos.Bench/NoOp": method}, status_of=_status_of)
    listeners = await open_listeners(f"127.0.0.1:{os.environ.get('PORT', '0')}")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        (listener,) = listeners
        assert isinstance(listener, trio.SocketListener)
        host, port = listener.socket.getsockname()
        print(f"ready address={host}:{port}", flush=True)


if __name__ == "__main__":
    trio.run(_serve)
