"""The server's side of gRPC on one HTTP/2 connection. Pure: bytes in, calls out, bytes out.

`ServerConnection` turns what a client sends into calls, and answers into bytes.
Time is an argument; the driver owns the socket and runs the handlers that wait.

Rules:
- A read is one batch: all its unary calls are dispatched, then the driver flushes once.
  An answer given outside a batch marks its connection dirty; the dirty ones are flushed
  together (`SharedState.wake`).
- A stream is in ``_streams`` until its status is queued or its client has gone.
- A call answered before its request has ended gets its trailers first; the stream is
  reset (NO_ERROR) only once they have been handed to the socket.
- Request bytes are acknowledged one by one, always: when their message is taken; as they
  arrive once the whole message has room; or when the stream is over with some left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Final, TypeAlias

import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.log_limits import log_limited
from dbos_actors.rpc.server.containment import PASSING, tell
from dbos_actors.rpc.server.flow_accounts import Uploads
from dbos_actors.rpc.server.handover import Handovers
from dbos_actors.rpc.server.inflation import Inflation
from dbos_actors.rpc.server.keepalive import UNANSWERED_SHUTDOWN_S, Keepalive
from dbos_actors.rpc.server.senders import Senders
from dbos_actors.rpc.server.shared_state import Driver, SharedState
from dbos_actors.rpc.server.stream_call import StreamCall, StreamMethod, framing_failure
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.compression import ACCEPTED, GZIP, IDENTITY, accepts_gzip, compress
from dbos_actors.rpc.wire.framing import PREFIX_BYTES, FramingError, frame, unpack_prefix
from dbos_actors.rpc.wire.http2 import (
    HEADER_BYTES_MAX,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Headers,
    Http2Connection,
    Http2Error,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    Setting,
    SettingsReceived,
    StreamClosed,
    StreamError,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from dbos_actors.rpc.wire.keepalive import TOO_MANY_PINGS, Action
from dbos_actors.rpc.wire.metadata import MetadataError, decode_timeout
from dbos_actors.rpc.wire.status import (
    INTERNAL_ERROR,
    OK_TRAILERS,
    RESPONSE_HEADERS,
    RESPONSE_HEADERS_GZIP,
    Fields,
    fitting,
    status_fields,
)

log = structlog.get_logger(__name__)

_OK: Final = Status.OK  # looking a member up costs as much as a whole small function

_CONTENT_TYPES = frozenset({b"application/grpc", b"application/grpc+proto"})

SHARED_RESPONSE_BYTES = 16_384
"""A response larger than one DATA frame is interleaved with others instead of going first."""

_KEEPALIVE_PING = b"dbosping"
_SHUTDOWN_PING = b"dbosexit"
_FAREWELL_PING = b"dbosends"

_ANYBODY: Final = "anybody"
"""The client of a server that authenticates none."""

_NO_CREDENTIALS: Final = "valid credentials are required"
_REVOKED: Final = "the credentials of this call are no longer valid"
_TOO_MANY_OPEN: Final = "too many calls that need no authentication on this connection"

_OVERLOADED: Final = "the server is overloaded: calls wait too long; try again later"


class _Farewell(Enum):
    """What is to happen before the GOAWAY of a drain."""

    NONE = auto()
    AFTER_STREAMS = auto()
    """Streams have to end."""
    DUE = auto()
    """Their status has to be sent, and a PING behind it."""
    SAID = auto()
    """The PING has to be answered."""


class _Discarded:
    """A stream that has its answer while the client still sends: the rest is thrown away."""

    __slots__ = ()


_DISCARDED = _Discarded()
_Inbound: TypeAlias = UnaryCall | StreamCall | _Discarded


class ServerConnection:
    """One connection's protocol state."""

    __slots__ = (
        "_charged",
        "_client",
        "_compresses",
        "_core",
        "_ending",
        "_engine",
        "_farewell",
        "_handlers",
        "_handovers",
        "_has_reset",
        "_held",
        "_held_charged",
        "_inflation",
        "_is_gated",
        "_keepalive",
        "_message_max",
        "_open_calls",
        "_parked",
        "_receiving",
        "_resets",
        "_send_data",
        "_send_response",
        "_send_trailers",
        "_senders",
        "_shutdown_s",
        "_stalled",
        "_streams",
        "_streams_live",
        "_unsent_free",
        "_unsent_max",
        "_uploads",
        "_window",
        "closed",
        "driver",
        "header_bytes_max",
        "is_dirty",
        "peer",
        "peer_certificate",
        "unsent_bytes",
    )

    unsent_bytes: int
    """Response bytes not accepted by the socket; exact after each flush, an estimate between."""

    closed: bool
    """Nothing more will happen: close the socket once the output is sent."""

    header_bytes_max: int
    """Size of a header block that the client accepts. One that is larger ends the connection
    with some clients, and the calls of others with it."""

    def __init__(
        self,
        core: SharedState,
        driver: Driver,
        *,
        peer: str,
        now_s: float,
        peer_certificate: dict[str, Any] | None = None,
        age_factor: float = 1.0,
    ) -> None:
        self._core = core
        self.driver = driver
        self.peer = peer
        self.peer_certificate = peer_certificate
        engine = Http2Connection.server(core.limits.http2)
        self._engine = engine
        self._send_response = engine.send_response
        self._send_data = engine.send_data
        self._send_trailers = engine.send_trailers
        self._keepalive = Keepalive(core.limits.keepalive, now_s, age_factor=age_factor)
        # Limits the hot path looks at.
        limits = core.limits
        self._unsent_free = limits.unsent_bytes_free
        self._unsent_max = limits.unsent_bytes_max
        self._compresses = limits.compress_bytes_min is not None
        self._message_max = limits.message_bytes_max
        self._window = limits.http2.stream_window_bytes
        self._streams: dict[int, _Inbound] = {}
        self._handlers = 0
        self._open_calls = 0
        # Who was authenticated last. While nobody was, the connection is a stranger.
        self._client: Hashable | None = None
        # Whether the next call of a method that is not open has to be looked at.
        self._is_gated = True
        # Streams to reset after a flush; whether a body precedes their trailers.
        self._resets: dict[int, bool] = {}
        # Whether a stream was reset since the window was looked at.
        self._has_reset = False
        self._parked: deque[UnaryCall] = deque()
        # Request bytes not handed to handlers yet, and how many of them are shared memory.
        self._held = 0
        self._held_charged = 0
        self._inflation = Inflation(core)
        self._handovers = Handovers(engine)
        self._senders = Senders(engine, queue_bytes_max=limits.stream_unsent_bytes)
        self._uploads = Uploads(core.limits.upload_bytes_max)
        self._receiving = False
        self._charged = 0
        self._stalled: tuple[float, int] | None = None
        self._shutdown_s: float | None = None
        self._farewell = _Farewell.NONE
        self._streams_live = 0
        self._ending = False
        self.header_bytes_max = HEADER_BYTES_MAX
        self.unsent_bytes = 0
        self.is_dirty = False
        self.closed = False
        core.strangers.add(self)

    # ------------------------------------------------------------- bytes in

    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> None:
        """Take bytes from the client and dispatch the calls they complete."""
        if self._ending:
            return
        self._keepalive.heard_s = now_s
        self._receiving = True
        try:
            self._engine.receive(data)
            self._handle_events(now_s)
        except Http2Error as error:
            log_limited(
                log.info,
                "connection refused by the HTTP/2 engine",
                peer=self.peer,
                error=str(error),
            )
            self.lost()
        finally:
            self._receiving = False

    def _handle_events(self, now_s: float) -> None:
        streams = self._streams
        for event in self._engine.events():
            kind = type(event)
            if kind is DataReceived:
                stream_id = event.stream_id
                call = streams.get(stream_id)
                if type(call) is UnaryCall:
                    data = event.data
                    if (
                        event.end_stream
                        and call.buffer is None
                        and self.unsent_bytes <= self._unsent_max
                    ):
                        call.request_ended = True
                        self._acknowledge(stream_id, len(data))
                        self._dispatch(call, data)
                    else:
                        self._feed_unary(call, data, end_stream=event.end_stream)
                elif type(call) is StreamCall:
                    self._feed_stream(call, event.data, end_stream=event.end_stream)
                else:
                    self._acknowledge(stream_id, len(event.data))
            elif kind is RequestReceived:
                self._begin(event.stream_id, event.headers, event.end_stream, now_s)
            elif kind is StreamClosed or kind is StreamReset:
                if event.stream_id in streams:
                    self._gone(event.stream_id)
            elif kind is TrailersReceived:
                call = streams.get(event.stream_id)
                if type(call) is UnaryCall:
                    self._feed_unary(call, b"", end_stream=True)
                elif type(call) is StreamCall:
                    self._feed_stream(call, b"", end_stream=True)
            elif kind is SettingsReceived:
                self._keepalive.greeted = True
                header_bytes = event.settings.get(Setting.MAX_HEADER_LIST_SIZE)
                if header_bytes is not None:
                    self.header_bytes_max = min(header_bytes, HEADER_BYTES_MAX)
                self._senders.windows_changed()
                self._handovers.windows_changed()
            elif kind is PingReceived:
                if self._keepalive.client_pinged(now_s, busy=self.is_busy):
                    self._calm_down(TOO_MANY_PINGS.decode())
            elif kind is PingAcknowledged:
                if event.opaque_data == _SHUTDOWN_PING:
                    self._finish_shutdown()
                elif event.opaque_data == _FAREWELL_PING:
                    self._announce_shutdown(now_s)
            elif kind is WindowUpdated:
                self._senders.window_opened(event.stream_id)
                self._handovers.window_opened(event.stream_id)
            elif kind is ConnectionClosed:
                self.lost()

    # --------------------------------------------------------------- begins

    def _begin(self, stream_id: int, headers: Headers, end_stream: bool, now_s: float) -> None:
        fields = dict(headers)
        core = self._core
        method = core.routes.get(fields.get(b":path", b""))
        timeout = fields.get(b"grpc-timeout")
        encoding = fields.get(b"grpc-encoding")
        if (
            method is None
            or fields[b":method"] != b"POST"
            or fields.get(b"content-type") not in _CONTENT_TYPES
            or fields.get(b"te") != b"trailers"
            or encoding is not None
        ):
            refusal = _refusal(fields, known=method is not None)
            if refusal is not None:
                self._refuse(stream_id, refusal, request_ended=end_stream)
                return
            if encoding == IDENTITY:
                encoding = None
        deadline_s = None
        if timeout is not None:
            try:
                deadline_s = now_s + decode_timeout(timeout)
            except MetadataError as error:
                refusal = _http_error(b"400", Status.INTERNAL, str(error))
                self._refuse(stream_id, refusal, request_ended=end_stream)
                return
        call: UnaryCall | StreamCall | None
        if type(method) is UnaryMethod:
            if self._is_gated and not self._admit(stream_id, fields, end_stream):
                return
            # The dict unless it lacks a repeated field: what a waiting call keeps costs twice,
            # when it is made and when the garbage collector walks it.
            kept = fields if len(fields) == len(headers) else headers
            call = UnaryCall(self, stream_id, method, kept, deadline_s)
        else:
            assert type(method) is StreamMethod
            call = self._make_stream(stream_id, method, headers, fields, end_stream)
            if call is None:
                return
            call.deadline = deadline_s
        if deadline_s is not None:
            core.deadlines.add(deadline_s, call)
        if encoding is not None:
            call.encoding = encoding
        if self._compresses:
            call.accepts_gzip = accepts_gzip(fields.get(b"grpc-accept-encoding"))
        self._streams[stream_id] = call
        core.calls_live += 1
        core.calls_total += 1
        if core.calls_live > core.calls_live_max:
            self._refuse_call(call, end_stream, Status.RESOURCE_EXHAUSTED, "too many calls")
        elif core.shedding and type(call) is UnaryCall:
            core.shed_total += 1
            self._refuse_call(call, end_stream, Status.RESOURCE_EXHAUSTED, _OVERLOADED)
        elif deadline_s is not None and deadline_s <= now_s:
            late = "deadline exceeded on arrival"
            self._refuse_call(call, end_stream, Status.DEADLINE_EXCEEDED, late)
        elif type(call) is StreamCall:
            self._begin_stream(call, end_stream=end_stream)
        elif end_stream:
            self._feed_unary(call, b"", end_stream=True)  # type: ignore[arg-type]

    def _admit(self, stream_id: int, fields: dict[bytes, bytes], request_ended: bool) -> bool:
        """Find out whose call it is; if nobody's, refuse it."""
        authenticator = self._core.authenticator
        if authenticator is None:
            self.know(_ANYBODY)
            self._is_gated = False
            return True
        client = authenticator.identify(fields)
        if client is None:
            self._core.calls_unauthenticated += 1
            path = fields[b":path"].decode("ascii")
            self._refuse_at_headers(
                stream_id, path, Status.UNAUTHENTICATED, _NO_CREDENTIALS, request_ended
            )
            return False
        if client is not self._client:
            self.know(client)
        return True

    def know(self, client: Hashable) -> None:
        """The connection's client has shown who it is."""
        if self._client is None:
            core = self._core
            core.strangers.discard(self)
            if self._open_calls:
                for call in self._streams.values():
                    if type(call) is StreamCall and call.method.is_open:
                        core.open_calls_of_strangers.discard(call)
                        core.open_calls_of_clients.add(call)
        self._client = client

    def reauthenticate(self) -> None:
        """End the calls whose client the authenticator knows no longer."""
        core = self._core
        authenticator = core.authenticator
        if authenticator is None or self.closed:
            return
        if self._client is not None and not authenticator.is_valid(self._client):
            self._client = None
            core.strangers.add(self)
        for call in list(self._streams.values()):
            if isinstance(call, _Discarded) or (type(call) is StreamCall and call.method.is_open):
                continue
            if authenticator.identify(dict(call.headers)) is None:
                self._refuse_call(call, call.request_ended, Status.UNAUTHENTICATED, _REVOKED)

    @property
    def is_stranger(self) -> bool:
        """Whether no client was authenticated on the connection yet."""
        return self._client is None

    @property
    def is_busy(self) -> bool:
        """Whether it has calls, or handlers that outlive theirs."""
        return bool(self._streams) or self._handlers > 0

    def _make_stream(
        self,
        stream_id: int,
        method: StreamMethod,
        headers: Headers,
        fields: dict[bytes, bytes],
        request_ended: bool,
    ) -> StreamCall | None:
        """A call of a grpclib service; None: it is refused."""
        core, limits = self._core, self._core.limits
        if not method.is_open:
            if self._is_gated and not self._admit(stream_id, fields, request_ended):
                return None
            call = StreamCall(self, stream_id, method, headers, limit=self._message_max)
        elif self._open_calls >= limits.open_calls_connection_max:
            status, text = Status.RESOURCE_EXHAUSTED, _TOO_MANY_OPEN
            self._refuse_at_headers(stream_id, method.path, status, text, request_ended)
            return None
        else:
            limit = min(self._message_max, limits.open_message_bytes_max)
            call = StreamCall(self, stream_id, method, headers, limit=limit)
            self._open_calls += 1
            core.calls_live_max += 1
            of_strangers = self._client is None
            (core.open_calls_of_strangers if of_strangers else core.open_calls_of_clients).add(call)
        core.streams_live += 1
        self._streams_live += 1
        return call

    def _refuse_at_headers(
        self, stream_id: int, path: str, status: Status, message: str, request_ended: bool
    ) -> None:
        """Refuse a call of a known method before there is anything of it."""
        self._core.calls_total += 1
        for refused in self._core.refused:
            refused(path, status)
        headers = RESPONSE_HEADERS + status_fields(status, message)
        self._refuse(stream_id, headers, request_ended=request_ended)

    def _refuse_call(
        self, call: UnaryCall | StreamCall, request_ended: bool, status: Status, message: str
    ) -> None:
        call.request_ended = request_ended
        if isinstance(call, UnaryCall):
            self._end(call, status, message)
        else:
            call.end(status, message)

    def _refuse(self, stream_id: int, fields: Fields, *, request_ended: bool) -> None:
        """Queue a stream's only headers."""
        self._keepalive.responded = True
        try:
            self._send_response(stream_id, fitting(fields, self.header_bytes_max), end_stream=True)
        except StreamError:
            return
        if not request_ended:
            self._discard(stream_id, has_body=False)
        self._answered_outside()

    def _discard(self, stream_id: int, *, has_body: bool) -> None:
        self._streams[stream_id] = _DISCARDED
        self._resets[stream_id] = has_body

    # -------------------------------------------------------- unary requests

    def _feed_unary(self, call: UnaryCall, data: bytes, *, end_stream: bool) -> None:
        """Take a part of a unary request; the usual case, all in one part, never comes here."""
        call.unacknowledged += len(data)
        self._hold(len(data))
        if call.buffer is None:
            call.buffer = data
        else:
            if type(call.buffer) is bytes:
                call.buffer = bytearray(call.buffer)
            call.buffer += data
        size = len(call.buffer)
        if call.message_bytes == 0 and size >= PREFIX_BYTES:
            flag, length = unpack_prefix(call.buffer)
            if problem := self._prefix_problem(call, flag, length):
                call.request_ended = end_stream
                self._end(call, *problem)
                return
            call.message_bytes = PREFIX_BYTES + length
        if end_stream:
            call.request_ended = True
            if self.unsent_bytes > self._unsent_max:  # the client leaves its answers unread
                self._parked.append(call)
            else:
                self._take_unary(call)
        elif 0 < call.message_bytes < size:
            self._end(call, Status.UNIMPLEMENTED, "more than one request message")
        elif call.message_bytes > self._window:
            self._upload(call, call.message_bytes)

    def _prefix_problem(self, call: UnaryCall, flag: int, length: int) -> tuple[Status, str] | None:
        if flag > 1:
            return Status.INTERNAL, f"invalid message flag {flag}"
        if flag and call.encoding is None:
            return Status.INTERNAL, "compressed message without grpc-encoding"
        limit = self._message_max
        if length > limit:
            return (
                Status.RESOURCE_EXHAUSTED,
                f"request message of {length} bytes is larger than the limit of {limit} bytes",
            )
        return None

    def _take_unary(self, call: UnaryCall) -> None:
        """The request is complete, in parts: dispatch it."""
        assert call.buffer is not None
        data = bytes(call.buffer)
        self._release(call)
        self._dispatch(call, data)

    def _dispatch(self, call: UnaryCall, data: bytes) -> None:
        size = len(data)
        if size < PREFIX_BYTES:
            self._end(
                call,
                Status.INTERNAL if size else Status.UNIMPLEMENTED,
                "truncated request message" if size else "no request message",
            )
            return
        flag, length = unpack_prefix(data)
        body = data[PREFIX_BYTES:]
        if flag or length != len(body) or length > self._message_max:
            problem = self._prefix_problem(call, flag, length)
            if problem is None and length != len(body):
                problem = (
                    (Status.INTERNAL, "truncated request message")
                    if length > len(body)
                    else (Status.UNIMPLEMENTED, "more than one request message")
                )
            if problem is not None:
                self._end(call, *problem)
                return
            try:
                body = self._inflate_unary(call, body)
            except GRPCError as error:
                self._end(call, error.status, error.message)
                return
        method = call.method
        try:
            call.request = method.decode(body)
        except PASSING:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the codec raises is about this call
            log_limited(
                log.info, "undecodable request", path=call.path, peer=self.peer, error=str(error)
            )
            self._end(call, Status.INTERNAL, "the request message cannot be decoded")
            return
        try:
            method.handler(call)
        except GRPCError as error:
            if not call.answered:
                self.fail(call, error)
        except PASSING:
            raise
        except BaseException:  # noqa: BLE001 - logged, and the failure of its call alone
            log_limited(log.exception, "handler failed", path=call.path, peer=self.peer)
            if not call.answered:
                self._end(call, Status.INTERNAL, INTERNAL_ERROR)

    def _inflate_unary(self, call: UnaryCall, body: bytes) -> bytes:
        data = self._inflation.inflate(call.encoding, body, self._message_max)
        call.when_answered(lambda _: self._inflation.release(len(data)))
        return data

    # ------------------------------------------------------- stream requests

    def _begin_stream(self, call: StreamCall, *, end_stream: bool) -> None:
        call.request_ended = end_stream
        if self._handlers >= self._core.limits.http2.concurrent_streams_max:
            # More than its streams: handlers that outlive streams the client has reset.
            call.end(Status.RESOURCE_EXHAUSTED, "too many calls on this connection")
        elif call.method.client_streaming:
            self._start(call)
        elif end_stream:
            call.end(Status.UNIMPLEMENTED, "no request message")

    def _start(self, call: StreamCall) -> None:
        call.handling = True
        self._handlers += 1
        self.driver.start(call)

    def _feed_stream(self, call: StreamCall, data: bytes, *, end_stream: bool) -> None:
        call.unacknowledged += len(data)
        self._hold(len(data))
        call.request_ended = end_stream
        call.reader.feed(data)
        if call.failure is None:
            try:
                self._upload_stream(call)
            except FramingError as error:
                call.failure = framing_failure(error)
        if call.method.client_streaming or call.handling:
            call.on_change()
        else:
            self._gather(call)

    def _gather(self, call: StreamCall) -> None:
        """Start the handler of a call with one request message once that is all there is."""
        if call.failure is not None:
            call.end(call.failure.status, call.failure.message)
            return
        announced, buffered = call.reader.announced_bytes, call.reader.buffered_bytes
        if announced and buffered > announced:
            call.end(Status.UNIMPLEMENTED, "more than one request message")
        elif call.request_ended:
            if buffered == 0:
                call.end(Status.UNIMPLEMENTED, "no request message")
            elif announced == 0 or buffered < announced:
                call.end(Status.INTERNAL, "truncated request message")
            else:
                self._start(call)

    def inflate(self, call: StreamCall, body: bytes) -> bytes:
        """Decompress a message for a handler. Raises `grpclib.GRPCError`."""
        data = self._inflation.inflate(call.encoding, body, call.reader.limit)
        call.inflated_bytes += len(data)
        return data

    def release_inflated(self, call: StreamCall) -> None:
        """The handler has done with the decompressed messages that it took."""
        self._inflation.release(call.inflated_bytes)
        call.inflated_bytes = 0

    def messages_taken(self, call: StreamCall, size: int) -> None:
        """The handler took messages of so many bytes as sent, prefixes included."""
        self._unhold(size)
        acknowledged = call.reader.buffered_bytes + size - call.unacknowledged
        due = max(0, size - acknowledged)
        if due:
            self._acknowledge(call.stream_id, due)
            call.unacknowledged -= due
            self._answered_outside()  # the windows' updates want to be sent
        if call.message_bytes:
            call.message_bytes = 0
            self._uploads.release(call.stream_id)
        if call.failure is None:
            try:
                self._upload_stream(call)
            except FramingError as error:
                call.failure = framing_failure(error)

    # ------------------------------------------------- memory for uploads

    def _upload_stream(self, call: StreamCall) -> None:
        """See to the message at the head of a stream, if the window may end within it.

        The engine withholds what is acknowledged until it is half a window, so a message
        may have only the other half, after others before it.
        """
        announced = call.reader.announced_bytes
        if announced > self._window // 2:
            call.message_bytes = announced
            self._upload(call, announced)

    def _upload(self, call: UnaryCall | StreamCall, size: int) -> None:
        """Acknowledge what has come of a message larger than its window, once it has room."""
        uploads = self._uploads
        if uploads.has_room(call.stream_id):
            self._acknowledge_upload(call)
        elif not uploads.knows(call.stream_id):
            uploads.request(call.stream_id, size, lambda: self._acknowledge_upload(call))

    def _acknowledge_upload(self, call: UnaryCall | StreamCall) -> None:
        due = call.unacknowledged
        if isinstance(call, StreamCall):  # what follows the message is not to be had so early
            buffered = call.reader.buffered_bytes
            due -= max(0, buffered - call.message_bytes)
        if due > 0:
            self._acknowledge(call.stream_id, due)
            call.unacknowledged -= due
            self._answered_outside()

    def _hold(self, size: int) -> None:
        """Account for request bytes that wait; ends the connection if there is no room for them."""
        self._held += size
        extra = self._held - self._core.limits.held_bytes_free - self._held_charged
        if extra > 0:
            if extra > self._core.held_free:
                self._calm_down("too much unread request data")
                return
            self._core.held_free -= extra
            self._held_charged += extra

    def _unhold(self, size: int) -> None:
        self._held -= size
        if self._held_charged:
            free = self._core.limits.held_bytes_free
            charged = max(0, min(self._held_charged, self._held - free))
            self._core.held_free += self._held_charged - charged
            self._held_charged = charged

    def _acknowledge(self, stream_id: int, amount: int) -> None:
        if amount:
            try:  # noqa: SIM105 - on the hot path, where a context manager costs four times as much
                self._engine.acknowledge(amount, stream_id)
            except (Http2Error, ValueError):
                pass  # the connection is ending: nothing to reopen

    # -------------------------------------------------------- unary answers

    def reply(self, call: UnaryCall, body: bytes) -> None:
        """Queue the response message of an unanswered call."""
        size = len(body)
        unsent_bytes = self.unsent_bytes + size
        if unsent_bytes > self._unsent_free and not self._charge(unsent_bytes):
            self._end(call, Status.RESOURCE_EXHAUSTED, "too many unread responses")
            return
        self.unsent_bytes = unsent_bytes
        self._keepalive.responded = True  # although an empty message adds nothing to that
        self._settle(call, _OK)
        stream_id = call.stream_id
        headers = RESPONSE_HEADERS
        if call.accepts_gzip and size >= (self._core.limits.compress_bytes_min or 0):
            headers = RESPONSE_HEADERS_GZIP
            framed = frame(compress(body), compressed=True)
        else:
            framed = frame(body)
        try:
            self._send_response(stream_id, headers)
            self._send_data(stream_id, framed)
            self._send_trailers(stream_id, OK_TRAILERS)
            if size > SHARED_RESPONSE_BYTES:
                self._engine.share_fairly(stream_id)
        except StreamError:
            return
        if not self._receiving and not self.is_dirty:
            self._answered_outside()

    def fail(self, call: UnaryCall, error: Exception) -> None:
        """Queue the status of an error for an unanswered call."""
        self._end(call, *self._core.status(error, call.path))

    def expire(self, call: UnaryCall) -> None:
        """Queue DEADLINE_EXCEEDED for an unanswered call."""
        self._end(call, Status.DEADLINE_EXCEEDED, "deadline exceeded")

    def _end(
        self,
        call: UnaryCall,
        status: Status,
        message: str | None = None,
        fields: Fields | None = None,
    ) -> None:
        """Queue a trailers-only answer."""
        self._settle(call, status)
        self._release(call)
        self._refuse(
            call.stream_id,
            RESPONSE_HEADERS + status_fields(status, message) + (fields or []),
            request_ended=call.request_ended,
        )

    def _settle(self, call: UnaryCall, status: Status | None) -> None:
        """The call is over: nothing about it is kept but what its holder has."""
        call.answered = True
        self._streams.pop(call.stream_id, None)
        core = self._core
        core.calls_live -= 1
        if call.deadline is not None:
            core.deadlines.remove(call.deadline, call)
        if call.observer is not None:
            tell(call, status)

    def _release(self, call: UnaryCall | StreamCall) -> None:
        """What came of the request and was not used is given back."""
        self._acknowledge(call.stream_id, call.unacknowledged)
        call.unacknowledged = 0
        if call.message_bytes:
            self._uploads.release(call.stream_id)
            call.message_bytes = 0
        if isinstance(call, UnaryCall):
            if call.buffer is not None:
                self._unhold(len(call.buffer))
                call.buffer = None
        else:
            self._unhold(call.reader.clear())

    def _answered_outside(self) -> None:
        if not self._receiving and not self.is_dirty:
            self.is_dirty = True
            dirty = self._core.dirty
            dirty.append(self)
            if len(dirty) == 1:
                self._core.wake()

    def _charge(self, unsent_bytes: int) -> bool:
        """Take what exceeds the connection's allowance from the server's; False: it has none."""
        core = self._core
        extra = unsent_bytes - self._unsent_free - self._charged
        if extra > core.unsent_free:
            return False
        if extra > 0:
            core.unsent_free -= extra
            self._charged += extra
        return True

    # ------------------------------------------------------- stream answers

    def can_send(self, call: StreamCall, size: int) -> bool:
        """Whether a message of so many bytes may be queued; if not, ``on_change`` will tell."""
        if self._senders.is_queue_full(call):
            self._senders.wait_for_queue(call)
            return False
        unsent_bytes = self.unsent_bytes + size
        if unsent_bytes > self._unsent_free and not self._charge(unsent_bytes):
            self._senders.wait_for_room(call, size)
            return False
        self._senders.discard(call)
        return True

    def send_headers(self, call: StreamCall, fields: Fields) -> None:
        """Queue the response headers of a call that is not over."""
        with suppress(*StreamError):
            self._send_response(call.stream_id, fields)
            if call.method.server_streaming:
                self._engine.share_fairly(call.stream_id)
        self._answered_outside()

    def send(self, call: StreamCall, framed: bytes) -> None:
        """Queue a framed message of a call that is not over."""
        self.unsent_bytes += len(framed)
        with suppress(*StreamError):
            self._send_data(call.stream_id, framed)
            self._handovers.queued(call, len(framed))
            if len(framed) > SHARED_RESPONSE_BYTES and not call.method.server_streaming:
                self._engine.share_fairly(call.stream_id)
        self._answered_outside()

    def end_stream(self, call: StreamCall, status: Status, fields: Fields) -> None:
        """Queue the status of a call that is not over."""
        stream_id = call.stream_id
        self._settle_stream(call, status)
        if not call.headers_sent:
            headers = RESPONSE_HEADERS + fields
            self._refuse(stream_id, headers, request_ended=call.request_ended)
            return
        with suppress(*StreamError):
            self._send_trailers(stream_id, fitting(fields, self.header_bytes_max))
            if not call.request_ended:
                self._discard(stream_id, has_body=True)
        self._answered_outside()

    def cancel_stream(self, call: StreamCall) -> None:
        """Reset a call that is not over."""
        self._settle_stream(call, None)
        with suppress(*StreamError):
            self._engine.reset(call.stream_id, ErrorCode.CANCEL)
            self._has_reset = True
        self._answered_outside()

    def stream_finished(self, call: StreamCall) -> None:
        """The handler of a call has returned; the call is over."""
        call.handling = False
        self._handlers -= 1
        self._stream_done(call)

    def _settle_stream(self, call: StreamCall, status: Status | None) -> None:
        call.over = True
        self._streams.pop(call.stream_id, None)
        self._senders.discard(call)
        self._handovers.discard(call)
        self._release(call)
        if call.method.is_open:
            self._core.open_calls_of_strangers.discard(call)
            self._core.open_calls_of_clients.discard(call)
        if not call.handling:
            self._stream_done(call)
        if call.deadline is not None:
            self._core.deadlines.remove(call.deadline, call)
        if call.observer is not None:
            tell(call, status)
        call.on_over()
        call.on_change()
        self._streams_live -= 1
        if not self._streams_live and self._farewell is _Farewell.AFTER_STREAMS:
            self._farewell = _Farewell.DUE

    def _stream_done(self, call: StreamCall) -> None:
        """The call is over and has no handler."""
        self.release_inflated(call)
        core = self._core
        core.calls_live -= 1
        core.streams_live -= 1
        if call.method.is_open:
            self._open_calls -= 1
            core.calls_live_max -= 1

    # ------------------------------------------------------------ bytes out

    def output(self, amount: int) -> bytes:
        """At most so many bytes for the client."""
        try:
            return self._engine.output(amount)
        except Http2Error as error:
            if not self.closed:
                log_limited(
                    log.warning, "the HTTP/2 engine failed", peer=self.peer, error=str(error)
                )
                self.lost()
            return b""

    def flushed(self, socket_bytes: int, now_s: float) -> bool:
        """All output that can be taken was; ``socket_bytes`` of it wait for the socket.

        Returns whether there is more output now.
        """
        if self.closed:
            return False
        if self.unsent_bytes:
            self._keepalive.responded = True
        if self._handovers.moving:
            self._handovers.flushed(socket_bytes)
        again = False
        unsent_bytes = self._engine.queued_bytes() + socket_bytes
        self.unsent_bytes = unsent_bytes
        if self._charged:
            charged = max(0, min(self._charged, unsent_bytes - self._unsent_free))
            self._core.unsent_free += self._charged - charged
            self._charged = charged
        self._receiving = True
        try:
            self._handle_events(now_s)
            if self._resets and not socket_bytes:
                again = self._reset_discarded()
            if self._parked and unsent_bytes <= self._unsent_max:
                again = self._resume() or again
            if self._farewell is _Farewell.DUE and not socket_bytes:
                again = self._say_farewell()
            if self._has_reset:
                again = self._replace_leaking(now_s) or again
        finally:
            self._receiving = False
        senders = self._senders
        if senders.for_queue:
            senders.flushed()
        if senders.for_room:
            self._wake_for_room()
        if self._ending and not socket_bytes:
            self.lost()
        return again

    def _wake_for_room(self) -> None:
        allowance = self._unsent_free + self._charged - self.unsent_bytes
        self._senders.wake_for_room(allowance + self._core.unsent_free)

    def _reset_discarded(self) -> bool:
        """Reset the streams whose trailers are on their way; whether any was."""
        any_reset = False
        for stream_id, has_body in list(self._resets.items()):
            if self._streams.get(stream_id) is not _DISCARDED:
                del self._resets[stream_id]
                continue
            try:
                if has_body and not self._engine.can_send_trailers(stream_id):
                    continue
                self._engine.reset(stream_id, ErrorCode.NO_ERROR)
                self._has_reset = any_reset = True
            except StreamError:
                self._streams.pop(stream_id, None)
            del self._resets[stream_id]
        return any_reset

    def _replace_leaking(self, now_s: float) -> bool:
        """Send the client away if our resets have used up the window; whether that is so."""
        self._has_reset = False
        if self._shutdown_s is not None or not self._engine.has_lost_window(self._held_bytes):
            return False
        log.info("connection ends: resets have used up its window", peer=self.peer)
        self.announce_shutdown(now_s)
        return True

    def _held_bytes(self) -> int:
        calls = self._streams.values()
        return sum([one.unacknowledged for one in calls if not isinstance(one, _Discarded)])

    def _resume(self) -> bool:
        """Begin parked calls until too much is unsent again; whether any was."""
        begun = False
        while self._parked and self.unsent_bytes <= self._unsent_max:
            call = self._parked.popleft()
            if not call.answered:
                self._take_unary(call)
                begun = True
        return begun

    # ----------------------------------------------------------------- time

    def tick(self, now_s: float, accepted_bytes: int) -> None:
        """To be called about once a second, with the bytes the socket has accepted so far."""
        if self._ending:  # and still here: it does not even read why
            self.lost()
        if self.closed:
            return
        self._wake_for_room()  # others may have given memory back
        if self._is_stalled(now_s, accepted_bytes):
            log_limited(log.warning, "connection closed: it does not read", peer=self.peer)
            self.lost()
            return
        if self._farewell is _Farewell.SAID:
            self._announce_shutdown(now_s)  # it has had a second
        if self._shutdown_s is not None and now_s >= self._shutdown_s + UNANSWERED_SHUTDOWN_S:
            self._finish_shutdown()
        if self._replace_leaking(now_s):
            self._answered_outside()
        busy = self.is_busy
        match self._keepalive.tick(now_s, busy=busy):
            case Action.PING:
                with suppress(Http2Error):
                    self._engine.ping(_KEEPALIVE_PING)
                self._answered_outside()
            case Action.DRAIN:
                self.announce_shutdown(now_s)
                self._answered_outside()
            case Action.CLOSE:
                log_limited(
                    log.info, "connection closed: too old, or not answering", peer=self.peer
                )
                self.lost()

    def _is_stalled(self, now_s: float, accepted_bytes: int) -> bool:
        """Whether it has kept some of the shared memory for too long without taking a byte."""
        if not self._charged:
            self._stalled = None
        elif self._stalled is None or self._stalled[1] != accepted_bytes:
            self._stalled = (now_s, accepted_bytes)
        else:
            return now_s - self._stalled[0] >= self._core.limits.stalled_s_max
        return False

    # ----------------------------------------------------------------- ends

    def _gone(self, stream_id: int) -> None:
        """The client reset the stream, or it closed: nobody waits for its answer."""
        call = self._streams.pop(stream_id)
        if isinstance(call, UnaryCall):
            self._settle(call, None)
            self._release(call)
        elif isinstance(call, StreamCall):
            self._settle_stream(call, None)
        else:
            self._resets.pop(stream_id, None)

    def _calm_down(self, reason: str) -> None:
        """End the connection of a client that asks too much."""
        if self._ending:
            return
        log_limited(log.warning, "connection closed", reason=reason, peer=self.peer)
        with suppress(Http2Error):
            self._engine.shut_down(ErrorCode.ENHANCE_YOUR_CALM, reason.encode("ascii"))
        self._ending = True
        self._answered_outside()

    def announce_shutdown(self, now_s: float, *, after_streams: bool = False) -> None:
        """Begin a graceful end (RFC 9113, 6.8): a notice, and the final GOAWAY once the client
        has seen that, so that no call under way is lost; then open calls finish.

        ``after_streams``: the notice waits until calls of grpclib services are over and the
        client has read their status. Some clients (grpclib) drop all calls at the first GOAWAY.
        """
        if self.closed or self._shutdown_s is not None:
            return
        if after_streams and self._streams_live:
            self._keepalive.draining(now_s)
            self._farewell = _Farewell.AFTER_STREAMS
        elif self._farewell is _Farewell.NONE or not after_streams:
            self._announce_shutdown(now_s)

    def end_calls(self, status: Status, message: str) -> None:
        """End every call that is not over."""
        for call in list(self._streams.values()):
            if isinstance(call, UnaryCall):
                self._end(call, status, message)
            elif isinstance(call, StreamCall):
                call.end(status, message)

    def _say_farewell(self) -> bool:
        """Ask the client to answer behind the status of its last stream."""
        self._farewell = _Farewell.SAID
        with suppress(Http2Error):
            self._engine.ping(_FAREWELL_PING)
        return True

    def _announce_shutdown(self, now_s: float) -> None:
        self._farewell = _Farewell.NONE
        if self.closed or self._shutdown_s is not None:
            return
        self._shutdown_s = now_s
        self._keepalive.draining(now_s)
        self._answered_outside()
        with suppress(Http2Error):
            self._engine.announce_shutdown()
            self._engine.ping(_SHUTDOWN_PING)

    def dismiss(self) -> None:
        """Close the connection at once: others need its place."""
        self.driver.dismiss()

    def queue_dismissal(self) -> None:
        """Queue the GOAWAY of a connection that is dismissed."""
        if not self.closed:
            with suppress(Http2Error):
                self._engine.shut_down(ErrorCode.NO_ERROR, b"too many connections")

    def _finish_shutdown(self) -> None:
        self._shutdown_s = float("inf")
        with suppress(Http2Error):
            self._engine.shut_down()
        self._answered_outside()

    def lost(self) -> None:
        """The connection is over: its calls have nobody to answer. Idempotent."""
        if self.closed:
            return
        self.closed = True
        for call in list(self._streams.values()):
            if isinstance(call, UnaryCall):
                self._settle(call, None)
            elif isinstance(call, StreamCall):
                self._settle_stream(call, None)
        self._streams.clear()
        self._parked.clear()
        self._core.strangers.discard(self)
        self._core.unsent_free += self._charged
        self._charged = 0
        self._core.held_free += self._held_charged
        self._held_charged = 0


def _refusal(fields: dict[bytes, bytes], *, known: bool) -> Fields | None:
    """Why a request is not a gRPC call of this server; None: it is, in a rarer spelling."""
    if fields.get(b":method") != b"POST":
        return _http_error(b"405", Status.INTERNAL, "a gRPC call is a POST")
    content_type = fields.get(b"content-type", b"")
    if content_type.partition(b";")[0].strip() not in _CONTENT_TYPES:
        text = content_type[:64].decode("ascii", "replace")
        return _http_error(b"415", Status.INTERNAL, f"content-type {text!r} is not served")
    if fields.get(b"te") != b"trailers":
        return _http_error(b"400", Status.INTERNAL, "te: trailers is required")
    if not known:
        path = fields.get(b":path", b"")[:256].decode("ascii", "replace")
        return RESPONSE_HEADERS + status_fields(Status.UNIMPLEMENTED, f"unknown method {path}")
    encoding = fields.get(b"grpc-encoding", IDENTITY)
    if encoding not in {IDENTITY, GZIP}:
        text = encoding[:64].decode("ascii", "replace")
        status = status_fields(Status.UNIMPLEMENTED, f"grpc-encoding {text!r} is not supported")
        return [*RESPONSE_HEADERS, (b"grpc-accept-encoding", ACCEPTED), *status]
    return None


def _http_error(http_status: bytes, status: Status, message: str) -> Fields:
    return [
        (b":status", http_status),
        (b"content-type", b"application/grpc"),
        *status_fields(status, message),
    ]
