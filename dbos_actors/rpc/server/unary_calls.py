"""The unary calls of one connection: from the bytes of a request to a queued answer.

A request usually comes in one DATA frame. It is then dispatched where it is read, without a copy
and without being counted as waiting. A request that comes in parts waits in its call's ``buffer``.

While a client leaves too many answers unread, complete requests are *parked*: they are dispatched
when enough of the answers are sent.

All methods are called from the task that reads, or from whoever answers a call. They never wait,
but `UnaryCalls.dispatch` runs the handler, and logs what it raises.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.authentication import Authenticator
from dbos_actors.rpc.server.containment import PASSING, tell
from dbos_actors.rpc.server.flow_accounts import RequestAccount, ResponseAccount
from dbos_actors.rpc.server.inflation import Inflation
from dbos_actors.rpc.server.outbox import SHARED_RESPONSE_BYTES, Outbox
from dbos_actors.rpc.server.responders import UnaryAnswers
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.shutdown import Shutdown
from dbos_actors.rpc.server.unary import GZIP_ALWAYS, UnaryCall
from dbos_actors.rpc.wire.compression import compress
from dbos_actors.rpc.wire.framing import PREFIX_BYTES, frame, unpack_prefix
from dbos_actors.rpc.wire.http2 import StreamError
from dbos_actors.rpc.wire.status import (
    OK_TRAILERS,
    RESPONSE_HEADERS,
    RESPONSE_HEADERS_GZIP,
    Fields,
    status_fields,
)

log = get_logger(__name__)

_OK: Final = Status.OK  # looking a member up costs as much as a whole small function


class UnaryCalls(UnaryAnswers):
    """The `UnaryResponder` of every unary call of a connection."""

    __slots__ = (
        "_compress_bytes_min",
        "_inflation",
        "_keepalive",
        "_message_max",
        "_responses",
        "_send_data",
        "_send_response",
        "_send_trailers",
        "_shutdown",
        "_streams",
        "_unsent_free",
        "_unsent_max",
        "_window",
        "parked",
    )

    parked: deque[UnaryCall]
    """Complete requests that wait until enough answers are sent; see `resume`."""

    def __init__(
        self,
        outbox: Outbox,
        requests: RequestAccount,
        responses: ResponseAccount,
        inflation: Inflation,
        shutdown: Shutdown,
    ) -> None:
        limits = outbox.shared.limits
        super().__init__(outbox, requests)
        self._responses = responses
        self._inflation = inflation
        self._shutdown = shutdown
        # What the hot path looks at.
        self._keepalive = outbox.keepalive
        self._streams = outbox.streams
        self._send_response = outbox.engine.send_response
        self._send_data = outbox.engine.send_data
        self._send_trailers = outbox.engine.send_trailers
        self._compress_bytes_min = limits.compress_bytes_min or 0
        self._message_max = limits.message_bytes_max
        self._unsent_free = limits.unsent_bytes_free
        self._unsent_max = limits.unsent_bytes_max
        self._window = limits.http2.stream_window_bytes
        self.parked = deque()

    # ------------------------------------------------------------- requests

    def feed(self, call: UnaryCall, data: bytes, *, end_stream: bool) -> None:
        """Take a part of a request; the usual case, all in one part, goes to `dispatch`."""
        call.unacknowledged += len(data)
        if not self._requests.hold(len(data)):
            self._shutdown.calm_down("too much unread request data")
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
                self.end(call, *problem)
                return
            call.message_bytes = PREFIX_BYTES + length
        if end_stream:
            call.request_ended = True
            if self._responses.unsent_bytes > self._unsent_max:  # it leaves its answers unread
                self.parked.append(call)
            else:
                self._take(call)
        elif 0 < call.message_bytes < size:
            self.end(call, Status.UNIMPLEMENTED, "more than one request message")
        elif call.message_bytes > self._window:
            self._requests.upload(call, call.message_bytes)

    def resume(self) -> bool:
        """Begin parked calls until too much is unsent again; whether any was."""
        begun = False
        while self.parked and self._responses.unsent_bytes <= self._unsent_max:
            call = self.parked.popleft()
            if not call.answered:
                self._take(call)
                begun = True
        return begun

    def _take(self, call: UnaryCall) -> None:
        """The request is complete, in parts: dispatch it."""
        assert call.buffer is not None
        data = bytes(call.buffer)
        self._release(call)
        self.dispatch(call, data)

    def dispatch(self, call: UnaryCall, data: bytes) -> None:
        """Decode a whole request, and run the handler of its method."""
        size = len(data)
        if size < PREFIX_BYTES:
            self.end(
                call,
                Status.INTERNAL if size else Status.UNIMPLEMENTED,
                "truncated request message" if size else "no request message",
            )
            return
        flag, length = unpack_prefix(data)
        body = data[PREFIX_BYTES:]
        if flag or length != len(body) or length > self._message_max:
            inflated = self._inflate(call, flag, length, body)
            if inflated is None:
                return
            body = inflated
        method = call.method
        try:
            call.request = method.decode(body)
        except PASSING:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the codec raises is about this call
            log_limited(
                log.info, "undecodable request", path=call.path, peer=self.peer, error=str(error)
            )
            self.end(call, Status.INTERNAL, "the request message cannot be decoded")
            return
        try:
            method.handler(call)
        except PASSING:
            raise
        except BaseException as error:  # noqa: BLE001 - the failure of its call alone
            self.raised(call, error)

    def _inflate(self, call: UnaryCall, flag: int, length: int, body: bytes) -> bytes | None:
        """The message of a compressed request; None: it is not one, and the call is ended."""
        problem = self._prefix_problem(call, flag, length)
        if problem is None and length != len(body):
            problem = (
                (Status.INTERNAL, "truncated request message")
                if length > len(body)
                else (Status.UNIMPLEMENTED, "more than one request message")
            )
        if problem is not None:
            self.end(call, *problem)
            return None
        inflation = self._inflation
        try:
            data = inflation.inflate(call.encoding, body, self._message_max)
        except GRPCError as error:
            self.end(call, error.status, error.message)
            return None
        call.when_answered(lambda _: inflation.release(len(data)))
        call.is_request_compressed = True
        return data

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

    # -------------------------------------------------------------- answers

    def reply(self, call: UnaryCall, body: bytes) -> None:
        """Queue the response message of an unanswered call."""
        size = len(body)
        responses = self._responses
        unsent_bytes = responses.unsent_bytes + size
        if unsent_bytes > self._unsent_free and not responses.charge(unsent_bytes):
            self.end(call, Status.RESOURCE_EXHAUSTED, "too many unread responses")
            return
        responses.unsent_bytes = unsent_bytes
        self._keepalive.responded = True  # although an empty message adds nothing to that
        self.forget(call, _OK)
        stream_id = call.stream_id
        headers = RESPONSE_HEADERS
        if call.accepts_gzip and (
            size >= self._compress_bytes_min or call.accepts_gzip is GZIP_ALWAYS
        ):
            headers = RESPONSE_HEADERS_GZIP
            framed = frame(compress(body), compressed=True)
        else:
            framed = frame(body)
        outbox = self._outbox
        try:
            self._send_response(stream_id, headers)
            self._send_data(stream_id, framed)
            self._send_trailers(stream_id, OK_TRAILERS)
            if size > SHARED_RESPONSE_BYTES:
                outbox.engine.share_fairly(stream_id)
        except StreamError:
            return
        if not outbox.is_receiving and not outbox.is_dirty:
            outbox.wants_flush()

    def end(
        self,
        call: UnaryCall,
        status: Status,
        message: str | None = None,
        fields: Fields | None = None,
    ) -> None:
        """Answer with a status alone."""
        self.forget(call, status)
        self._release(call)
        self._outbox.refuse(
            call.stream_id,
            RESPONSE_HEADERS + status_fields(status, message) + (fields or []),
            request_ended=call.request_ended,
        )

    def gone(self, call: UnaryCall) -> None:
        """The client has reset the stream of a call, or it closed."""
        self.forget(call, None)
        self._release(call)

    def forget(self, call: UnaryCall, status: Status | None) -> None:
        """The call is over: nothing about it is kept but what its holder has."""
        call.answered = True
        self._streams.pop(call.stream_id, None)
        shared = self._shared
        shared.calls_live -= 1
        if call.deadline is not None:
            shared.deadlines.remove(call.deadline, call)
        if call.observer is not None:
            tell(call, status)

    def close(self) -> None:
        """The connection is over."""
        self.parked.clear()


class ChargedUnaryCalls(UnaryCalls):
    """As `UnaryCalls`, on a server that knows its clients: what they send and get is charged.

    A class of its own, so that a server without an authenticator does not ask for each call.
    """

    __slots__ = ("_authenticator",)

    def __init__(self, authenticator: Authenticator, *parts: Any) -> None:
        """``parts`` are those of `UnaryCalls`."""
        super().__init__(*parts)
        self._authenticator = authenticator

    def dispatch(self, call: UnaryCall, data: bytes) -> None:
        """Charge for a request, decode it, and run the handler of its method."""
        self._authenticator.charge(call.client, 0, len(data))
        super().dispatch(call, data)

    def reply(self, call: UnaryCall, body: bytes) -> None:
        """Charge for the response message of an unanswered call, and queue it."""
        self._authenticator.charge(call.client, 0, len(body))
        super().reply(call, body)


def unary_calls_of(shared: SharedState, *parts: Any) -> UnaryCalls:
    """The unary calls of a connection, of the kind that its server needs."""
    if shared.authenticator is None:
        return UnaryCalls(*parts)
    return ChargedUnaryCalls(shared.authenticator, *parts)
