"""What a call ends with: status trailers, and the errors that become them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from grpclib.const import Status

from dbos_actors.rpc.metadata import encode_status_message

StatusOf: TypeAlias = Callable[[Exception], tuple[Status, str]]
"""The service's table from errors to statuses."""

Fields: TypeAlias = list[tuple[bytes, bytes]]

RESPONSE_HEADERS: Fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK_TRAILERS: Fields = [(b"grpc-status", b"0")]

INTERNAL_ERROR = "internal error"
"""All that a client learns of a bug; the rest is in the log."""


def status_fields(status: Status, message: str | None = None) -> Fields:
    """The trailers that carry a status."""
    fields = [(b"grpc-status", b"%d" % status.value)]
    if message:
        fields.append((b"grpc-message", encode_status_message(message)))
    return fields
