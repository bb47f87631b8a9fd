"""Calls of the Connect protocol, which `dbos_actors.rpc.server` handles like gRPC's.

Both kinds of calls exist twice: `UnaryCall` for methods served by plain functions, and `StreamCall`
for methods of grpclib services. The classes here are those, with the answer in Connect's form:

    ConnectUnaryCall     a unary method served by a plain function
    ConnectStreamCall    any method of a grpclib service; its `format` says whether it is unary

The body of a unary call is its message, without a prefix. It is gathered in the call's ``buffer``.
The messages of a streaming call have the prefix that gRPC's have, so a `StreamCall` reads them.

The answer of a unary call has its status in the first line and its trailers among the headers. So
a `ConnectStreamCall` that is unary keeps what the handler sends until the call ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from grpclib.const import Status

from dbos_actors.rpc.connect import answers
from dbos_actors.rpc.connect.codes import CODES
from dbos_actors.rpc.connect.requests import Codec, ConnectRequest
from dbos_actors.rpc.server.call_states import CallEvent
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import GZIP_ALWAYS, UnaryCall
from dbos_actors.rpc.wire.compression import GZIP, compress
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.status import Fields

ERROR_TYPE: Final = b"application/json"


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How one call is answered."""

    content_type: bytes
    is_streaming: bool
    to_json: Callable[[bytes], bytes] | None
    """From a serialised message to its JSON; None: messages go out as they are."""
    takes_gzip: bool
    """Whether the client has said so."""
    cors: Fields
    """Headers for the page that makes the call."""

    @classmethod
    def of(
        cls,
        request: ConnectRequest,
        *,
        to_json: Callable[[bytes], bytes] | None,
        cors: Fields,
    ) -> AnswerFormat:
        """The format that a request asks for."""
        return cls(
            content_type=request.content_type,
            is_streaming=request.is_streaming,
            to_json=to_json if request.codec is Codec.JSON else None,
            takes_gzip=request.accepts_gzip,
            cors=cors,
        )

    def encode(self, message: bytes, compress_bytes_min: int | None) -> tuple[bytes, bool]:
        """A serialised message in the call's codec, and whether it was compressed.

        It is if it has at least so many bytes; None: never.
        """
        body = message if self.to_json is None else self.to_json(message)
        if compress_bytes_min is not None and len(body) >= compress_bytes_min:
            return compress(body), True
        return body, False

    def unary_answer(
        self,
        encoded: tuple[bytes, bool],
        headers: Sequence[tuple[bytes, bytes]] = (),
        trailers: Sequence[tuple[bytes, bytes]] = (),
    ) -> tuple[Fields, bytes]:
        """The head and body of a unary call's response, whose message `encode` has made."""
        body, is_compressed = encoded
        fields = [*self.cors, *headers, *answers.as_trailers(trailers)]
        if is_compressed:
            fields.append((b"content-encoding", GZIP))
        return answers.head(200, self.content_type, with_length(fields, body)), body

    def unary_error(
        self,
        status: Status,
        message: str | None,
        headers: Sequence[tuple[bytes, bytes]],
        trailers: Sequence[tuple[bytes, bytes]],
    ) -> tuple[Fields, bytes]:
        """The head and body of a unary call's error."""
        body = answers.error_body(status, message, trailers)
        fields = [*self.cors, *headers, *answers.as_trailers(trailers)]
        http_status = CODES[status][1]
        return answers.head(http_status, ERROR_TYPE, with_length(fields, body)), body

    def stream_head(
        self, headers: Sequence[tuple[bytes, bytes]] = (), *, announce_gzip: bool = False
    ) -> Fields:
        """The head of a streaming call's response, also of one that has failed."""
        fields = [*self.cors, *headers]
        if announce_gzip:
            fields.append((b"connect-content-encoding", GZIP))
        return answers.head(200, self.content_type, fields)

    def error(
        self, status: Status, message: str | None, trailers: Sequence[tuple[bytes, bytes]] = ()
    ) -> tuple[Fields, bytes]:
        """The head and body of a whole response that tells of an error alone."""
        if self.is_streaming:
            return self.stream_head(), answers.end_of_stream(status, message, trailers)
        return self.unary_error(status, message, (), trailers)


def with_length(fields: Fields, body: bytes) -> Fields:
    """The fields and the length of the body."""
    return [*fields, (b"content-length", b"%d" % len(body))]


class ConnectUnaryCall(UnaryCall):
    """A Connect call of a unary method that is served by a plain function."""

    __slots__ = ("format", "query_message")

    format: AnswerFormat

    query_message: bytes | None
    """The request of a GET; None: it is in the body."""

    def compress_reply(self, compress: bool) -> None:
        """As `UnaryCall.compress_reply`."""
        self.accepts_gzip = GZIP_ALWAYS if compress and self.format.takes_gzip else False


class ConnectStreamCall(StreamCall):
    """A Connect call of a method of a grpclib service."""

    __slots__ = ("_kept_headers", "_kept_message", "buffer", "format", "query_message")

    format: AnswerFormat

    buffer: bytes | bytearray | None
    """What has come of the request's body, if the method is unary."""

    query_message: bytes | None
    """As `ConnectUnaryCall.query_message`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kept_headers: Fields = []
        self._kept_message: tuple[bytes, bool] | None = None
        self.buffer: bytes | bytearray | None = None

    @property
    def client_accepts_gzip(self) -> bool:
        """Whether the client has said that it does."""
        return self.format.takes_gzip

    def send_headers(self, fields: Fields, *, announce_gzip: bool = False) -> None:
        """Queue the initial metadata, or keep it."""
        if announce_gzip:
            self.accepts_gzip = self.client_accepts_gzip
        self.happened(CallEvent.ANSWER)
        if self.format.is_streaming:
            head = self.format.stream_head(fields, announce_gzip=self.accepts_gzip)
            self._responder.send_headers(self, head)
        else:
            self._kept_headers = fields

    def send(self, body: bytes, compress_bytes_min: int | None) -> None:
        """Queue a response message, or keep it."""
        limit = compress_bytes_min if self.accepts_gzip else None
        message, is_compressed = self.format.encode(body, limit)
        if self.format.is_streaming:
            self._responder.send(self, frame(message, compressed=is_compressed))
        else:
            self._kept_message = message, is_compressed

    def drop_request(self) -> int:
        """Forget what has come of the request and was not taken; how many bytes that was."""
        buffer, self.buffer = self.buffer, None
        return super().drop_request() + (0 if buffer is None else len(buffer))

    def end(
        self, status: Status, message: str | None = None, fields: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Queue the status, and what was kept. No-op once over."""
        if self.over:
            return
        trailers = [*fields]
        answer = self.format
        if answer.is_streaming:
            head = None if self.headers_sent else answer.stream_head()
            body = answers.end_of_stream(status, message, trailers)
        elif status is Status.OK and self._kept_message is not None:
            head, body = answer.unary_answer(self._kept_message, self._kept_headers, trailers)
        else:
            head, body = answer.unary_error(status, message, self._kept_headers, trailers)
        self._kept_message = None
        self._responder.end_with_body(self, status, head, body)
