"""A unary call that is served by a plain function.

The handler gets a `UnaryCall` and answers it by calling `UnaryCall.reply` or `UnaryCall.fail`.
No task belongs to the call. The handler may answer before it returns, or keep the call and have
any task of the same Trio thread answer it later. Only the first answer counts. Later ones are
ignored, because by then the client has its answer, was told DEADLINE_EXCEEDED, or has gone.

A call knows its connection as a `UnaryResponder` only: who the client is, and how to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.containment import Observer, chained
from dbos_actors.rpc.wire.compression import accepts_gzip
from dbos_actors.rpc.wire.http2 import Headers
from dbos_actors.rpc.wire.metadata import Metadata, MetadataError, decode_metadata

GZIP_ALWAYS: Final = "always"
"""`UnaryCall.accepts_gzip` of a call whose reply is compressed whatever its size is."""


class Message(Protocol):
    """A response message: anything that serialises itself."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """The message as bytes."""
        ...


@dataclass(frozen=True, slots=True)
class UnaryMethod:
    """How a unary method is served.

    ``handler`` is called from the connection's read loop and must not block; what it
    raises is logged and answered INTERNAL, except `grpclib.GRPCError`, which is answered
    as it says. ``decode`` makes the request message of its bytes; what it raises is
    answered INTERNAL as well.
    """

    handler: Callable[[UnaryCall], None]
    decode: Callable[[bytes], Any]

    in_band: Callable[[Exception], bytes | None] | None = None
    """The serialised response that tells of an error, for methods whose responses have a
    place for some; None for an error that is to become a status."""

    request_type: type | None = None
    """The class of request messages; with it and ``reply_type``, Connect can call by JSON."""

    reply_type: type | None = None
    """The class of response messages."""


class UnaryResponder(Protocol):
    """What a unary call knows of its connection; each has its own kind of calls."""

    @property
    def peer(self) -> str:
        """The client, such as ``ipv4:127.0.0.1:50312``."""
        ...

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The certificate by which the client has authenticated itself, with mutual TLS."""
        ...

    def reply(self, call: Any, body: bytes) -> None:
        """Queue the response message of a call that is not answered."""
        ...

    def fail(self, call: Any, error: Exception) -> None:
        """Queue the status of an error for a call that is not answered."""
        ...

    def expire(self, call: Any) -> None:
        """Queue DEADLINE_EXCEEDED for a call that is not answered."""
        ...

    def end(self, call: Any, status: Status, message: str | None = None) -> None:
        """Queue a status for a call that is not answered."""
        ...


class UnaryCall:
    """One unary call. Made by the transport only.

    Its public attributes without a docstring of their own are the transport's: what of
    the request has come so far, and how it is encoded.
    """

    __slots__ = (
        "_headers",
        "_is_request_compressed",
        "_metadata",
        "_responder",
        "accepts_gzip",
        "answered",
        "buffer",
        "client",
        "deadline",
        "encoding",
        "message_bytes",
        "method",
        "observer",
        "request",
        "request_ended",
        "stream_id",
        "unacknowledged",
    )

    request: Any
    """The decoded request message."""

    client: Hashable | None
    """Whom the server's `Authenticator` took the caller for; None: the server has none."""

    deadline: float | None
    """When the client gives up, on `Clock.monotonic_s`'s scale; None: never."""

    answered: bool
    """Whether it was replied to, failed, expired, cancelled by the client or disconnected."""

    def __init__(  # noqa: PLR0917 - made for every call, and names cost time
        self,
        responder: UnaryResponder,
        stream_id: int,
        method: UnaryMethod,
        headers: Headers | dict[bytes, bytes],
        deadline: float | None,
        client: Hashable | None = None,
    ) -> None:
        self._responder = responder
        self.method = method
        self._headers = headers
        self._metadata: Metadata | None = None
        self.buffer: bytes | bytearray | None = None
        self.message_bytes = 0
        self.unacknowledged = 0
        self.stream_id = stream_id
        self.client = client
        self.deadline = deadline
        self.answered = False
        self.observer: Observer | None = None
        self.request = None
        self.request_ended = False
        self.encoding: bytes | None = None
        self.accepts_gzip: bool | str = False

    @property
    def is_request_compressed(self) -> bool:
        """Whether the request message came compressed."""
        return getattr(self, "_is_request_compressed", False)

    @is_request_compressed.setter
    def is_request_compressed(self, is_compressed: bool) -> None:
        self._is_request_compressed = is_compressed

    def compress_reply(self, compress: bool) -> None:
        """Have the reply compressed or not, whatever `ServerLimits.compress_bytes_min` says.

        A client that does not accept gzip gets it as it is.
        """
        takes_gzip = compress and accepts_gzip(self.header(b"grpc-accept-encoding"))
        self.accepts_gzip = GZIP_ALWAYS if takes_gzip else False

    @property
    def due_bytes(self) -> int:
        """Bytes of the request to acknowledge when its message has room of its own."""
        return self.unacknowledged

    @property
    def metadata(self) -> Metadata:
        """The call's custom metadata, decoded when first asked for.

        Raises `grpclib.GRPCError` (INTERNAL) if a ``-bin`` value is malformed.
        """
        if self._metadata is None:
            try:
                self._metadata = decode_metadata(self.headers)
            except MetadataError as error:
                raise GRPCError(Status.INTERNAL, str(error)) from error
        return self._metadata

    @property
    def path(self) -> str:
        """The method's full path, such as ``/dbos.DBOS/GetAgent``."""
        return (self.header(b":path") or b"").decode("ascii", "replace")

    @property
    def headers(self) -> Headers:
        """As they came, pseudo-headers and metadata."""
        kept = self._headers
        return [*kept.items()] if isinstance(kept, dict) else kept

    def header(self, name: bytes) -> bytes | None:
        """The last field of that name, which is much cheaper than `metadata`."""
        kept = self._headers
        return (kept if isinstance(kept, dict) else dict(kept)).get(name)

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """What the client proved to be with mutual TLS (`ssl.SSLSocket.getpeercert`)."""
        return self._responder.peer_certificate

    @property
    def peer(self) -> str:
        """Whose call it is, such as ``ipv4:127.0.0.1:50312`` or ``unix:``."""
        return self._responder.peer

    def when_answered(self, observer: Observer) -> None:
        """Have ``observer`` called once with the status sent, or None if the client had gone.

        For interceptors, before they hand the call on. Observers are called in the order in
        which they were added; an error of one changes nothing for the others or the call.
        """
        earlier = self.observer
        self.observer = observer if earlier is None else chained(earlier, observer)

    def reply(self, message: Message | bytes) -> None:
        """Answer with a response message, or with one already serialised. No-op if answered."""
        if self.answered:
            return
        body = message if type(message) is bytes else message.SerializeToString()  # type: ignore[union-attr]
        self._responder.reply(self, body)

    def fail(self, error: Exception) -> None:
        """Answer with an error's status (`grpclib.GRPCError` as it says). No-op if answered."""
        if self.answered:
            return
        in_band = self.method.in_band
        body = None if in_band is None else in_band(error)
        if body is None:
            self._responder.fail(self, error)
        else:
            self._responder.reply(self, body)

    def end(self, status: Status, message: str | None = None) -> None:
        """Answer with a status of the transport's own. No-op if answered."""
        if not self.answered:
            self._responder.end(self, status, message)

    def expire(self) -> None:
        """Answer DEADLINE_EXCEEDED. No-op if answered."""
        if not self.answered:
            self._responder.expire(self)
