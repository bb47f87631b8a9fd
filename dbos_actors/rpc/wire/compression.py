"""gzip for messages, the one compression every gRPC implementation knows. Pure."""

from __future__ import annotations

import zlib

from grpclib.const import Status
from grpclib.exceptions import GRPCError

IDENTITY = b"identity"
GZIP = b"gzip"
ACCEPTED = b"identity,gzip"
"""Our ``grpc-accept-encoding``."""

_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_LEVEL = 1
"""The fastest level: all calls wait while one message is compressed, on the only thread."""


class CompressionError(Exception):
    """A compressed message that cannot be restored."""


class ExpandedTooLargeError(CompressionError):
    """A message that would be larger than the limit once decompressed."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"decompressed message is larger than the limit of {limit} bytes")
        self.limit = limit


def decompress(body: bytes, limit: int) -> bytes:
    """Restore a message of at most ``limit`` bytes, never holding more than one byte beyond.

    Raises `ExpandedTooLargeError`, or `CompressionError` for anything but one whole gzip member.
    """
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        data = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise CompressionError("malformed gzip message") from error
    if len(data) > limit:
        raise ExpandedTooLargeError(limit=limit)
    if not inflater.eof or inflater.unused_data:
        raise CompressionError("malformed gzip message")
    return data


def restore(encoding: bytes | None, body: bytes, limit: int) -> bytes:
    """Decompress a message whose flag says that it is compressed.

    ``encoding`` is the ``grpc-encoding`` of its stream. Raises `grpclib.GRPCError` with the status
    of a call whose message is too large, malformed, or of no encoding.
    """
    if encoding is None:
        raise GRPCError(Status.INTERNAL, "compressed message without grpc-encoding")
    try:
        return decompress(body, limit)
    except ExpandedTooLargeError as error:
        raise GRPCError(Status.RESOURCE_EXHAUSTED, str(error)) from error
    except CompressionError as error:
        raise GRPCError(Status.INTERNAL, str(error)) from error


def compress(body: bytes) -> bytes:
    """A message as one gzip member."""
    return zlib.compress(body, _LEVEL, _GZIP_WINDOW)


def accepts_gzip(accept_encoding: bytes | None) -> bool:
    """Whether a peer's ``grpc-accept-encoding`` names gzip."""
    return accept_encoding is not None and GZIP in accept_encoding.replace(b" ", b"").split(b",")
