"""The client's protocol joined to a server made of frames, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.client.connection import ClientConnection
from dbos_actors.rpc.client.options import ChannelOptions
from dbos_actors.rpc.wire.framing import frame
from tests.support.raw_server import RawServer

NOW_S = 100.0


class Client:
    """A `ClientConnection` joined to a `RawServer` by memory; also the owner of both its calls
    and itself.
    """

    def __init__(
        self, server: RawServer | None = None, *, greet: bool = True, **options: Any
    ) -> None:
        self.options = ChannelOptions(**options)
        self.connection = ClientConnection(self, self.options, now_s=NOW_S)
        self.server = server or RawServer()
        self.over: list[ClientCall] = []
        self.refused: list[ClientCall] = []
        self.flushes_due = 0
        self.now_s = NOW_S
        if greet:
            self.run()

    def call_over(self, call: ClientCall) -> None:
        self.over.append(call)

    def call_refused(self, call: ClientCall) -> None:
        self.refused.append(call)

    def has_output(self) -> None:
        self.flushes_due += 1

    def may_start(self) -> None:
        pass

    def make_call(
        self,
        *bodies: bytes,
        end: bool = True,
        streaming: bool = False,
        deadline_s: float | None = None,
    ) -> ClientCall:
        call = ClientCall(
            self,
            b"/test.Test/Echo",
            [],
            server_streaming=streaming,
            deadline_s=deadline_s,
            wait_for_ready=False,
            limit=self.options.message_bytes_max,
        )
        for index, body in enumerate(bodies):
            self.queue(call, body, end=end and index == len(bodies) - 1)
        return call

    def queue(self, call: ClientCall, body: bytes, *, end: bool = False) -> None:
        call.queue(frame(body), end=end, replay_bytes_max=self.options.replay_bytes_max)

    def start(self, *bodies: bytes, **options: Any) -> ClientCall:
        """Start a call, and let the server see it."""
        call = self.make_call(*(bodies or (b"",)), **options)
        self.connection.start(call, self.now_s)
        self.run()
        return call

    def output(self) -> bytes:
        parts = []
        while True:
            data = self.connection.output(1 << 16)
            parts.append(data)
            if data:
                self.connection.sent()
            if len(data) < 1 << 16 and not self.connection.refill():
                return b"".join(parts)

    def to_server(self) -> bool:
        if data := self.output():
            self.server.receive(data)
        return bool(data)

    def to_client(self, *, size: int | None = None) -> bool:
        data = self.server.output()
        for start in range(0, len(data), size or len(data) or 1):
            self.connection.receive(data[start : start + (size or len(data))], self.now_s)
        return bool(data)

    def run(self, *, size: int | None = None) -> None:
        """Carry bytes both ways until none move."""
        while self.to_server() | self.to_client(size=size):
            pass


def messages(call: ClientCall) -> Iterator[bytes]:
    while (body := call.take()) is not None:
        yield body
