"""Pages of a listing: how large they are, and where the next one starts.

A page token carries the (score, id) of the last entry of its page, so that a
listing goes on behind that entry whatever was inserted or deleted meanwhile.
Clients do not look into a token. It is accepted only for the listing it came from:
the same method with the same filters. The page size may differ (AIP-158).

    base64url( version:1 listing:4 score:8 id:* check:4 )

without padding. ``listing`` is a CRC-32 of method and filters, ``check`` one of
all before it. They catch mistakes, not malice: a forged token can only name
another position in a listing its sender may read anyway.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from dbos_actors.errors import FieldLimitError, InvalidFieldError

PAGE_SIZE_MAX: Final = 10_000
"""Entries of one page: enough for the largest networks' agents in two pages."""

EVENTS_DEFAULT: Final = 100
"""Events of a page for which no number is asked."""

TOKEN_CHARS_MAX: Final = 96 * 1024
"""Ours are 1.4 times the id's bytes, of which settings allow 64 KiB; so no time is spent on
decoding megabytes."""

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BIq")
_CHECK: Final = struct.Struct(">I")


class Position(NamedTuple):
    """An entry's place in a listing, which is ordered by score, then id."""

    score: int
    id: str


def page_size(size: int) -> int:
    """The page size to use: 0 is everything, more than the maximum is the maximum.

    Raises `InvalidFieldError` if negative.
    """
    if size < 0:
        raise InvalidFieldError("page_size", "must not be negative")
    return min(size, PAGE_SIZE_MAX)


def event_count(limit: int) -> int:
    """How many events to answer with: 0 or less is the default, and there is a maximum."""
    return min(limit, PAGE_SIZE_MAX) if limit > 0 else EVENTS_DEFAULT


def token_chars(id_bytes: int) -> int:
    """The length of a token whose id has so many bytes, at most."""
    return (_HEAD.size + id_bytes + _CHECK.size + 2) * 4 // 3


class Listing:
    """One method with its filters: writes and reads that listing's page tokens.

    A sequence among the filters is a set: neither order nor repeats matter.
    """

    __slots__ = ("_filters", "_method")

    def __init__(self, method: str, *filters: str | int | bool | Sequence[str]) -> None:
        self._method = method
        self._filters = filters

    @property
    def _fingerprint(self) -> int:
        """Computed when a token is read or given out: most listings have one page."""
        named = [
            value if isinstance(value, str | int) else sorted(set(value)) for value in self._filters
        ]
        return binascii.crc32(json.dumps([self._method, *named]).encode())

    def token(self, score: int, identifier: str) -> str:
        """The token of the page after the entry at this position."""
        body = _HEAD.pack(_VERSION, self._fingerprint, score) + identifier.encode()
        return _to_text(body + _CHECK.pack(binascii.crc32(body)))

    def position(self, token: str) -> Position | None:
        """The entry after which the page begins; None, from an empty token, is the start.

        Raises `InvalidFieldError` or `FieldLimitError` if the token is not one of
        this listing's.
        """
        if not token:
            return None
        if len(token) > TOKEN_CHARS_MAX:
            raise FieldLimitError(
                "page_token", size=len(token), limit=TOKEN_CHARS_MAX, unit="characters"
            )
        body = _body(token)
        version, fingerprint, score = _HEAD.unpack_from(body)
        if version != _VERSION:
            raise InvalidFieldError("page_token", "is from another version of the server")
        if fingerprint != self._fingerprint:
            raise InvalidFieldError("page_token", "belongs to a listing with other filters")
        try:
            return Position(score, body[_HEAD.size :].decode())
        except UnicodeDecodeError as error:
            raise _malformed() from error


def _body(token: str) -> bytes:
    """What the token says, its check verified and taken off."""
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError as error:  # not ASCII, or not of a possible length
        raise _malformed() from error
    # The decoder skips what it does not know: only what we would write is taken.
    if len(data) < _HEAD.size + _CHECK.size or _to_text(data) != token:
        raise _malformed()
    body = data[: -_CHECK.size]
    if _CHECK.unpack(data[-_CHECK.size :])[0] != binascii.crc32(body):
        raise _malformed()
    return body


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _malformed() -> InvalidFieldError:
    return InvalidFieldError("page_token", "is not one that this server has given out")
