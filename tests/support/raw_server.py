"""A gRPC server made of frames, for tests of clients: it does what it is told, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    Headers,
    Http2Connection,
    Http2Options,
    PingReceived,
    RequestReceived,
    StreamError,
    StreamReset,
    TrailersReceived,
)

HEADERS = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]


@dataclass
class Request:
    """What came on a stream."""

    headers: dict[bytes, bytes]
    body: bytes = b""
    ended: bool = False
    reset: int | None = None


@dataclass
class Seen:
    """What came besides."""

    goaway: GoAwayReceived | None = None
    pings: list[bytes] = field(default_factory=list)
    closed: bool = False


class RawServer:
    """The server's side of one connection: bytes in, bytes out, no policy."""

    def __init__(self, options: Http2Options | None = None, *, acknowledge: bool = True) -> None:
        self.engine = Http2Connection.server(options or Http2Options(reset_burst=10**9))
        self.requests: dict[int, Request] = {}
        self.seen = Seen()
        self._acknowledge = acknowledge

    def receive(self, data: bytes) -> None:
        self.engine.receive(data)
        for event in self.engine.events():
            match event:
                case RequestReceived():
                    request = Request(dict(event.headers), ended=event.end_stream)
                    self.requests[event.stream_id] = request
                case DataReceived():
                    request = self.requests[event.stream_id]
                    request.body += event.data
                    request.ended = event.end_stream
                    if self._acknowledge and event.data:
                        with suppress(*StreamError):
                            self.engine.acknowledge(len(event.data), event.stream_id)
                case TrailersReceived():
                    self.requests[event.stream_id].ended = True
                case StreamReset():
                    self.requests[event.stream_id].reset = event.error_code
                case PingReceived():
                    self.seen.pings.append(event.opaque_data)
                case GoAwayReceived():
                    self.seen.goaway = event
                case ConnectionClosed():
                    self.seen.closed = True

    def output(self) -> bytes:
        parts = []
        while data := self.engine.output(1 << 20):
            parts.append(data)
        return b"".join(parts)

    def headers(self, stream_id: int, *more: tuple[bytes, bytes]) -> None:
        self.engine.send_response(stream_id, [*HEADERS, *more])

    def only_headers(self, stream_id: int, headers: Headers) -> None:
        self.engine.send_response(stream_id, headers, end_stream=True)

    def data(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.engine.send_data(stream_id, data, end_stream=end)

    def trailers(self, stream_id: int, trailers: Headers = tuple(OK)) -> None:
        self.engine.send_trailers(stream_id, trailers)

    def answer(
        self, stream_id: int, *bodies: bytes, trailers: Sequence[tuple[bytes, bytes]] = tuple(OK)
    ) -> None:
        """A whole response."""
        self.headers(stream_id)
        self.data(stream_id, b"".join(map(frame, bodies)))
        self.trailers(stream_id, trailers)

    def reset(self, stream_id: int, code: int) -> None:
        self.engine.reset(stream_id, code)

    def goaway(self, last_stream_id: int, *, code: int = 0, debug: bytes = b"") -> None:
        self.engine._engine.send_goaway(code, last_stream_id=last_stream_id, debug_data=debug)

    def change_settings(self, settings: dict[int, int]) -> None:
        self.engine._engine.update_settings(settings)
