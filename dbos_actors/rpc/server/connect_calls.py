"""The Connect calls of one connection: their requests, and the answers of unary ones.

A request of a unary method, with its body, is gathered here. When it is whole, it goes to the plain
function that serves the method, or, with a prefix like gRPC's, to the `StreamCalls` of the
connection. A streaming request needs nothing: `StreamCalls` reads it as it comes.

Memory for bodies is counted as it is for gRPC's requests (`flow_accounts`, `inflation`).
"""

from __future__ import annotations

from typing import Final, TypeAlias

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.connect_call import ConnectStreamCall, ConnectUnaryCall
from dbos_actors.rpc.server.containment import PASSING
from dbos_actors.rpc.server.flow_accounts import RequestAccount, ResponseAccount
from dbos_actors.rpc.server.inflation import Inflation
from dbos_actors.rpc.server.outbox import Outbox
from dbos_actors.rpc.server.responders import UnaryAnswers
from dbos_actors.rpc.server.shutdown import Shutdown
from dbos_actors.rpc.server.stream_calls import StreamCalls
from dbos_actors.rpc.server.unary import GZIP_ALWAYS
from dbos_actors.rpc.server.unary_calls import UnaryCalls
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.status import INTERNAL_ERROR, Fields

log = get_logger(__name__)

_OK: Final = Status.OK

ConnectCall: TypeAlias = ConnectUnaryCall | ConnectStreamCall


class ConnectCalls(UnaryAnswers):
    """The `UnaryResponder` of the unary ones, and what gathers the bodies of all."""

    __slots__ = (
        "_compress_bytes_min",
        "_inflation",
        "_message_max",
        "_responses",
        "_shutdown",
        "_stream_calls",
        "_unary",
        "_unsent_free",
        "_window",
    )

    def __init__(
        self,
        outbox: Outbox,
        requests: RequestAccount,
        responses: ResponseAccount,
        inflation: Inflation,
        shutdown: Shutdown,
        *,
        unary: UnaryCalls,
        stream_calls: StreamCalls,
    ) -> None:
        limits = outbox.shared.limits
        super().__init__(outbox, requests)
        self._responses = responses
        self._inflation = inflation
        self._shutdown = shutdown
        self._unary = unary
        self._stream_calls = stream_calls
        self._compress_bytes_min = limits.compress_bytes_min
        self._message_max = limits.message_bytes_max
        self._unsent_free = limits.unsent_bytes_free
        self._window = limits.http2.stream_window_bytes

    # ------------------------------------------------------------- requests

    def feed(self, call: ConnectCall, data: bytes, *, end_stream: bool) -> None:
        """Take a part of a request."""
        if isinstance(call, ConnectStreamCall) and call.format.is_streaming:
            self._stream_calls.feed(call, data, end_stream=end_stream)
            return
        requests = self._requests
        call.unacknowledged += len(data)
        if call.query_message is not None:
            if data:
                call.end(Status.INVALID_ARGUMENT, "a GET has no body")
            elif end_stream:
                call.request_ended = True
                self.run(call, call.query_message)
            return
        if not requests.hold(len(data)):
            self._shutdown.calm_down("too much unread request data")
        if call.buffer is None:
            call.buffer = data
        else:
            if type(call.buffer) is bytes:
                call.buffer = bytearray(call.buffer)
            call.buffer += data
        call.request_ended = end_stream
        size, limit = len(call.buffer), self._limit_of(call)
        if size > limit:
            text = f"request message is larger than the limit of {limit} bytes"
            call.end(Status.RESOURCE_EXHAUSTED, text)
        elif end_stream:
            body = bytes(call.buffer)
            self._release(call)
            self.run(call, body)
        elif size > self._window // 2:
            call.message_bytes = limit
            requests.upload(call, limit)

    def _limit_of(self, call: ConnectCall) -> int:
        return call.reader.limit if isinstance(call, ConnectStreamCall) else self._message_max

    def _charge(self, call: ConnectUnaryCall, size: int) -> None:
        """Count what the call's client has sent, or was sent."""
        if call.client is not None:
            assert self._shared.authenticator is not None
            self._shared.authenticator.charge(call.client, 0, size)

    def run(self, call: ConnectCall, body: bytes) -> None:
        """The request of a unary call is whole: handle it."""
        if isinstance(call, ConnectStreamCall):
            # The prefix that `StreamCall` expects; these bytes are not the client's.
            self._requests.hold(len(body) + len(frame(b"")))
            call.reader.feed(frame(body, compressed=call.encoding is not None))
            call.request_ended = True
            self._stream_calls.start(call)
            return
        self._charge(call, len(body))
        if call.encoding is not None:
            try:
                body = self._inflation.inflate(call.encoding, body, self._message_max)
            except GRPCError as error:
                self.end(call, error.status, error.message)
                return
            call.is_request_compressed = True
            size = len(body)
            call.when_answered(lambda _: self._inflation.release(size))
        self._run_unary(call, body)

    def _run_unary(self, call: ConnectUnaryCall, body: bytes) -> None:
        method = call.method
        try:
            call.request = method.decode(body)
            method.handler(call)
        except PASSING:
            raise
        except BaseException as error:  # noqa: BLE001 - the failure of its call alone
            self.raised(call, error)

    # -------------------------------------------------------------- answers

    def reply(self, call: ConnectUnaryCall, body: bytes) -> None:
        """Queue the response message of an unanswered call."""
        try:
            limit = self._compress_bytes_min if call.accepts_gzip else None
            limit = 0 if call.accepts_gzip is GZIP_ALWAYS else limit
            head, answer = call.format.unary_answer(call.format.encode(body, limit))
        except Exception:  # noqa: BLE001 - a response that is not of its type: a handler's bug
            log_limited(log.exception, "response without JSON", path=call.path)
            self.end(call, Status.INTERNAL, INTERNAL_ERROR)
            return
        self._charge(call, len(answer))
        responses = self._responses
        unsent_bytes = responses.unsent_bytes + len(answer)
        if unsent_bytes > self._unsent_free and not responses.charge(unsent_bytes):
            self.end(call, Status.RESOURCE_EXHAUSTED, "too many unread responses")
            return
        responses.unsent_bytes = unsent_bytes
        self._finish(call, _OK, head, answer)

    def end(
        self,
        call: ConnectUnaryCall,
        status: Status,
        message: str | None = None,
        fields: Fields | None = None,
    ) -> None:
        """Answer with an error."""
        head, body = call.format.unary_error(status, message, (), fields or [])
        self._finish(call, status, head, body)

    def _finish(self, call: ConnectUnaryCall, status: Status, head: Fields, body: bytes) -> None:
        self._unary.forget(call, status)
        self._release(call)
        self._outbox.answer(call.stream_id, head, body, request_ended=call.request_ended)
