"""The client's side of gRPC on one HTTP/2 connection. Pure.

It is given calls to start, bytes that have come, and the time, and it is asked for bytes to send.
`dbos_actors.rpc.client.link` owns the socket.

Rules:
- A stream stays in ``_streams`` until the engine says that it is closed, because the server counts
  it among its concurrent streams until then. Its call may be over earlier; the entry is then None.
- The engine sends the stream with the lowest number first, so a large message must not be given to
  it whole. Each stream gets one quantum. When the engine has nothing left that it could send, every
  stream that has more gets its next quantum (`refill`).
- Every received byte is acknowledged exactly once: when the message it belongs to is taken, as it
  comes while the next message is not complete, or when its stream is over.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Protocol

from grpclib.const import Status

from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.client.headers import HeadersTooLargeError, RequestHeaders
from dbos_actors.rpc.client.keepalive import ClientKeepalive
from dbos_actors.rpc.client.options import ChannelOptions
from dbos_actors.rpc.client.outcomes import (
    debug_text,
    framing_problem,
    goaway_reason,
    headers_problem,
)
from dbos_actors.rpc.wire.framing import FramingError
from dbos_actors.rpc.wire.http2 import (
    HEADER_BYTES_MAX,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    Headers,
    Http2Connection,
    Http2Error,
    ResponseReceived,
    Setting,
    SettingsReceived,
    StreamClosed,
    StreamError,
    StreamReset,
    TrailersReceived,
)
from dbos_actors.rpc.wire.keepalive import TOO_MANY_PINGS, Action

QUANTUM_BYTES = 64 * 1024
"""Bytes of one stream that are given to the engine before the other streams have their turn."""

_PING = b"clntping"
_STREAM_IDS = 2**30
"""A server that names no limit of streams has this one."""


class ConnectionOwner(Protocol):
    """What a connection tells its driver; never in the middle of a batch of events."""

    def has_output(self) -> None:
        """There are bytes to send."""
        ...

    def may_start(self) -> None:
        """It is ready, has room for a call that it had not, or takes no more of them."""
        ...


class ClientConnection:
    """One connection's protocol state."""

    __slots__ = (
        "_engine",
        "_handling",
        "_keepalive",
        "_options",
        "_owner",
        "_received_s",
        "_request_headers",
        "_senders",
        "_streams",
        "_streams_max",
        "_unsent",
        "_wants_output",
        "closed",
        "draining",
        "peer",
        "peer_certificate",
        "ready",
        "reason",
        "too_many_pings",
        "used",
    )

    ready: bool
    """Whether the server has sent its SETTINGS."""

    draining: bool
    """Whether it takes no new calls: the server said so, or it is closed."""

    closed: bool
    """Nothing more will happen: close the socket once the output is sent."""

    reason: str
    """Why it is draining or closed."""

    too_many_pings: bool
    """Whether the server has complained about them."""

    used: bool
    """Whether a call was started on it."""

    def __init__(
        self,
        owner: ConnectionOwner,
        options: ChannelOptions,
        *,
        now_s: float,
        scheme: bytes = b"http",
        authority: bytes = b"localhost",
        peer: str = "",
        keepalive_s: float | None = None,
    ) -> None:
        self._owner = owner
        self._options = options
        self._request_headers = RequestHeaders(scheme, authority)
        self._engine = Http2Connection.client(options.http2)
        interval_s = options.keepalive_s if keepalive_s is None else keepalive_s
        self._keepalive = ClientKeepalive(options, interval_s, now_s)
        self._received_s = now_s
        self._streams: dict[int, ClientCall | None] = {}
        # Streams of which no byte has left: if none can, their calls are not lost.
        self._unsent: set[int] = set()
        self._streams_max = _STREAM_IDS
        # Calls that must not queue more now: with a message that the engine has not got whole,
        # or with more in the engine than their server takes.
        self._senders: dict[ClientCall, None] = {}
        # While events are handled, output is only noted: the driver flushes after them anyway.
        self._handling = False
        self._wants_output = False
        self.ready = False
        self.draining = False
        self.closed = False
        self.reason = ""
        self.too_many_pings = False
        self.used = False
        self.peer = peer
        self.peer_certificate: dict[str, Any] | None = None

    # ---------------------------------------------------------------- calls

    @property
    def live(self) -> int:
        """Streams that the server counts."""
        return len(self._streams)

    @property
    def can_start(self) -> bool:
        """Whether another call may be started now."""
        return self.ready and not self.draining and len(self._streams) < self._streams_max

    def start(self, call: ClientCall, now_s: float) -> None:
        """Open a stream and send what the call has queued. Only if `can_start`."""
        assert call.outbox is not None
        try:
            headers = self._request_headers.of(call, now_s)
        except HeadersTooLargeError as error:
            call.finish(Status.RESOURCE_EXHAUSTED, str(error))
            return
        data = call.outbox[0] if len(call.outbox) == 1 else b"".join(call.outbox)
        try:
            stream_id = self._engine.send_request(
                headers, end_stream=call.request_ended and not data
            )
        except Http2Error as error:
            if not isinstance(error, StreamError) and self._engine.can_send_request:
                # It is this request that is not valid.
                call.finish(Status.INTERNAL, f"the request cannot be sent: {error}")
            else:
                self._drain(str(error))
                self.closed = not self._streams
                call.refused(self.reason)
                self._has_output()
            return
        self.used = True
        call.connection = self
        call.stream_id = stream_id
        self._streams[stream_id] = call
        self._unsent.add(stream_id)
        if data:
            self.send(call, data)
        else:
            self._has_output()
        call.on_change()

    def can_send(self, call: ClientCall) -> bool:
        """Whether a started call may queue another message."""
        return call not in self._senders

    def send(self, call: ClientCall, data: bytes) -> None:
        """Queue a call's bytes, and the end of its request if it has ended."""
        assert call.pending is None
        if len(data) > QUANTUM_BYTES:
            call.pending = memoryview(data)
            self._senders[call] = None
            self._top_up(call)
        else:
            with suppress(*StreamError):  # an event that ends it is under way
                self._engine.send_data(call.stream_id, data, end_stream=call.request_ended)
                if self._engine.queued_bytes(call.stream_id) > QUANTUM_BYTES:
                    self._senders[call] = None
        self._has_output()

    def _top_up(self, call: ClientCall) -> None:
        assert call.pending is not None
        part, rest = call.pending[:QUANTUM_BYTES], call.pending[QUANTUM_BYTES:]
        call.pending = rest if len(rest) else None
        ends = call.request_ended and call.pending is None
        with suppress(*StreamError):
            self._engine.send_data(call.stream_id, part, end_stream=ends)

    def abandon(self, call: ClientCall) -> None:
        """Reset a started call's stream."""
        if self._streams.get(call.stream_id) is call:
            self._forget(call)
            self._reset(call.stream_id)
            self._has_output()

    def _reset(self, stream_id: int) -> None:
        with suppress(*StreamError):
            self._engine.reset(stream_id, ErrorCode.CANCEL)
        if not self.draining and self._engine.has_lost_window(self._held_bytes):
            self._drain("resets have used up the connection's window")

    def _held_bytes(self) -> int:
        return sum([call.unacknowledged for call in self._streams.values() if call is not None])

    def _forget(self, call: ClientCall) -> None:
        """The call is over, its stream may not be."""
        self._streams[call.stream_id] = None
        self._senders.pop(call, None)
        if call.unacknowledged:
            self._acknowledge(call.stream_id, call.unacknowledged)
            call.unacknowledged = 0

    def message_taken(self, call: ClientCall) -> None:
        """A message was taken: more may come."""
        if self._streams.get(call.stream_id) is not call:
            return
        reader = call.reader
        buffered = reader.buffered_bytes
        try:
            incomplete = reader.announced_bytes > buffered
        except FramingError:
            incomplete = False  # found again when it is taken
        amount = call.unacknowledged if incomplete else call.unacknowledged - buffered
        # One update of the window for a quarter of it, not one a message.
        if amount and (incomplete or amount >= self._options.http2.stream_window_bytes // 4):
            call.unacknowledged -= amount
            self._acknowledge(call.stream_id, amount)
            self._has_output()

    def _acknowledge(self, stream_id: int, amount: int) -> None:
        if amount:
            with suppress(Http2Error):  # a connection that is gone has no windows
                self._engine.acknowledge(amount, stream_id)

    def _has_output(self) -> None:
        if self._handling:
            self._wants_output = True
        else:
            self._owner.has_output()

    # ------------------------------------------------------------- bytes in

    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> None:
        """Take bytes from the server."""
        self._keepalive.heard_s = self._received_s = now_s
        try:
            self._engine.receive(data)
        except Http2Error as error:
            self.lost(f"the server does not speak HTTP/2: {error}")
        else:
            self._handle_events()

    def _handle_events(self) -> None:
        could_start = self.can_start
        was_ready = self.ready
        self._handling = True
        try:
            for event in self._engine.events():
                self._handle(event)
        finally:
            self._handling = False
        if self.draining and not self._streams:
            self.closed = True
        if self.draining or self.ready != was_ready or (not could_start and self.can_start):
            self._owner.may_start()

    def _handle(self, event: Any) -> None:
        kind = type(event)
        if kind is DataReceived:
            call = self._streams.get(event.stream_id)
            if call is None:
                self._acknowledge(event.stream_id, len(event.data))
            else:
                self._feed(call, event.data, ended=event.end_stream)
        elif kind is ResponseReceived:
            call = self._streams.get(event.stream_id)
            if call is not None:
                self._begin_response(call, event.headers, ended=event.end_stream)
        elif kind is TrailersReceived:
            call = self._streams.get(event.stream_id)
            if call is not None:
                self._end_response(call, event.headers)
        elif kind is StreamClosed or kind is StreamReset:
            self._stream_gone(event)
        elif kind is SettingsReceived:
            self.ready = True
            most = event.settings.get(Setting.MAX_CONCURRENT_STREAMS)
            if most is not None:
                self._streams_max = most
            most = event.settings.get(Setting.MAX_HEADER_LIST_SIZE)
            if most is not None:
                # A server may end the connection, with everyone's calls, for a larger one.
                self._request_headers.bytes_max = min(most, HEADER_BYTES_MAX)
        elif kind is GoAwayReceived:
            self._going_away(event)
        elif kind is ConnectionClosed:
            self.lost(self.reason or debug_text(event.debug_data) or "the connection has ended")

    def _begin_response(self, call: ClientCall, headers: Headers, *, ended: bool) -> None:
        call.headers = headers
        fields = dict(headers)
        if ended and b"grpc-status" in fields:
            self._end_response(call, headers)
            return
        problem = headers_problem(fields, ended=ended)
        if problem is not None:
            call.trailers = headers
            call.fail(*problem)
        else:
            call.on_change()

    def _feed(self, call: ClientCall, data: bytes, *, ended: bool) -> None:
        reader = call.reader
        size = len(data)
        if size:
            call.unacknowledged += size
            reader.feed(data)
            try:
                announced = reader.announced_bytes
            except FramingError as error:
                call.fail(*framing_problem(error))
                return
            if not call.server_streaming:
                # The caller wants this message whole, and nothing after it.
                self._acknowledge(call.stream_id, call.unacknowledged)
                call.unacknowledged = 0
                if call.taken or 0 < announced < reader.buffered_bytes:
                    call.fail(Status.UNIMPLEMENTED, "more than one response message")
                    return
            elif announced > reader.buffered_bytes:
                self._acknowledge(call.stream_id, call.unacknowledged)
                call.unacknowledged = 0
        if ended:
            self._end_stream(call)
            call.finish_without_status()
        elif size:
            call.on_change()

    def _end_response(self, call: ClientCall, headers: Headers) -> None:
        if call.headers is None:
            call.headers = headers
        self._end_stream(call)
        call.finish_with(headers)

    def _end_stream(self, call: ClientCall) -> None:
        """The server has ended its side of the stream: end ours, too."""
        self._forget(call)
        is_sending = not call.request_ended or call.pending is not None
        if is_sending or self._queued_bytes(call.stream_id):
            self._reset(call.stream_id)  # the server does not want the rest

    def _stream_gone(self, event: StreamClosed | StreamReset) -> None:
        call = self._streams.get(event.stream_id)
        if call is not None:
            self._forget(call)
        if type(event) is StreamClosed:
            self._streams.pop(event.stream_id, None)
        if call is None:
            return
        code = int(event.error_code)
        local = event.local_error if type(event) is StreamClosed else None
        if local is None or code == ErrorCode.REFUSED_STREAM:
            call.was_reset(code, self._received_s, reason=self.reason)
        else:
            call.finish(Status.INTERNAL, f"the response is not valid HTTP/2: {local}")

    def _going_away(self, event: GoAwayReceived) -> None:
        code = int(event.error_code)
        if code == int(ErrorCode.ENHANCE_YOUR_CALM) and event.debug_data == TOO_MANY_PINGS:
            self.too_many_pings = True
        self._drain(goaway_reason(code, event.debug_data))

    def _drain(self, reason: str) -> None:
        self.draining = True
        self.reason = self.reason or reason

    # ------------------------------------------------------------- bytes out

    def output(self, amount: int) -> bytes:
        """At most so many bytes to send; fewer: nothing more can be sent before `refill`."""
        try:
            return self._engine.output(amount)
        except Http2Error as error:
            self.lost(str(error))
            return b""

    def sent(self) -> None:
        """The socket has accepted some bytes."""
        if self._unsent:
            self._unsent.clear()

    def _queued_bytes(self, stream_id: int) -> int:
        try:
            return self._engine.queued_bytes(stream_id)
        except Http2Error:
            return 0  # the stream, or the connection, is gone

    def refill(self) -> bool:
        """All that could be sent was: give the engine more; whether there was some."""
        self._handle_events()
        more, self._wants_output = self._wants_output, False
        for call in list(self._senders):
            if self._queued_bytes(call.stream_id) >= QUANTUM_BYTES:
                continue  # its server takes no more for now
            if call.pending is not None:
                self._top_up(call)
                more = True
            else:
                del self._senders[call]
                call.on_change()
        return more

    # ------------------------------------------------------------------ time

    def tick(self, now_s: float) -> None:
        """Look at the time; several times in each keepalive interval."""
        if self.closed:
            return
        action = self._keepalive.tick(now_s, busy=bool(self._streams))
        if action is Action.PING:
            with suppress(Http2Error):  # it is ending already
                self._engine.ping(_PING)
            self._has_output()
        elif action is Action.CLOSE:
            self.lost("the server does not answer pings")

    # ------------------------------------------------------------------- end

    def shut_down(self) -> None:
        """Say goodbye: queue a GOAWAY."""
        self._drain("the channel is closed")
        if not self.closed:
            with suppress(Http2Error):
                self._engine.terminate()

    def lost(self, reason: str, status: Status = Status.UNAVAILABLE) -> None:
        """The connection is no more: so are its calls, but for those that were not sent.

        The outcome is unknown.
        """
        self._drain(reason)
        if self.closed and not self._streams:
            return
        self.closed = True
        streams, self._streams = self._streams, {}
        unsent, self._unsent = self._unsent, set()
        self._senders.clear()
        refused = []
        for stream_id, call in streams.items():
            if call is None:
                continue
            if stream_id in unsent and status is Status.UNAVAILABLE:
                refused.append(call)
            else:
                call.finish(status, reason)
        for call in refused:
            call.refused(reason)
        if not self._handling:
            self._owner.may_start()
