"""Header values of gRPC over HTTP/2: metadata, timeouts, status messages. Pure.

grpclib has functions for the same, but they corrupt ``-bin`` values that are joined by commas,
reject values without padding, and accept malformed timeouts. Decoded metadata has grpclib's form: a
`MultiDict` of text, or of bytes under names that end in ``-bin``.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from grpclib.metadata import encode_grpc_message
from multidict import MultiDict

MetadataValue: TypeAlias = str | bytes
Metadata: TypeAlias = MultiDict[MetadataValue]
MetadataLike: TypeAlias = Mapping[str, MetadataValue] | Collection[tuple[str, MetadataValue]]

STATUS_MESSAGE_BYTES_MAX = 4_096
"""A longer status message, percent-encoded, is cut: trailers must fit in the peer's header limit
(often 8 KiB)."""

_CUT = b"..."
_CUT_TRIPLE = re.compile(rb"%[0-9A-F]?\Z")
_EDGE_SPACES = re.compile(r"\A +| +\Z")

_UNITS = {72: 3600.0, 77: 60.0, 83: 1.0, 109: 1e-3, 117: 1e-6, 110: 1e-9}  # H M S m u n
_TIMEOUT_BYTES_MAX = 9  # eight digits and a unit

_RESERVED = {b"te", b"content-type", b"content-length", b"user-agent", b"host"}
_NAME = re.compile(r"[0-9a-z_.\-]+")
_TEXT = re.compile(r"[ -~]*")


class MetadataError(ValueError):
    """Metadata that cannot be decoded, or must not be sent."""


def decode_timeout(value: bytes) -> float:
    """Seconds of a ``grpc-timeout``: up to eight digits and a unit. Raises `MetadataError`."""
    digits = value[:-1]
    unit = _UNITS.get(value[-1]) if value else None
    if unit is None or len(value) > _TIMEOUT_BYTES_MAX or not digits.isdigit():
        raise MetadataError(f"malformed grpc-timeout {value[:32]!r}")
    return int(digits) * unit


def encode_timeout(seconds: float) -> bytes:
    """A ``grpc-timeout`` of at least so long, in the finest unit that fits eight digits."""
    if seconds <= 0:
        return b"0n"
    for unit, scale in ((b"n", 1e9), (b"u", 1e6), (b"m", 1e3), (b"S", 1.0)):
        amount = -(-seconds * scale // 1)
        if amount < 100_000_000:
            return b"%d%s" % (int(amount), unit)
    return b"%dH" % min(99_999_999, int(-(-seconds // 3600)))


def encode_binary(value: bytes) -> bytes:
    """Base64 without padding, as the specification prefers."""
    return b64encode(value).rstrip(b"=")


def decode_binary(value: bytes) -> list[bytes]:
    """The values of one ``-bin`` field: comma-joined, each with or without padding.

    Raises `MetadataError`.
    """
    try:
        return [_decode_base64(part.strip()) for part in value.split(b",")]
    except (Base64Error, ValueError) as error:
        raise MetadataError("malformed base64 in a -bin field") from error


def _decode_base64(value: bytes) -> bytes:
    value = value.rstrip(b"=")
    return b64decode(value + b"=" * (-len(value) % 4), validate=True)


def decode_metadata(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The custom metadata among a block's fields, in order. Raises `MetadataError`."""
    metadata: Metadata = MultiDict()
    for name, value in headers:
        if name.startswith((b":", b"grpc-")) or name in _RESERVED:
            continue
        key = name.decode("ascii", "replace")
        if name.endswith(b"-bin"):
            for part in decode_binary(value):
                metadata.add(key, part)
        else:
            metadata.add(key, value.decode("ascii", "replace"))
    return metadata


def encode_metadata(metadata: MetadataLike) -> list[tuple[bytes, bytes]]:
    """Fields for custom metadata. Raises `MetadataError` on what must not be sent."""
    fields = []
    pairs: Iterable[tuple[str, MetadataValue]] = (
        metadata.items() if isinstance(metadata, Mapping) else metadata
    )
    for key, value in pairs:
        name = key.encode("ascii", "replace")
        if name in _RESERVED or name.startswith(b"grpc-") or not _NAME.fullmatch(key):
            raise MetadataError(f"invalid metadata key {key!r}")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise MetadataError(f"the value of {key!r} must be bytes")
            fields.append((name, encode_binary(value)))
        else:
            if not isinstance(value, str) or not _TEXT.fullmatch(value):
                raise MetadataError(f"the value of {key!r} must be printable ASCII")
            # RFC 9113, 8.2.1: with spaces at its ends a value is malformed, and its stream with it.
            fields.append((name, value.strip(" ").encode("ascii")))
    return fields


def encode_status_message(message: str, bytes_max: int = STATUS_MESSAGE_BYTES_MAX) -> bytes:
    """A percent-encoded ``grpc-message`` of at most so many bytes; a longer one ends in dots."""
    # No character takes less than a byte: what is cut here would be cut below.
    encoded = _percent_encode(message[: bytes_max + 1].encode("utf-8", "replace").decode())
    return shorten_status_message(encoded, bytes_max)


def shorten_status_message(encoded: bytes, bytes_max: int) -> bytes:
    """Cut an encoded ``grpc-message`` to a size, between two characters."""
    if len(encoded) <= bytes_max:
        return encoded
    kept = _CUT_TRIPLE.sub(b"", encoded[: max(0, bytes_max - len(_CUT))])
    return _percent_encode(unquote_to_bytes(kept).decode("utf-8", "ignore")) + _CUT[:bytes_max]


def _percent_encode(message: str) -> bytes:
    text: str = encode_grpc_message(message)
    # A field's value must not begin or end with a space (RFC 9113, 8.2.1).
    return _EDGE_SPACES.sub(lambda spaces: "%20" * len(spaces[0]), text).encode("ascii")
