"""Clients that send on a stream as long as they are let, and never take a response."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Connection, Http2Options

_READ_BYTES: Final = 1 << 16
_AHEAD_BYTES: Final = 1 << 18
"""Queued in a client's engine: more than a window of the server's."""


class UnreadStream:
    """One connection with one stream. Its HTTP/2 engine lives; its responses are never taken."""

    def __init__(self, address: str, path: str, messages: Iterator[bytes]) -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)))
        self.sock.setblocking(False)
        self.sent_bytes = 0
        self._messages = messages
        self._unsent = b""
        # Credit for the stream is never given, so its window of 64 KiB is all it ever takes.
        self._engine = Http2Connection.client(Http2Options())
        self._stream_id = self._engine.send_request(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", b"test"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            ]
        )

    def send(self) -> bool:
        """Send what the windows and the socket take; whether that was anything."""
        before = self.sent_bytes
        while True:
            if not self._unsent:
                while self._engine.queued_bytes(self._stream_id) < _AHEAD_BYTES:
                    message = next(self._messages, None)
                    if message is None:
                        break
                    self._engine.send_data(self._stream_id, frame(message))
                self._unsent = self._engine.output(_AHEAD_BYTES)
                if not self._unsent:
                    break
            try:
                sent = self.sock.send(self._unsent)
            except BlockingIOError:
                break
            self.sent_bytes += sent
            self._unsent = self._unsent[sent:]
        return self.sent_bytes > before

    def receive(self) -> bool:
        """Take what the server sent, and what it is worth to HTTP/2; False at its end."""
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        if data:
            self._engine.receive(data)
            self._engine.events()
        return bool(data)


def send_until_stopped(
    address: str,
    path: str,
    messages: Callable[[], Iterator[bytes]],
    *,
    clients: int,
    total_bytes_max: int,
    quiet_s: float = 1.0,
) -> ExitStack:
    """Have clients send until the server lets none go on for ``quiet_s``, or has taken so much.

    Returns what closes the connections, which are still open.
    """
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        streams = [UnreadStream(address, path, messages()) for _ in range(clients)]
        for stream in streams:
            stack.callback(stream.sock.close)
            selector.register(stream.sock, selectors.EVENT_READ, stream)
            stream.send()
        while ready := selector.select(quiet_s):
            for key, _ in ready:
                assert key.data.receive(), "the server has closed the connection"
                key.data.send()
            if sum(stream.sent_bytes for stream in streams) >= total_bytes_max:
                break
        return stack.pop_all()
