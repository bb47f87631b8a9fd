"""One call of a grpclib service, as the protocol sees it.

`StreamCall` cuts the request's bytes into messages and queues the answer. It never waits. The
handler uses `dbos_actors.rpc.server.stream.ServerStream`, which waits until a `StreamCall` has a
message to take or room to send.

A call knows its connection as a `StreamResponder` only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.call_states import CallEvent, CallState, next_state
from dbos_actors.rpc.server.containment import Observer, chained
from dbos_actors.rpc.server.handover import Handover
from dbos_actors.rpc.server.interceptors import StreamHandler
from dbos_actors.rpc.wire.compression import accepts_gzip, compress
from dbos_actors.rpc.wire.framing import (
    PREFIX_BYTES,
    FramingError,
    MessageReader,
    MessageTooLargeError,
    frame,
)
from dbos_actors.rpc.wire.http2 import Headers, header_block_bytes
from dbos_actors.rpc.wire.metadata import MetadataError
from dbos_actors.rpc.wire.status import (
    RESPONSE_HEADERS,
    RESPONSE_HEADERS_GZIP,
    Fields,
    status_fields,
)

# Looking a member up costs as much as a whole small function.
_RUNNING: Final = CallState.RUNNING
_ANSWERING: Final = CallState.ANSWERING
_OVER: Final = CallState.OVER

_INFLATED_AT_ONCE_BYTES: Final = 1024 * 1024
"""A handler that asks for many messages gets no more of them once these have come out of them."""


@dataclass(frozen=True, slots=True)
class StreamMethod:
    """How a method of a grpclib service is served."""

    path: str
    handler: StreamHandler
    client_streaming: bool
    server_streaming: bool
    decode: Callable[[bytes], Any]
    request_type: type
    reply_type: type
    is_open: bool = False
    """Whether it needs no authentication; see `dbos_actors.rpc.server.strangers`."""


class StreamResponder(Protocol):
    """What a call of a grpclib service knows of its connection."""

    @property
    def peer(self) -> str:
        """The client, such as ``ipv4:127.0.0.1:50312``."""
        ...

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The certificate by which the client has authenticated itself, with mutual TLS."""
        ...

    @property
    def header_bytes_max(self) -> int:
        """Size of a header block that the client accepts."""
        ...

    def messages_taken(self, call: StreamCall, count: int, size: int) -> None:
        """The handler took so many messages, of so many bytes as sent, prefixes included."""
        ...

    def quota_delay_s(self, call: StreamCall, now_s: float) -> float:
        """How long the call waits before it takes or sends more, for its client's quota."""
        ...

    def inflate(self, call: StreamCall, body: bytes) -> bytes:
        """Decompress a message for a handler. Raises `grpclib.GRPCError`."""
        ...

    def release_inflated(self, call: StreamCall) -> None:
        """The handler has done with the decompressed messages that it took."""
        ...

    def can_send(self, call: StreamCall, size: int) -> bool:
        """Whether a message of so many bytes may be queued; if not, ``on_change`` will tell."""
        ...

    def send_headers(self, call: StreamCall, fields: Fields) -> None:
        """Queue the response headers of a call that is not over."""
        ...

    def send(self, call: StreamCall, framed: bytes) -> None:
        """Queue a framed message of a call that is not over."""
        ...

    def end_stream(self, call: StreamCall, status: Status, fields: Fields) -> None:
        """Queue the status of a call that is not over."""
        ...

    def end_with_body(
        self, call: StreamCall, status: Status, head: Fields | None, body: bytes
    ) -> None:
        """Likewise, in a protocol that has the status in its body: what is left of the answer.

        ``head``: the response headers, if they are not queued yet.
        """
        ...

    def cancel_stream(self, call: StreamCall) -> None:
        """Reset the stream of a call that is not over."""
        ...

    def stream_finished(self, call: StreamCall) -> None:
        """The handler of a call has returned."""
        ...


class StreamCall:
    """The protocol's half of one call.

    `dbos_actors.rpc.server.call_states` has the table of its states.
    """

    __slots__ = (
        "_responder",
        "accepts_gzip",
        "client",
        "deadline",
        "encoding",
        "failure",
        "handover",
        "headers",
        "inflated_bytes",
        "is_message_compressed",
        "message_bytes",
        "method",
        "observer",
        "on_change",
        "on_over",
        "reader",
        "request_ended",
        "state",
        "stream_id",
        "unacknowledged",
    )

    def __init__(
        self,
        responder: StreamResponder,
        stream_id: int,
        method: StreamMethod,
        headers: Headers,
        *,
        limit: int,
    ) -> None:
        self._responder = responder
        self.stream_id = stream_id
        self.method = method
        self.headers = headers
        self.client: Hashable | None = None
        """As `UnaryCall.client`."""
        self.deadline: float | None = None
        self.encoding: bytes | None = None
        """The request's ``grpc-encoding``; None: identity."""
        self.accepts_gzip = False
        """Whether responses may be compressed: the client said so, and the server is set to, or
        the handler has asked for it before the headers were sent."""
        self.reader = MessageReader(limit)
        self.is_message_compressed = False
        """Whether the request message that was taken last came compressed."""
        self.inflated_bytes = 0
        """Of the decompressed messages that the handler took last."""
        self.unacknowledged = 0
        self.message_bytes = 0
        """Size of the message being uploaded, once it has room of its own; else 0."""
        self.request_ended = False
        self.failure: GRPCError | None = None
        """Why no further message can be taken."""
        self.handover = Handover()
        self.state = CallState.RECEIVING
        self.on_change: Callable[[], None] = _nothing
        """Called when there may be more to take, or room to send, or the call is over."""
        self.on_over: Callable[[], None] | None = None
        """Called when the call is over. None: no handler has to be told."""
        self.observer: Observer | None = None

    def happened(self, event: CallEvent) -> CallState:
        """Move to the state that an event leads to; the state before. Raises `CallStateError`."""
        before = self.state
        self.state = next_state(before, event)
        return before

    @property
    def over(self) -> bool:
        """Whether the status is queued, the stream was reset, or the client has gone."""
        return self.state >= _OVER

    @property
    def handling(self) -> bool:
        """Whether a handler was started, and has not returned."""
        return _RUNNING <= self.state <= _OVER

    @property
    def headers_sent(self) -> bool:
        """Whether the response headers of a call that is not over are queued."""
        return self.state is _ANSWERING

    @property
    def due_bytes(self) -> int:
        """Bytes of the request to acknowledge when its message has room of its own.

        What came behind that message is acknowledged later, when it is taken.
        """
        return self.unacknowledged - max(0, self.reader.buffered_bytes - self.message_bytes)

    @property
    def peer(self) -> str:
        """Whose call it is."""
        return self._responder.peer

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """What the client proved to be, with mutual TLS."""
        return self._responder.peer_certificate

    @property
    def path(self) -> str:
        """The method's full path."""
        return self.method.path

    def when_answered(self, observer: Observer) -> None:
        """As `UnaryCall.when_answered`."""
        self.observer = chained(self.observer, observer)

    # -------------------------------------------------------------- requests

    def take(self) -> bytes | None:
        """The next request message, if it is complete. Raises `grpclib.GRPCError`."""
        bodies = self.take_many(1)
        return bodies[0] if bodies else None

    def take_many(self, count_max: int) -> list[bytes]:
        """The next request messages that are complete. Raises `grpclib.GRPCError`.

        What is wrong with one of them is raised once those before it are taken.
        """
        if self.failure is not None:
            raise self.failure
        if self.inflated_bytes:
            self._responder.release_inflated(self)
        if self.encoding is not None:
            return self._take_inflated(count_max)
        try:
            messages = self.reader.next_many(count_max)
        except FramingError as error:
            self.failure = framing_failure(error)
            raise self.failure from error
        if not messages:
            self._check_end()
            return []
        size = sum([PREFIX_BYTES + len(body) for _, body in messages])
        self._responder.messages_taken(self, len(messages), size)
        bodies: list[bytes] = []
        for compressed, body in messages:
            if compressed:
                self.failure = GRPCError(
                    Status.INTERNAL, "compressed message without grpc-encoding"
                )
                break
            bodies.append(body)
        if self.failure is not None and not bodies:
            raise self.failure
        return bodies

    def _take_inflated(self, count_max: int) -> list[bytes]:
        """One message after the other: those behind wait as they came, compressed."""
        bodies: list[bytes] = []
        taken_bytes = 0
        try:
            while len(bodies) < count_max and self.inflated_bytes < _INFLATED_AT_ONCE_BYTES:
                message = self.reader.next()
                if message is None:
                    break
                compressed, body = message
                taken_bytes += PREFIX_BYTES + len(body)
                bodies.append(self._responder.inflate(self, body) if compressed else body)
                self.is_message_compressed = compressed
        except FramingError as error:
            self.failure = framing_failure(error)
        except GRPCError as error:
            self.failure = error
        if taken_bytes:
            self._responder.messages_taken(self, len(bodies), taken_bytes)
        if not bodies:
            if self.failure is not None:
                raise self.failure
            self._check_end()
        return bodies

    def _check_end(self) -> None:
        if self.request_ended and self.reader.buffered_bytes:
            self.failure = GRPCError(Status.INTERNAL, "truncated request message")
            raise self.failure

    def quota_delay_s(self, now_s: float) -> float:
        """How long to wait before more is taken or sent, for the client's quota; 0: not at all."""
        return self._responder.quota_delay_s(self, now_s)

    def drop_request(self) -> int:
        """Forget what has come of the request and was not taken; how many bytes that was."""
        return self.reader.clear()

    # ------------------------------------------------------------- responses

    def can_send(self, size: int) -> bool:
        """Whether a message of so many bytes may be queued now."""
        return self._responder.can_send(self, size)

    def check_fits(self, fields: Fields) -> None:
        """Whether the client accepts a header block with these. Raises `MetadataError`."""
        size = header_block_bytes([*RESPONSE_HEADERS_GZIP, *status_fields(Status.UNKNOWN), *fields])
        limit = self._responder.header_bytes_max
        if size > limit:
            raise MetadataError(
                f"metadata of {size} bytes is larger than the client's limit of {limit} bytes"
            )

    def send_headers(self, fields: Fields, *, announce_gzip: bool = False) -> None:
        """Queue the initial metadata; ``announce_gzip``: messages may be compressed after it."""
        if announce_gzip:
            self.accepts_gzip = self.client_accepts_gzip
        self.happened(CallEvent.ANSWER)
        base = RESPONSE_HEADERS_GZIP if self.accepts_gzip else RESPONSE_HEADERS
        self._responder.send_headers(self, base + fields)

    @property
    def client_accepts_gzip(self) -> bool:
        """Whether the client has said that it does."""
        return accepts_gzip(dict(self.headers).get(b"grpc-accept-encoding"))

    def send(self, body: bytes, compress_bytes_min: int | None) -> None:
        """Queue a response message."""
        if self.accepts_gzip and compress_bytes_min is not None and len(body) >= compress_bytes_min:
            self._responder.send(self, frame(compress(body), compressed=True))
        else:
            self._responder.send(self, frame(body))

    def end(
        self, status: Status, message: str | None = None, fields: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Queue the status: trailers, or the only headers. No-op once over."""
        if not self.over:
            self._responder.end_stream(self, status, [*status_fields(status, message), *fields])

    def cancel(self) -> None:
        """Reset the stream: the client gets no status. No-op once over."""
        if not self.over:
            self._responder.cancel_stream(self)

    def expire(self) -> None:
        """The deadline has passed."""
        self.end(Status.DEADLINE_EXCEEDED, "deadline exceeded")

    def tell_over(self) -> None:
        """Tell the handler that the call is over, if it has not returned meanwhile."""
        if self.on_over is not None:
            self.on_over()
            self.on_change()

    def finished(self) -> None:
        """The handler has returned: it is told nothing more.

        What was to be told holds the call. Forgetting it frees both at once, without the garbage
        collector.
        """
        self.on_change = _nothing
        self.on_over = None
        self._responder.stream_finished(self)


def framing_failure(error: FramingError) -> GRPCError:
    """The status of a request that is no sequence of messages."""
    if isinstance(error, MessageTooLargeError):
        return GRPCError(Status.RESOURCE_EXHAUSTED, f"request {error}")
    return GRPCError(Status.INTERNAL, str(error))


def _nothing() -> None:
    pass
