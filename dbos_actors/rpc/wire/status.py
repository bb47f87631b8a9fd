"""The trailers that end a call: its status, message and details, made from an error. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.wire.http2 import header_block_bytes
from dbos_actors.rpc.wire.metadata import (
    encode_binary,
    encode_status_message,
    shorten_status_message,
)
from dbos_actors.rpc.wire.schemas import message_class

StatusOf: TypeAlias = Callable[[Exception], tuple[Status, str]]
"""The service's table from errors to statuses."""

Fields: TypeAlias = list[tuple[bytes, bytes]]

RESPONSE_HEADERS: Fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
RESPONSE_HEADERS_GZIP: Fields = [*RESPONSE_HEADERS, (b"grpc-encoding", b"gzip")]
OK_TRAILERS: Fields = [(b"grpc-status", b"0")]

_MESSAGE = b"grpc-message"

INTERNAL_ERROR = "internal error"
"""All that a client learns of a bug; the rest is in the log."""


def status_fields(status: Status, message: str | None = None) -> Fields:
    """The trailers that carry a status."""
    fields = [(b"grpc-status", b"%d" % status.value)]
    if message:
        fields.append((_MESSAGE, encode_status_message(message)))
    return fields


_STATUS_NAMES = frozenset(
    {b":status", b"content-type", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-status"}
)


def fitting(fields: Fields, bytes_max: int) -> Fields:
    """The fields that fit into the last header block of a call.

    The status always does. Then comes its message, which is cut, and then the other fields
    (details, metadata) in their order; one that is too large is left out.
    """
    if header_block_bytes(fields) <= bytes_max:
        return fields
    kept = [field for field in fields if field[0] in _STATUS_NAMES]
    room = bytes_max - header_block_bytes(kept)
    others = [field for field in fields if field[0] not in _STATUS_NAMES]
    others.sort(key=lambda field: field[0] != _MESSAGE)
    for name, value in others:
        free = room - header_block_bytes([(name, b"")])
        is_cut = name == _MESSAGE and 0 < free < len(value)
        field = (name, shorten_status_message(value, free) if is_cut else value)
        if len(field[1]) <= free:
            kept.append(field)
            room -= header_block_bytes([field])
    return kept


_RpcStatus = message_class("google.rpc.Status")
_RetryInfo = message_class("google.rpc.RetryInfo")
STATUS_DETAILS_KEY = b"grpc-status-details-bin"


def details_fields(error: Exception, status: Status, message: str | None) -> Fields:
    """The trailer with an error's details, if it has any.

    They are those of a `grpclib.GRPCError`; of another error, its attribute ``retry_after_s``.
    """
    if isinstance(error, GRPCError):
        if error.details is None:
            return []
        return [details_field(error.status, error.message, error.details)]
    retry_after_s = getattr(error, "retry_after_s", None)
    return [] if retry_after_s is None else retry_fields(status, message or "", retry_after_s)


def retry_fields(status: Status, message: str, delay_s: float) -> Fields:
    """The trailer with a google.rpc.RetryInfo: repeat the call no sooner than in so many seconds.

    In whole milliseconds, not less than asked for.
    """
    return [_retry_field(status, message, math.ceil(delay_s * 1000))]


@lru_cache(maxsize=1_000)
def _retry_field(status: Status, message: str, delay_ms: int) -> tuple[bytes, bytes]:
    """Remembered, since whoever floods a server gets the same one again and again."""
    info = _RetryInfo()
    info.retry_delay.seconds, left_ms = divmod(delay_ms, 1000)
    info.retry_delay.nanos = left_ms * 1_000_000
    return details_field(status, message, [info])


def details_field(status: Status, message: str | None, details: Any) -> tuple[bytes, bytes]:
    """``grpc-status-details-bin``: a google.rpc.Status around the details' messages.

    ``details`` is a sequence of protobuf messages, or the bytes of a whole google.rpc.Status.
    """
    if not isinstance(details, bytes):
        rpc_status = _RpcStatus(code=status.value, message=message or "")
        for detail in details:
            rpc_status.details.add(
                type_url=f"type.googleapis.com/{detail.DESCRIPTOR.full_name}",
                value=detail.SerializeToString(),
            )
        details = rpc_status.SerializeToString()
    return STATUS_DETAILS_KEY, encode_binary(details)
