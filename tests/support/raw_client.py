"""A blocking client of raw HTTP/2 streams, for tests that do what no gRPC client would."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Self

from grpclib.const import Status

from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    Http2Connection,
    Http2Options,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
)

TIMEOUT_S = 20.0


class RawSocketClient:
    """One connection; its answers are the statuses of its streams, in ``statuses``."""

    def __init__(self, address: str, *, token: str | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self.token = token
        self.statuses: dict[int, Status | None] = {}
        """Of streams that have ended; None: reset."""
        self.received: dict[int, int] = {}
        """Bytes of responses."""
        self.is_closed = False
        self.goaway: GoAwayReceived | None = None
        self._engine = Http2Connection.client(Http2Options(reset_burst=10**9))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def request(self, path: str, message: bytes = b"", *, end: bool = True) -> int:
        """Queue a call with one message; its stream."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"test"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
        if self.token is not None:
            headers.append((b"authorization", f"Bearer {self.token}".encode()))
        stream_id = self._engine.send_request(headers)
        self._engine.send_data(stream_id, frame(message), end_stream=end)
        return stream_id

    def reset(self, streams: Sequence[int]) -> None:
        """Reset streams (CANCEL)."""
        for stream_id in streams:
            self._engine.reset(stream_id, 8)
        self.flush()

    def flush(self) -> None:
        """Send what is queued."""
        while data := self._engine.output(1 << 16):
            self.socket.sendall(data)
        self._take_events()

    def read_until(self, condition: Callable[[], bool]) -> None:
        """Read until it holds. Raises AssertionError if the connection ends before."""
        self.flush()
        while not condition():
            assert self.read(), "the server has closed the connection"

    def read(self) -> bool:
        """Take what comes next; False: the connection is at its end."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            self.is_closed = True
            return False
        self._engine.receive(data)
        self._take_events()
        self.flush()
        return True

    def call(self, path: str, message: bytes = b"") -> Status | None:
        """The status of a call with one message."""
        stream_id = self.request(path, message)
        self.read_until(lambda: stream_id in self.statuses)
        return self.statuses[stream_id]

    def _take_events(self) -> None:
        for event in self._engine.events():
            match event:
                case ResponseReceived() | TrailersReceived():
                    self._take_headers(event.stream_id, event.headers)
                case DataReceived():
                    self.received[event.stream_id] = self.received.get(event.stream_id, 0) + len(
                        event.data
                    )
                    if event.data:
                        self._engine.acknowledge(len(event.data), event.stream_id)
                case StreamReset():
                    self.statuses.setdefault(event.stream_id, None)
                case GoAwayReceived():
                    self.goaway = event
                case ConnectionClosed():
                    self.is_closed = True

    def _take_headers(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        status = dict(headers).get(b"grpc-status")
        if status is not None:
            self.statuses[stream_id] = Status(int(status))
