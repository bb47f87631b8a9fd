"""Which requests of a connection become calls, and which are refused when their headers come.

`Admission.begin` looks at the headers of each request, in this order:
1. Is it a gRPC call of a method of this server? If not, it gets an HTTP error or UNIMPLEMENTED.
   What does not even say that it is gRPC goes to `web_requests`, which does the other steps for
   calls of the Connect protocol.
2. Whose call is it, and may they make it? One that needs authentication and has none, or that its
   client may not make, is refused. It counts as live nowhere, and nothing of its message is kept.
   Open methods have bounds instead.
3. Is there a place for it? Too many live calls, an overloaded server, or a deadline that has
   passed end the call at once.

What is admitted becomes a `UnaryCall` or a `StreamCall`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeAlias, TypeVar

from grpclib.const import Status

from dbos_actors.rpc.server.authentication import Refusal
from dbos_actors.rpc.server.excess import REFUSAL_S, ExcessLine
from dbos_actors.rpc.server.outbox import Discarded, Outbox
from dbos_actors.rpc.server.routes import Route
from dbos_actors.rpc.server.stream_call import StreamCall, StreamMethod
from dbos_actors.rpc.server.stream_calls import StreamCalls
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.server.unary_calls import UnaryCalls
from dbos_actors.rpc.wire.compression import ACCEPTED, GZIP, IDENTITY, accepts_gzip
from dbos_actors.rpc.wire.http2 import Headers
from dbos_actors.rpc.wire.metadata import MetadataError, decode_timeout
from dbos_actors.rpc.wire.status import RESPONSE_HEADERS, Fields, status_fields

_GRPC = b"application/grpc"
_CONTENT_TYPES = frozenset({_GRPC, b"application/grpc+proto"})

OtherRequests: TypeAlias = Callable[[int, Headers, dict[bytes, bytes], bool, float], None]
"""Takes what `Admission.begin` takes, and the headers as a dict."""

_Call: TypeAlias = UnaryCall | StreamCall
_StreamCallT = TypeVar("_StreamCallT", bound=StreamCall)

_ANYBODY: Final = "anybody"
"""The client of a server that authenticates none."""

_STRANGER: Final = Refusal(Status.UNAUTHENTICATED, "valid credentials are required")
_REVOKED: Final = "the credentials of this call are no longer valid"
_TOO_MANY_OPEN: Final = Refusal(
    Status.RESOURCE_EXHAUSTED, "too many calls that need no authentication on this connection"
)
_TOO_MANY: Final = Refusal(Status.RESOURCE_EXHAUSTED, "too many calls")
_LATE: Final = Refusal(Status.DEADLINE_EXCEEDED, "deadline exceeded on arrival")
_OVERLOADED: Final = Refusal(
    Status.RESOURCE_EXHAUSTED, "the server is overloaded: calls wait too long; try again later"
)


class Admission:
    """The requests of one connection, and the client that it is known to belong to.

    The connection is among the server's strangers until a client was authenticated on it.
    """

    __slots__ = (
        "_compresses",
        "_is_gated",
        "_message_max",
        "_outbox",
        "_shared",
        "_stream_calls",
        "_streams",
        "_unary",
        "certificate_names",
        "client",
        "excess",
        "other_requests",
    )

    other_requests: OtherRequests
    """Takes the requests that do not say that they are gRPC."""

    client: Hashable | None
    """Who was authenticated last. While nobody was, the connection is a stranger."""

    excess: ExcessLine | None
    """Where the connection stands, since a call on it was refused for its client's quota."""

    certificate_names: tuple[str, ...]
    """Of the client's certificate; none without mutual TLS."""

    def __init__(self, outbox: Outbox, unary: UnaryCalls, stream_calls: StreamCalls) -> None:
        limits = outbox.shared.limits
        self._outbox = outbox
        self._shared = outbox.shared
        self._streams = outbox.streams
        self._unary = unary
        self._stream_calls = stream_calls
        self._compresses = limits.compress_bytes_min is not None
        self._message_max = limits.message_bytes_max
        self.other_requests = _nobody
        self.client = None
        self.certificate_names = ()
        self.excess = None
        # Whether the next call of a method that is not open has to be authenticated.
        self._is_gated = True
        self._shared.strangers.add(self)

    @property
    def is_busy(self) -> bool:
        """Whether the connection has calls, or handlers that outlive theirs."""
        return bool(self._streams) or self._stream_calls.handlers > 0

    def dismiss(self) -> None:
        """Close the connection at once: others need its place."""
        self._outbox.driver.dismiss()

    def begin(self, stream_id: int, headers: Headers, end_stream: bool, now_s: float) -> None:
        """Make a call of a request, or refuse it."""
        fields, shared = dict(headers), self._shared
        method = shared.routes.get(fields.get(b":path", b""))
        encoding = fields.get(b"grpc-encoding")
        if (
            method is None
            or fields[b":method"] != b"POST"
            or fields.get(b"content-type") not in _CONTENT_TYPES
            or fields.get(b"te") != b"trailers"
            or encoding is not None
        ):
            if self._is_no_call(stream_id, headers, fields, end_stream, now_s):
                return
            encoding = None if encoding == IDENTITY else encoding
        deadline_s = None
        if (timeout := fields.get(b"grpc-timeout")) is not None:
            try:
                deadline_s = now_s + decode_timeout(timeout)
            except MetadataError as error:
                self._outbox.refuse(stream_id, _bad_request(error), request_ended=end_stream)
                return
        client: Any = None
        if self._is_gated:
            client = self.identify(method, fields, now_s)
            if type(client) is Refusal:
                self._refuse(stream_id, fields, client, end_stream)
                return
        if type(method) is UnaryMethod:
            # The dict unless it lacks a repeated field: the garbage collector walks what is kept.
            kept = fields if len(fields) == len(headers) else headers
            call: _Call = UnaryCall(self._unary, stream_id, method, kept, deadline_s, client)
        else:
            assert type(method) is StreamMethod
            if method.is_open and (refusal := self.open_refusal()) is not None:
                self._refuse(stream_id, fields, refusal, end_stream)
                return
            call = self.make_stream(StreamCall, stream_id, method, headers)
            call.deadline, call.client = deadline_s, client
        if deadline_s is not None:
            shared.deadlines.add(deadline_s, call)
        if encoding is not None:
            call.encoding = encoding
        if self._compresses:
            call.accepts_gzip = accepts_gzip(fields.get(b"grpc-accept-encoding"))
        self._streams[stream_id] = call
        shared.calls_live += 1
        shared.calls_total += 1
        if (
            shared.calls_live > shared.calls_live_max
            or shared.shedding
            or (deadline_s is not None and deadline_s <= now_s)
        ) and self._has_no_place(call, end_stream, now_s):
            return
        if type(call) is StreamCall:
            self._stream_calls.begin(call, end_stream=end_stream)
        elif end_stream:
            self._unary.feed(call, b"", end_stream=True)  # type: ignore[arg-type]

    def _has_no_place(self, call: _Call, request_ended: bool, now_s: float) -> bool:
        """End a call that is counted already, if there is no place for it; whether that is so."""
        refusal = self._find_place(call, now_s)
        if refusal is None:
            return False
        call.request_ended = request_ended
        call.end(refusal.status, refusal.message)
        return True

    def _is_no_call(
        self,
        stream_id: int,
        headers: Headers,
        fields: dict[bytes, bytes],
        end_stream: bool,
        now_s: float,
    ) -> bool:
        """Have a request that is no gRPC call of this server dealt with; whether it is none."""
        if fields.get(b"content-type", b"")[: len(_GRPC)].lower() != _GRPC:
            self.other_requests(stream_id, headers, fields, end_stream, now_s)
            return True
        known = fields.get(b":path", b"") in self._shared.routes
        refusal = _refusal(fields, known=known, is_http2=self._outbox.is_http2)
        if refusal is None:
            return False
        self._outbox.refuse(stream_id, refusal, request_ended=end_stream)
        return True

    def admit(self, call: _Call, now_s: float) -> Refusal | None:
        """Count a call that another protocol has made; if not None, it has to be ended so."""
        shared = self._shared
        if call.deadline is not None:
            shared.deadlines.add(call.deadline, call)
        self._streams[call.stream_id] = call
        shared.calls_live += 1
        shared.calls_total += 1
        return self._find_place(call, now_s)

    def _find_place(self, call: _Call, now_s: float) -> Refusal | None:
        """Why there is no place for a call that is counted already; None: there is one."""
        shared = self._shared
        if shared.calls_live > shared.calls_live_max:
            return _TOO_MANY
        if shared.shedding and isinstance(call, UnaryCall):
            shared.shed_total += 1
            return _OVERLOADED
        if call.deadline is not None and call.deadline <= now_s:
            return _LATE
        return None

    def identify(
        self, method: Route | None, fields: dict[bytes, bytes], now_s: float
    ) -> Hashable | Refusal | None:
        """Find out whose call it is; if it is nobody's, or not for them, why it is refused.

        Returns the client, None if nobody has to be known, or the refusal.
        """
        if type(method) is StreamMethod and method.is_open:
            return None
        authenticator = self._shared.authenticator
        if authenticator is None:
            self._know(_ANYBODY)
            self._is_gated = False
            return None
        client = authenticator.identify(fields, self.certificate_names)
        if client is None:
            self._shared.calls_unauthenticated += 1
            return _STRANGER
        if client is not self.client:
            self._know(client)
        denied = authenticator.admit(client, fields[b":path"], now_s)
        if denied is None:
            return client
        self._count_denied(client, denied, now_s)
        return denied

    def excess_line(self, now_s: float) -> ExcessLine | None:
        """Where the connection has to stand before it reads: in its client's line, if it owes."""
        line = self.excess
        if line is None:
            line = self._shared.excess.lines.get(self.client)
            if line is not None and line.is_free(now_s):
                return None
        return line

    def _count_denied(self, client: Hashable, refusal: Refusal, now_s: float) -> None:
        shared = self._shared
        if refusal.status is Status.RESOURCE_EXHAUSTED:
            shared.excess_total += 1
            self.excess = shared.excess.line_of(client)
            self.excess.owe(REFUSAL_S, now_s)
        else:
            shared.calls_denied += 1

    def _know(self, client: Hashable) -> None:
        """The connection's client has shown who it is."""
        if self.client is None:
            shared = self._shared
            shared.strangers.discard(self)
            if self._stream_calls.open_calls:
                for call in self._streams.values():
                    if isinstance(call, StreamCall) and call.method.is_open:
                        shared.open_calls_of_strangers.discard(call)
                        shared.open_calls_of_clients.add(call)
        self.client = client

    def reauthenticate(self) -> None:
        """End the calls whose client the authenticator knows, or allows them, no longer."""
        shared = self._shared
        authenticator = shared.authenticator
        if authenticator is None:
            return
        if self.client is not None and not authenticator.is_valid(self.client):
            self.client = None
            shared.strangers.add(self)
        for call in list(self._streams.values()):
            if isinstance(call, Discarded) or (
                isinstance(call, StreamCall) and call.method.is_open
            ):
                continue
            client = authenticator.identify(dict(call.headers), self.certificate_names)
            if client is None:
                call.end(Status.UNAUTHENTICATED, _REVOKED)
            elif denial := authenticator.denial(client, call.path.encode("ascii", "replace")):
                call.end(Status.PERMISSION_DENIED, denial)

    def close(self) -> None:
        """The connection is over."""
        self._shared.strangers.discard(self)
        self.other_requests = _nobody  # it knows this object

    def open_refusal(self) -> Refusal | None:
        """Why a call of an open method may not be made."""
        if self._stream_calls.open_calls >= self._shared.limits.open_calls_connection_max:
            return _TOO_MANY_OPEN
        return None

    def make_stream(
        self, kind: type[_StreamCallT], stream_id: int, method: StreamMethod, headers: Headers
    ) -> _StreamCallT:
        """A call of a grpclib service that may be made."""
        shared, calls = self._shared, self._stream_calls
        limit = self._message_max
        if method.is_open:
            limit = min(limit, shared.limits.open_message_bytes_max)
        call = kind(calls, stream_id, method, headers, limit=limit)
        if method.is_open:
            calls.open_calls += 1
            shared.calls_live_max += 1
            if self.client is None:
                shared.open_calls_of_strangers.add(call)
            else:
                shared.open_calls_of_clients.add(call)
        shared.streams_live += 1
        calls.live += 1
        return call

    def _refuse(
        self, stream_id: int, fields: dict[bytes, bytes], refusal: Refusal, request_ended: bool
    ) -> None:
        """Refuse a call of a known method before there is anything of it."""
        self.count_refused(fields[b":path"].decode("ascii"), refusal.status)
        headers = RESPONSE_HEADERS + refusal.fields
        self._outbox.refuse(stream_id, headers, request_ended=request_ended)

    def count_refused(self, path: str, status: Status) -> None:
        """A call of a known method is refused before there is anything of it."""
        self._shared.calls_total += 1
        for refused in self._shared.refused:
            refused(path, status)


def _nobody(
    stream_id: int, headers: Headers, fields: dict[bytes, bytes], end_stream: bool, now_s: float
) -> None:
    """The connection has no part for other requests, or is over."""


def _refusal(fields: dict[bytes, bytes], *, known: bool, is_http2: bool) -> Fields | None:
    """Why a request is not a gRPC call of this server; None: it is, in a rarer spelling."""
    if not is_http2:
        return _http_error(b"505", Status.INTERNAL, "gRPC needs HTTP/2")
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


def _bad_request(error: Exception) -> Fields:
    return _http_error(b"400", Status.INTERNAL, str(error))


def _http_error(http_status: bytes, status: Status, message: str) -> Fields:
    return [
        (b":status", http_status),
        (b"content-type", b"application/grpc"),
        *status_fields(status, message),
    ]
