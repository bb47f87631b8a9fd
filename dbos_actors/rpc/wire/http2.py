"""HTTP/2 connections, for either role: the only module that imports the engine (ngh2).

The engine does no I/O. It takes bytes that have come, tells what they mean as events, and gives
bytes to send. This module chooses its options, gives its events and errors the names used here, and
adds what callers need beyond it. The methods that every call uses are the engine's own, bound once
per connection, so that the wrapper costs nothing.

Rules that callers must keep:
- `output` is always asked for a bounded amount; less than that means that nothing
  more can be sent now.
- `reset` drops whatever is queued on the stream: flush first, then reset.
- Every received byte must be acknowledged, also one of a closed stream. Otherwise the connection's
  window shrinks for good.
- A peer may reset a stream whose request is still in the same batch of events: any
  send on a stream may raise `StreamError`, which means that the stream is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

__all__ = [
    "HEADER_BYTES_MAX",
    "INCREMENTAL",
    "ConnectionClosed",
    "DataReceived",
    "ErrorCode",
    "GoAwayReceived",
    "Headers",
    "Http2Connection",
    "Http2Error",
    "Http2Options",
    "PingAcknowledged",
    "PingReceived",
    "RequestReceived",
    "ResponseReceived",
    "Setting",
    "SettingsReceived",
    "StreamClosed",
    "StreamError",
    "StreamGoneError",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "header_block_bytes",
]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
ErrorCode = ngh2.ErrorCode
Setting = ngh2.Setting

Http2Error = ngh2.NGH2Error
"""Root of the engine's errors. Raised by `receive`, it is the end of the connection."""

StreamError = (ngh2.StreamProtocolError, ngh2.ConnectionStateError)
"""What a send raises when its stream, or the whole connection, is already gone."""

StreamGoneError = ngh2.StreamUnavailableError
"""One of these, for another engine to raise."""

INCREMENTAL = ngh2.Priority(3, True)
"""Priority of a stream that shares the connection fairly (RFC 9218), unlike the default,
which is served to its end before the next one.
"""

HEADER_BYTES_MAX = 60_000
"""Largest header block that we send. The engine's own limit is 64 KiB, by an estimate that is a
little higher."""

_FIELD_BYTES = 32
"""What each field counts beyond its name and value (RFC 9113, 10.5.1)."""

STREAM_WINDOW_BYTES = 65_535
"""What the peer may send on a stream before we acknowledge; HTTP/2's own default."""


def header_block_bytes(headers: Headers) -> int:
    """The size of a header block as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return sum([len(name) + len(value) + _FIELD_BYTES for name, value in headers])


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Options:
    """What is allowed to a peer on one connection. Defaults suit a server."""

    concurrent_streams_max: int = 1_000
    """Streams the peer may have open at once (SETTINGS_MAX_CONCURRENT_STREAMS)."""
    stream_window_bytes: int = STREAM_WINDOW_BYTES
    """Unacknowledged bytes per stream."""
    header_list_bytes_max: int = 16_384
    """Decoded size of one header block; more ends the connection. gRPC core's hard limit."""
    header_count_max: int = 256
    """Fields in one header block; more ends the connection."""
    reset_burst: int = 5_000
    """RST_STREAM frames accepted at once (CVE-2023-44487) ..."""
    reset_rate_per_s: int = 2_000
    """... and per second; a client that cancels 1,000 calls a second is legitimate here."""
    continuations_max: int = 8
    """CONTINUATION frames per header block; nghttp2's default."""
    outbound_ack_max: int = 1_000
    """PING and SETTINGS acknowledgements queued for a peer that does not read (nghttp2's)."""
    settings: Mapping[int, int] = field(default_factory=dict)
    """Further SETTINGS to announce."""

    @property
    def connection_window_bytes(self) -> int:
        """Unacknowledged bytes per connection: every stream's window fits, so that streams
        that are not read can never starve the others (at most 2 GiB - 1).
        """
        return min(self.concurrent_streams_max * self.stream_window_bytes, 2**31 - 1)


class Http2Connection:
    """One HTTP/2 connection's engine. Never used by two tasks at the same instant."""

    __slots__ = (
        "_engine",
        "_window_bytes",
        "acknowledge",
        "events",
        "output",
        "queued_bytes",
        "receive",
        "reset",
        "send_data",
        "send_response",
        "send_trailers",
    )

    receive: Callable[[bytes | bytearray | memoryview], None]
    """Feed bytes from the peer; raises `Http2Error` when the connection is beyond repair."""
    events: Callable[[], list[Any]]
    """Take the events of everything fed and flushed since the last time."""
    output: Callable[[int], bytes]
    """At most so many bytes to send; fewer than asked for: nothing else can be sent now."""
    queued_bytes: Callable[..., int]
    """Body bytes queued and not yet framed, of one stream or (no argument) of all."""
    acknowledge: Callable[[int, int], None]
    """``(amount, stream_id)``: so many received bytes are consumed; reopens the windows."""
    send_response: Callable[..., None]
    send_data: Callable[..., None]
    send_trailers: Callable[..., None]
    reset: Callable[[int, int], None]

    def __init__(self, role: ngh2.Role, options: Http2Options) -> None:
        engine = ngh2.Connection(
            role,
            ngh2.Configuration(
                auto_window_update=False,
                stream_reset_rate_limit=(options.reset_burst, options.reset_rate_per_s),
                max_continuations=options.continuations_max,
                max_outbound_ack=options.outbound_ack_max,
                max_inbound_header_list_size=options.header_list_bytes_max,
                max_inbound_header_count=options.header_count_max,
            ),
        )
        self._engine = engine
        self.receive = engine.receive_data
        self.events = engine.events
        self.output = engine.data_to_send
        self.queued_bytes = engine.queued_body_size
        self.acknowledge = engine.acknowledge_received_data
        self.send_response = engine.send_response
        self.send_data = engine.send_data
        self.send_trailers = engine.send_trailers
        self.reset = engine.reset_stream
        settings: dict[int, int] = {
            Setting.INITIAL_WINDOW_SIZE: options.stream_window_bytes,
            Setting.MAX_HEADER_LIST_SIZE: options.header_list_bytes_max,
            Setting.NO_RFC7540_PRIORITIES: 1,
        }
        if role is ngh2.Role.SERVER:
            settings[Setting.MAX_CONCURRENT_STREAMS] = options.concurrent_streams_max
        else:
            settings[Setting.ENABLE_PUSH] = 0
        engine.initiate_connection({**settings, **options.settings})
        self._window_bytes = options.connection_window_bytes
        engine.set_local_window_size(self._window_bytes)

    @classmethod
    def server(cls, options: Http2Options) -> Http2Connection:
        """The accepting side."""
        return cls(ngh2.Role.SERVER, options)

    @classmethod
    def client(cls, options: Http2Options) -> Http2Connection:
        """The connecting side."""
        return cls(ngh2.Role.CLIENT, options)

    def send_request(self, headers: Headers, *, end_stream: bool = False) -> int:
        """Open a stream (client); its id. Raises `Http2Error` if none may be opened."""
        return self._engine.send_request(headers, end_stream=end_stream)

    @property
    def can_send_request(self) -> bool:
        """Whether a new stream may be opened (client)."""
        return self._engine.can_send_request

    def share_fairly(self, stream_id: int) -> None:
        """From now on interleave the stream's body with the others' (server)."""
        self._engine.set_stream_priority(stream_id, INCREMENTAL, ignore_client_signal=True)

    def has_lost_window(self, held_bytes: Callable[[], int]) -> bool:
        """Whether the peer will run out of the connection's window; ``held_bytes``: received, not
        acknowledged yet.

        The engine neither delivers nor credits the rest of a DATA frame that our reset has cut,
        so each such frame takes a part of the window away for good. It also gives a window back
        by halves, and does not say how much it withholds. What is missing beyond that half is
        lost. A connection that has lost a quarter should be replaced: raising the window instead
        raises what the engine withholds, too.
        """
        missing = self._window_bytes - self._engine.local_window_size
        limit = self._window_bytes // 2 + self._window_bytes // 4
        return missing > limit and missing - held_bytes() > limit

    def remote_window_bytes(self, stream_id: int) -> int:
        """What the peer takes on a stream (0 if that has ended); with 0, on the connection."""
        engine = self._engine
        if stream_id == 0:
            return engine.remote_window_size
        try:
            return engine.stream_remote_window_size(stream_id)
        except StreamError:
            return 0

    def can_send_trailers(self, stream_id: int) -> bool:
        """Whether nothing queued on the stream is held back by its peer's windows."""
        engine = self._engine
        return (
            engine.queued_body_size(stream_id) == 0
            and engine.remote_window_size > 0
            and engine.stream_remote_window_size(stream_id) > 0
        )

    def ping(self, payload: bytes) -> None:
        """Queue a PING of eight bytes; `PingAcknowledged` brings it back."""
        self._engine.ping(payload)

    def announce_shutdown(self) -> None:
        """Queue the first GOAWAY of a graceful end: streams under way to us are still accepted."""
        self._engine.send_shutdown_notice()

    def shut_down(self, error_code: int = 0, debug: bytes = b"") -> None:
        """Queue the final GOAWAY: new streams are ignored, open ones finish.

        `ConnectionClosed` follows when the last one has.
        """
        self._engine.send_goaway(error_code, debug_data=debug)

    def terminate(self, error_code: int = 0) -> None:
        """Queue a final GOAWAY and drop everything else."""
        self._engine.terminate_connection(error_code)
