"""Which status a call has, by what has come from the server. Pure.

A server that speaks gRPC sends the status in the last fields of its response. Everything else that
may come instead is mapped as the gRPC specification says.
"""

from __future__ import annotations

from grpclib.const import Status
from grpclib.metadata import decode_grpc_message

from dbos_actors.rpc.wire.framing import FramingError, MessageTooLargeError
from dbos_actors.rpc.wire.http2 import ErrorCode

_HTTP_STATUSES = {  # gRPC's http-grpc-status-mapping.md
    b"400": Status.INTERNAL,
    b"401": Status.UNAUTHENTICATED,
    b"403": Status.PERMISSION_DENIED,
    b"404": Status.UNIMPLEMENTED,
    b"429": Status.UNAVAILABLE,
    b"502": Status.UNAVAILABLE,
    b"503": Status.UNAVAILABLE,
    b"504": Status.UNAVAILABLE,
}
_RESET_STATUSES = {  # gRPC over HTTP2, "Errors"; every other code is INTERNAL
    int(ErrorCode.REFUSED_STREAM): Status.UNAVAILABLE,
    int(ErrorCode.CANCEL): Status.CANCELLED,
    int(ErrorCode.ENHANCE_YOUR_CALM): Status.RESOURCE_EXHAUSTED,
    int(ErrorCode.INADEQUATE_SECURITY): Status.PERMISSION_DENIED,
}
_NO_STATUS = "the response has no grpc-status"

DEBUG_BYTES_MAX = 256
"""Of a GOAWAY's text, which may have 16 KB, so much is repeated by the errors of its calls."""

_STATUSES = {b"%d" % status.value: status for status in Status}


def response_status(fields: dict[bytes, bytes]) -> tuple[Status, str | None]:
    """The status that a response's last fields carry."""
    value = fields.get(b"grpc-status")
    if value is None:
        return Status.UNKNOWN, _NO_STATUS
    status = _STATUSES.get(value)
    message = fields.get(b"grpc-message")
    text = None if message is None else decode_grpc_message(message.decode("ascii", "replace"))
    if status is None:
        text = f"unknown grpc-status {value[:32]!r}" + (f": {text}" if text else "")
        return Status.UNKNOWN, text
    return status, text


def headers_problem(fields: dict[bytes, bytes], *, ended: bool) -> tuple[Status, str] | None:
    """Why a response's headers are not those of gRPC; None if they are.

    ``ended``: nothing comes after them, and they have no status.
    """
    http_status = fields.get(b":status", b"")
    if http_status != b"200":
        status = _HTTP_STATUSES.get(http_status, Status.UNKNOWN)
        return status, f"HTTP status {http_status.decode('ascii', 'replace')}"
    content_type = fields.get(b"content-type", b"")
    kind = content_type.partition(b";")[0].strip()
    if kind not in {b"application/grpc", b"application/grpc+proto"}:
        return Status.UNKNOWN, f"content-type {content_type[:64]!r} is not gRPC's"
    return (Status.UNKNOWN, _NO_STATUS) if ended else None


def reset_problem(code: int, *, is_late: bool) -> tuple[Status, str]:
    """The status of a call that the server has reset; ``is_late``: not before its deadline.

    A server whose timer for the deadline fires first may answer with CANCEL, as grpc-go does.
    """
    if is_late and code == ErrorCode.CANCEL:
        return Status.DEADLINE_EXCEEDED, "deadline exceeded: the server has cancelled the call"
    try:
        name = ErrorCode(code).name
    except ValueError:
        name = str(code)
    return _RESET_STATUSES.get(code, Status.INTERNAL), f"the server has reset the call ({name})"


def goaway_reason(code: int, debug: bytes) -> str:
    """Why a connection takes no further calls after the server's GOAWAY."""
    text = debug_text(debug) or (f"error {code}" if code else "")
    return "the server is going away" + (f" ({text})" if text else "")


def debug_text(debug: bytes) -> str:
    """What a GOAWAY says for people to read, as far as it is kept."""
    return debug[:DEBUG_BYTES_MAX].decode("utf-8", "replace")


def framing_problem(error: FramingError) -> tuple[Status, str]:
    """The status of a response that is no sequence of messages."""
    if isinstance(error, MessageTooLargeError):
        return Status.RESOURCE_EXHAUSTED, f"response {error}"
    return Status.INTERNAL, str(error)
