"""What a Connect call is answered with: header fields, error bodies and the end of a stream.

A call ends with a status, a message, and fields as gRPC would send them in its trailers: the
service's own metadata, and perhaps ``grpc-status-details-bin``. Here they become what Connect has
in their place:

                 metadata                     error
    unary        headers ``trailer-NAME``     the body, as JSON, under an HTTP error
    streaming    the last envelope, as JSON   likewise, under HTTP 200
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError
from grpclib.const import Status

from dbos_actors.rpc.connect.codes import CODES
from dbos_actors.rpc.wire.framing import PREFIX_BYTES
from dbos_actors.rpc.wire.metadata import MetadataError, decode_binary
from dbos_actors.rpc.wire.schemas import message_class
from dbos_actors.rpc.wire.status import STATUS_DETAILS_KEY, Fields

MESSAGE_CHARACTERS_MAX: Final = 4_096
"""Of an error's message; what gRPC's trailers have room for."""

END_STREAM_FLAG: Final = 2
"""Of the envelope that ends a streaming response."""

NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
"""A browser must not take an answer for a page or a script, whatever is in it."""

_TRAILER: Final = b"trailer-"
_GRPC: Final = b"grpc-"
"""How the names of trailers begin that are gRPC's own: the status, its message and details."""

_RpcStatus = message_class("google.rpc.Status")


def head(
    http_status: int, content_type: bytes, fields: Sequence[tuple[bytes, bytes]] = ()
) -> Fields:
    """The header fields of a response."""
    return [
        (b":status", b"%d" % http_status),
        (b"content-type", content_type),
        NO_SNIFFING,
        *fields,
    ]


def as_trailers(fields: Sequence[tuple[bytes, bytes]]) -> Fields:
    """The headers of a unary response that carry a call's trailing metadata."""
    return [(_TRAILER + name, value) for name, value in fields if not name.startswith(_GRPC)]


def error_object(
    status: Status, message: str | None, fields: Sequence[tuple[bytes, bytes]] = ()
) -> dict[str, Any]:
    """An error as JSON has it; its details are those in ``fields``."""
    found: dict[str, Any] = {"code": CODES[status][0]}
    if message:
        found["message"] = message[:MESSAGE_CHARACTERS_MAX]
    details = _details(fields)
    if details:
        found["details"] = details
    return found


def error_body(
    status: Status, message: str | None, fields: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """The body of a unary call's error."""
    return _dump(error_object(status, message, fields))


def end_of_stream(
    status: Status, message: str | None, fields: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """The last envelope of a streaming response, with its prefix."""
    end: dict[str, Any] = {}
    if status is not Status.OK:
        end["error"] = error_object(status, message, fields)
    metadata: dict[str, list[str]] = {}
    for name, value in fields:
        if not name.startswith(_GRPC):
            metadata.setdefault(name.decode("ascii"), []).append(value.decode("ascii", "replace"))
    if metadata:
        end["metadata"] = metadata
    body = _dump(end)
    return bytes([END_STREAM_FLAG]) + len(body).to_bytes(PREFIX_BYTES - 1, "big") + body


def _details(fields: Sequence[tuple[bytes, bytes]]) -> list[dict[str, str]]:
    for name, value in fields:
        if name == STATUS_DETAILS_KEY:
            try:
                rpc_status = _RpcStatus.FromString(decode_binary(value)[0])
            except (MetadataError, DecodeError):  # a handler may give bytes of its own making
                return []
            return [
                {
                    "type": detail.type_url.rpartition("/")[2],
                    "value": b64encode(detail.value).rstrip(b"=").decode("ascii"),
                }
                for detail in rpc_status.details
            ]
    return []


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
