"""The server's side of gRPC on one HTTP/2 connection. Pure: bytes in, calls out, bytes out.

`ServerConnection` turns what a client sends into calls, and answers into bytes.
Time is an argument; the driver owns the socket. What all connections of a server
have in common is in `ServerCore`.

Rules:
- A read is one batch: all its calls are dispatched, then the driver flushes once. An
  answer given outside a batch marks its connection dirty; the dirty ones are flushed
  together (`ServerCore.wake`).
- A stream is in ``_streams`` until its answer is queued or the client has gone.
- A call answered before its request has ended gets its trailers first; the stream is
  reset (NO_ERROR) only once they have been handed to the socket.
- Request bytes are acknowledged one by one, always: at dispatch; as they arrive once
  room for the whole message is reserved; or when a stream closes with some left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol, TypeAlias

import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.deadlines import Deadlines
from dbos_actors.rpc.framing import PREFIX_BYTES, frame, unpack_prefix
from dbos_actors.rpc.http2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Headers,
    Http2Connection,
    Http2Error,
    RequestReceived,
    StreamClosed,
    StreamError,
    StreamReset,
    TrailersReceived,
)
from dbos_actors.rpc.limits import ServerLimits
from dbos_actors.rpc.metadata import MetadataError, decode_timeout
from dbos_actors.rpc.status import (
    INTERNAL_ERROR,
    OK_TRAILERS,
    RESPONSE_HEADERS,
    Fields,
    StatusOf,
    status_fields,
)
from dbos_actors.rpc.unary import UnaryCall, UnaryMethod

log = structlog.get_logger(__name__)

_CONTENT_TYPES = frozenset({b"application/grpc", b"application/grpc+proto"})

SHARED_RESPONSE_BYTES = 16_384
"""A response larger than one DATA frame is interleaved with others instead of going first."""


class Driver(Protocol):
    """Who moves the connection's bytes."""

    def flush(self) -> None:
        """Send what can be sent now, without waiting."""
        ...


class ServerCore:
    """What the connections of one server share."""

    __slots__ = (
        "backlog_free",
        "calls_live",
        "calls_total",
        "deadlines",
        "dirty",
        "limits",
        "routes",
        "status_of",
        "wake",
    )

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryMethod],
        status_of: StatusOf,
        limits: ServerLimits,
    ) -> None:
        self.routes: dict[bytes, UnaryMethod] = {
            path.encode("ascii"): method for path, method in unary.items()
        }
        self.status_of = status_of
        self.limits = limits
        self.deadlines = Deadlines()
        self.calls_live = 0
        self.calls_total = 0
        self.backlog_free = limits.backlog_bytes_shared
        self.dirty: list[ServerConnection] = []
        self.wake: Callable[[], None] = _nobody
        """Called when the first connection becomes dirty; `flush` is to be called soon."""

    def flush(self) -> None:
        """Flush every connection that was answered outside its own read."""
        dirty, self.dirty = self.dirty, []
        for connection in dirty:
            connection.is_dirty = False
            connection.driver.flush()

    def status(self, error: Exception) -> tuple[Status, str | None]:
        """The status of an error a call failed with."""
        if isinstance(error, GRPCError):
            return error.status, error.message
        return self.status_of(error)


def _nobody() -> None:
    pass


class _Discarded:
    """A stream that has its answer while the client still sends: the rest is thrown away."""

    __slots__ = ()


_DISCARDED = _Discarded()
_Inbound: TypeAlias = UnaryCall | _Discarded


class ServerConnection:
    """One connection's protocol state."""

    __slots__ = (
        "_charged",
        "_core",
        "_engine",
        "_parked",
        "_receiving",
        "_reserved",
        "_resets",
        "_send_data",
        "_send_response",
        "_send_trailers",
        "_streams",
        "_uploads",
        "backlog",
        "closed",
        "driver",
        "is_dirty",
        "peer",
    )

    backlog: int
    """Response bytes not accepted by the socket; exact after each flush, an estimate between."""

    closed: bool
    """Nothing more will happen: close the socket once the output is sent."""

    def __init__(self, core: ServerCore, driver: Driver, *, peer: str) -> None:
        self._core = core
        self.driver = driver
        self.peer = peer
        engine = Http2Connection.server(core.limits.http2)
        self._engine = engine
        self._send_response = engine.send_response
        self._send_data = engine.send_data
        self._send_trailers = engine.send_trailers
        self._streams: dict[int, _Inbound] = {}
        self._resets: list[int] = []
        self._parked: deque[tuple[UnaryCall, bytes]] = deque()
        self._uploads: deque[UnaryCall] = deque()
        self._reserved = 0
        self._receiving = False
        self._charged = 0
        self.backlog = 0
        self.is_dirty = False
        self.closed = False

    # ------------------------------------------------------------- bytes in

    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> None:
        """Take bytes from the client and dispatch the calls they complete."""
        self._receiving = True
        try:
            self._engine.receive(data)
            self._handle_events(now_s)
        except Http2Error as error:
            log.info("connection refused by the HTTP/2 engine", peer=self.peer, error=str(error))
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
                    if event.end_stream and call.buffer is None:
                        self._end_unary(call, data, len(data))
                    else:
                        self._feed_unary(call, data, end_stream=event.end_stream)
                else:
                    self._acknowledge(stream_id, len(event.data))
            elif kind is RequestReceived:
                self._begin(event.stream_id, event.headers, event.end_stream, now_s)
            elif kind is StreamClosed:
                if event.stream_id in streams:
                    self._gone(event.stream_id)
            elif kind is TrailersReceived:
                call = streams.get(event.stream_id)
                if type(call) is UnaryCall:
                    self._feed_unary(call, b"", end_stream=True)
            elif kind is StreamReset:
                if event.stream_id in streams:
                    self._gone(event.stream_id)
            elif kind is ConnectionClosed:
                self.lost()

    # --------------------------------------------------------------- begins

    def _begin(self, stream_id: int, headers: Headers, end_stream: bool, now_s: float) -> None:
        fields = dict(headers)
        core = self._core
        method = core.routes.get(fields.get(b":path", b""))
        timeout = fields.get(b"grpc-timeout")
        if (
            method is None
            or fields[b":method"] != b"POST"
            or fields.get(b"content-type") not in _CONTENT_TYPES
            or fields.get(b"te") != b"trailers"
        ):
            refusal = _refusal(fields, known=method is not None)
            if refusal is not None:
                self._refuse(stream_id, refusal, request_ended=end_stream)
                return
        assert method is not None
        if timeout is None:
            call = UnaryCall(self, stream_id, method, headers, None)
        else:
            try:
                deadline_s = now_s + decode_timeout(timeout)
            except MetadataError as error:
                refusal = _http_error(b"400", Status.INTERNAL, str(error))
                self._refuse(stream_id, refusal, request_ended=end_stream)
                return
            call = UnaryCall(self, stream_id, method, headers, deadline_s)
            core.deadlines.add(deadline_s, call)
        self._streams[stream_id] = call
        core.calls_live += 1
        core.calls_total += 1
        if core.calls_live > core.limits.calls_live_max:
            call.request_ended = end_stream
            self._end(call, Status.RESOURCE_EXHAUSTED, "too many calls")
        elif call.deadline is not None and call.deadline <= now_s:
            call.request_ended = end_stream
            self._end(call, Status.DEADLINE_EXCEEDED, "deadline exceeded on arrival")
        elif end_stream:
            self._feed_unary(call, b"", end_stream=True)

    def _refuse(self, stream_id: int, fields: Fields, *, request_ended: bool) -> None:
        """Answer a stream that never became a call."""
        try:
            self._send_response(stream_id, fields, end_stream=True)
        except StreamError:
            return
        if not request_ended:
            self._streams[stream_id] = _DISCARDED
            self._resets.append(stream_id)
        self._answered_outside()

    # -------------------------------------------------------------- request

    def _feed_unary(self, call: UnaryCall, data: bytes, *, end_stream: bool) -> None:
        """Take a part of a unary request; the usual case, all in one part, never comes here."""
        call.unacknowledged += len(data)
        if call.buffer is None:
            call.buffer = data
        else:
            if type(call.buffer) is bytes:
                call.buffer = bytearray(call.buffer)
            call.buffer += data
        size = len(call.buffer)
        if call.message_bytes == 0 and size >= PREFIX_BYTES:
            flag, length = unpack_prefix(call.buffer)
            if problem := self._prefix_problem(flag, length):
                call.request_ended = end_stream
                self._end(call, *problem)
                return
            call.message_bytes = PREFIX_BYTES + length
        if end_stream:
            self._end_unary(call, bytes(call.buffer), call.unacknowledged)
        elif 0 < call.message_bytes < size:
            self._end(call, Status.UNIMPLEMENTED, "more than one request message")
        elif call.message_bytes > self._core.limits.http2.stream_window_bytes:
            self._upload(call)

    def _prefix_problem(self, flag: int, length: int) -> tuple[Status, str] | None:
        if flag:
            return Status.INTERNAL, "compressed message without grpc-encoding"
        limit = self._core.limits.message_bytes_max
        if length > limit:
            return (
                Status.RESOURCE_EXHAUSTED,
                f"request message of {length} bytes, the limit is {limit}",
            )
        return None

    def _end_unary(self, call: UnaryCall, data: bytes, unacknowledged: int) -> None:
        """The request is complete: dispatch it, unless the client leaves its answers unread."""
        self._acknowledge(call.stream_id, unacknowledged)
        call.unacknowledged = 0
        call.buffer = None
        call.request_ended = True
        if call.message_bytes > self._core.limits.http2.stream_window_bytes:
            self._release_upload(call)
        if self.backlog > self._core.limits.backlog_bytes_max:
            self._parked.append((call, data))
        else:
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
        if flag or length != size - PREFIX_BYTES:
            problem = self._prefix_problem(flag, length) or (
                (Status.INTERNAL, "truncated request message")
                if length > size - PREFIX_BYTES
                else (Status.UNIMPLEMENTED, "more than one request message")
            )
            self._end(call, *problem)
            return
        if size > self._core.limits.message_bytes_max:
            too_large = self._prefix_problem(flag, length)
            if too_large:
                self._end(call, *too_large)
                return
        method = call.method
        try:
            call.request = method.decode(data[PREFIX_BYTES:])
        except Exception as error:  # noqa: BLE001 - whatever the codec raises is about this call alone
            log.info("undecodable request", path=call.path, peer=self.peer, error=str(error))
            self._end(call, Status.INTERNAL, "the request message cannot be decoded")
            return
        try:
            method.handler(call)
        except GRPCError as error:
            if not call.answered:
                self.fail(call, error)
        except Exception:
            log.exception("handler failed", path=call.path, peer=self.peer)
            if not call.answered:
                self._end(call, Status.INTERNAL, INTERNAL_ERROR)

    # ------------------------------------------------- memory for uploads

    def _upload(self, call: UnaryCall) -> None:
        """Acknowledge a message larger than its window, once all of it has room."""
        if call.unacknowledged and not self._has_room(call):
            return
        self._acknowledge(call.stream_id, call.unacknowledged)
        call.unacknowledged = 0

    def _has_room(self, call: UnaryCall) -> bool:
        size = call.message_bytes
        if call.buffer is not None and len(call.buffer) > call.unacknowledged:
            return True  # acknowledged before: it has its reservation
        if call in self._uploads:
            return False
        if self._reserved and self._reserved + size > self._core.limits.upload_bytes_max:
            self._uploads.append(call)
            return False
        self._reserved += size
        return True

    def _release_upload(self, call: UnaryCall) -> None:
        if call in self._uploads:
            self._uploads.remove(call)
            return
        self._reserved -= call.message_bytes
        while self._uploads:
            waiting = self._uploads[0]
            size = waiting.message_bytes
            if self._reserved and self._reserved + size > self._core.limits.upload_bytes_max:
                return
            self._uploads.popleft()
            self._reserved += size
            self._acknowledge(waiting.stream_id, waiting.unacknowledged)
            waiting.unacknowledged = 0

    def _acknowledge(self, stream_id: int, amount: int) -> None:
        if amount:
            with suppress(Http2Error, ValueError):  # the connection is ending: nothing to reopen
                self._engine.acknowledge(amount, stream_id)

    # -------------------------------------------------------------- answers

    def reply(self, call: UnaryCall, body: bytes) -> None:
        """Queue the response message of an unanswered call."""
        size = len(body)
        backlog = self.backlog + size
        if backlog > self._core.limits.backlog_bytes_free and not self._charge(backlog):
            self._end(call, Status.RESOURCE_EXHAUSTED, "too many unread responses")
            return
        self.backlog = backlog
        self._settle(call, Status.OK)
        stream_id = call.stream_id
        try:
            self._send_response(stream_id, RESPONSE_HEADERS)
            self._send_data(stream_id, frame(body))
            self._send_trailers(stream_id, OK_TRAILERS)
            if size > SHARED_RESPONSE_BYTES:
                self._engine.share_fairly(stream_id)
        except StreamError:
            return
        if not self._receiving and not self.is_dirty:
            self._answered_outside()

    def fail(self, call: UnaryCall, error: Exception) -> None:
        """Queue the status of an error for an unanswered call."""
        try:
            status, message = self._core.status(error)
        except Exception:
            log.exception("no status for an error", path=call.path, error=repr(error))
            status, message = Status.INTERNAL, INTERNAL_ERROR
        self._end(call, status, message)

    def expire(self, call: UnaryCall) -> None:
        """Queue DEADLINE_EXCEEDED for an unanswered call."""
        self._end(call, Status.DEADLINE_EXCEEDED, "deadline exceeded")

    def _end(self, call: UnaryCall, status: Status, message: str | None = None) -> None:
        """Queue a trailers-only answer."""
        self._settle(call, status)
        self._acknowledge(call.stream_id, call.unacknowledged)
        call.unacknowledged = 0
        self._refuse(
            call.stream_id,
            RESPONSE_HEADERS + status_fields(status, message),
            request_ended=call.request_ended,
        )

    def _settle(self, call: UnaryCall, status: Status | None) -> None:
        """The call is over: nothing about it is kept but what its holder has."""
        call.answered = True
        self._streams.pop(call.stream_id, None)
        core = self._core
        core.calls_live -= 1
        if call.deadline is not None:
            core.deadlines.answered()
        if call.on_answered is not None:
            call.on_answered(status)

    def _answered_outside(self) -> None:
        if not self._receiving and not self.is_dirty:
            self.is_dirty = True
            dirty = self._core.dirty
            dirty.append(self)
            if len(dirty) == 1:
                self._core.wake()

    def _charge(self, backlog: int) -> bool:
        """Take what exceeds the connection's allowance from the server's; False: it has none."""
        core = self._core
        extra = backlog - core.limits.backlog_bytes_free - self._charged
        if extra > core.backlog_free:
            return False
        if extra > 0:
            core.backlog_free -= extra
            self._charged += extra
        return True

    # ------------------------------------------------------------ bytes out

    def output(self, amount: int) -> bytes:
        """At most so many bytes for the client."""
        try:
            return self._engine.output(amount)
        except Http2Error as error:
            log.warning("the HTTP/2 engine failed", peer=self.peer, error=str(error))
            self.lost()
            return b""

    def flushed(self, unsent_bytes: int, now_s: float) -> bool:
        """All output that can be taken was; ``unsent_bytes`` of it wait for the socket.

        Returns whether there is more output now.
        """
        if self.closed:
            return False
        again = False
        backlog = self._engine.queued_bytes() + unsent_bytes
        self.backlog = backlog
        if self._charged:
            charged = max(0, min(self._charged, backlog - self._core.limits.backlog_bytes_free))
            self._core.backlog_free += self._charged - charged
            self._charged = charged
        if self._resets and not unsent_bytes:
            self._reset_discarded()
            again = True
        if self._parked and backlog <= self._core.limits.backlog_bytes_max:
            again = self._resume() or again
        self._receiving = True
        try:
            self._handle_events(now_s)
        finally:
            self._receiving = False
        return again

    def _reset_discarded(self) -> None:
        resets, self._resets = self._resets, []
        for stream_id in resets:
            if self._streams.get(stream_id) is _DISCARDED:
                try:
                    self._engine.reset(stream_id, ErrorCode.NO_ERROR)
                except StreamError:
                    self._streams.pop(stream_id, None)

    def _resume(self) -> bool:
        """Begin parked calls until the backlog is full again; whether any was."""
        self._receiving = True
        begun = False
        try:
            while self._parked and self.backlog <= self._core.limits.backlog_bytes_max:
                call, data = self._parked.popleft()
                if not call.answered:
                    self._dispatch(call, data)
                    begun = True
        finally:
            self._receiving = False
        return begun

    # ----------------------------------------------------------------- ends

    def _gone(self, stream_id: int) -> None:
        """The client reset the stream, or it closed: nobody waits for its answer."""
        call = self._streams.pop(stream_id)
        if isinstance(call, UnaryCall):
            self._settle(call, None)
            self._acknowledge(stream_id, call.unacknowledged)
            if call.message_bytes > self._core.limits.http2.stream_window_bytes and (
                not call.request_ended
            ):
                self._release_upload(call)

    def announce_shutdown(self) -> None:
        """Begin a graceful end: a GOAWAY, after which open calls finish and no new one is begun."""
        if not self.closed:
            self._engine.shut_down()

    def lost(self) -> None:
        """The connection is over: its calls have nobody to answer. Idempotent."""
        if self.closed:
            return
        self.closed = True
        for call in list(self._streams.values()):
            if isinstance(call, UnaryCall):
                self._settle(call, None)
        self._streams.clear()
        self._parked.clear()
        self._uploads.clear()
        self._core.backlog_free += self._charged
        self._charged = 0


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
    return None


def _http_error(http_status: bytes, status: Status, message: str) -> Fields:
    return [
        (b":status", http_status),
        (b"content-type", b"application/grpc"),
        *status_fields(status, message),
    ]
