"""A page of a listing: the response that its records make, within the limit of a message."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

from dbos_actors.api.wire import encode_submessage, submessage_prefix
from dbos_actors.domain import paging
from dbos_actors.errors import ResponseTooLargeError

STEP: Final = 256
"""Entries of one step; how many of their records one read brings, their sizes decide."""

_ENVELOPE_BYTES: Final = 4096
"""Kept free in a response for its page token."""


class Page:
    """A response under construction: repeated field 1, within the message limit."""

    def __init__(self, *, page_size: int, limit_bytes: int, id_bytes: int = 0) -> None:
        """``limit_bytes`` bounds the response, ``id_bytes`` the id in its page token."""
        self._page_size = page_size
        self._limit_bytes = limit_bytes
        self._room_bytes = limit_bytes - max(_ENVELOPE_BYTES, paging.token_chars(id_bytes) + 8)
        self._count = 0
        # Of the response, in order: a record is not copied before all are joined.
        self._parts: list[bytes] = []

    @property
    def wanted(self) -> int:
        """Entries to read in the next step: one more than fit, to know whether it is the last."""
        if not self._page_size:
            return STEP
        return min(STEP, self._page_size - self._count + 1)

    @property
    def vacant(self) -> int | None:
        """How many more it takes, if there is room for their bytes; None: any number."""
        return self._page_size - self._count if self._page_size else None

    @property
    def is_bounded(self) -> bool:
        """Whether it may end before the listing does."""
        return self._page_size > 0

    def add(self, record: bytes) -> bool:
        """Take one more; False when the page is full.

        Raises `ResponseTooLargeError` when everything was asked for, or a single
        record is too large.
        """
        if self._page_size and self._count >= self._page_size:
            return False
        prefix = submessage_prefix(1, len(record))
        size_bytes = len(prefix) + len(record)
        if size_bytes > self._room_bytes:
            if self._page_size and self._count:
                return False
            raise ResponseTooLargeError(limit=self._limit_bytes)
        self._room_bytes -= size_bytes
        self._count += 1
        self._parts += (prefix, record)
        return True

    def add_all(self, records: Sequence[bytes]) -> bool:
        """Take all of these, for a third of what `add` costs; False, and none, if not all fit."""
        count = self._count + len(records)
        if self._page_size and count > self._page_size:
            return False
        prefixes = [submessage_prefix(1, size) for size in map(len, records)]
        size_bytes = sum(map(len, prefixes)) + sum(map(len, records))
        if size_bytes > self._room_bytes:
            return False
        self._room_bytes -= size_bytes
        self._count = count
        self._parts += chain.from_iterable(zip(prefixes, records, strict=True))
        return True

    def response(self, next_page_token: str = "") -> bytes:
        """The serialised list response."""
        if next_page_token:
            # Field 20 takes a tag of two bytes (protobuf encoding, "Message Structure").
            self._parts.append(b"\xa2\x01" + encode_submessage(0, next_page_token.encode())[1:])
        return b"".join(self._parts)
