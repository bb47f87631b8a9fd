"""The server under test of h2spec: the one of `dbos_actors.rpc`, with a method that has a body.

h2spec speaks HTTP/2 and knows nothing of gRPC. So the fields that make a call of its requests are
added before the server admits them. Everything else is the server as it is. Prints the port that it
listens on.
"""

from __future__ import annotations

from typing import Any

import trio
from grpclib.const import Cardinality, Handler, Status

from dbos_actors.rpc.server import connection as connection_module
from dbos_actors.rpc.server.admission import Admission
from dbos_actors.rpc.server.listeners import bound_address, open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.wire.http2 import Headers

PATH = "/h2spec.Test/Call"

CALL = {
    b":method": b"POST",
    b":path": PATH.encode(),
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


class AnyMessage:
    """Takes every message for one of its own."""

    @staticmethod
    def FromString(data: bytes) -> bytes:  # noqa: N802 - protobuf's name
        return data


class Test:
    """Answers with a message at once, and ends when the request does."""

    async def call(self, stream: ServerStream[Any, Any]) -> None:
        await stream.send_message(b"a message")
        while await stream.recv_message() is not None:
            pass

    def __mapping__(self) -> dict[str, Handler]:
        kinds = (Cardinality.STREAM_STREAM, AnyMessage, AnyMessage)
        return {PATH: Handler(self.call, *kinds)}


class CallAdmission(Admission):
    """Takes every request for a call."""

    def begin(self, stream_id: int, headers: Headers, end_stream: bool, now_s: float) -> None:
        fields = [field for field in headers if field[0] not in CALL]
        super().begin(stream_id, [*CALL.items(), *fields], end_stream, now_s)


async def main() -> None:
    connection_module.Admission = CallAdmission  # type: ignore[attr-defined]
    server = Server(
        unary={}, services=[Test()], status_of=lambda error: (Status.UNKNOWN, str(error))
    )
    listeners = await open_listeners("127.0.0.1:0")
    print(bound_address(listeners[0]).rpartition(":")[2], flush=True)
    await server.serve(listeners)


if __name__ == "__main__":
    trio.run(main)
