"""Older events, read from Redis for watches that have to catch up."""

from __future__ import annotations

from typing import Any, Final

import trio

from dbos_actors.actors.watching.entries import OLDEST, Cursor, Entry, entry_of
from dbos_actors.errors import CursorError
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.store import Store, pack

logger = get_logger(__name__)

STEP: Final = 256
"""Events that one read brings: 100 KB as they are, 2 ms to decode."""

_READERS_MAX: Final = 16
"""Reads under way at once. After a restart thousands of watches catch up, and others must go on."""


class LogReader:
    """Reads the log in steps."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places = trio.CapacityLimiter(_READERS_MAX)
        self._exists = False
        self.entries_read = 0

    async def behind(self, cursor: Cursor) -> tuple[list[Entry], Cursor | None]:
        """The next events behind a cursor, and, if the log has been read to its end, that end.

        Raises `CursorError` if events behind the cursor are not kept any more, or if the log ends
        before it; `UnavailableError` or `OverloadedError`.
        """
        async with self._places:
            if not self._exists:
                (exists,) = await self._store.read(pack("EXISTS", self._store.keys.events))
                if not exists:
                    if cursor > OLDEST:
                        raise CursorError.ahead(cursor.text, OLDEST.text)
                    return [], OLDEST
                self._exists = True
            low = b"(" + cursor.text.encode()
            rows, told = await self._store.read(
                pack("XRANGE", self._store.keys.events, low, "+", "COUNT", STEP),
                pack("XINFO", "STREAM", self._store.keys.events),
            )
        _check(cursor, told)
        self.entries_read += len(rows)
        entries = [entry for row in rows if (entry := _entry(row)) is not None]
        if len(rows) == STEP:
            if not entries:  # all of them damaged
                return await self.behind(_cursor(rows[-1][0]))
            return entries, None
        end = _cursor(rows[-1][0]) if rows else cursor
        return entries, end

    async def end(self) -> Cursor:
        """Behind the last event there ever was. Raises `UnavailableError`, `OverloadedError`."""
        async with self._places:
            (exists,) = await self._store.read(pack("EXISTS", self._store.keys.events))
            if not exists:
                return OLDEST
            (told,) = await self._store.read(pack("XINFO", "STREAM", self._store.keys.events))
        return _cursor(_fields(told)[b"last-generated-id"])


def _check(cursor: Cursor, told: Any) -> None:
    """Raise `CursorError` unless the log has all that was ever behind the cursor."""
    fields = _fields(told)
    last = _cursor(fields[b"last-generated-id"])
    if cursor > last:
        raise CursorError.ahead(cursor.text, last.text)
    if cursor in (OLDEST, last):
        return
    first = fields.get(b"first-entry")
    # Redis before version 7 does not tell how many entries there ever were.
    is_trimmed = fields.get(b"entries-added") != fields[b"length"]
    if is_trimmed and (not first or _cursor(first[0]) > cursor):
        oldest = _cursor(first[0]).text if first else last.text
        raise CursorError.too_old(cursor.text, oldest)


def _fields(told: Any) -> dict[bytes, Any]:
    return dict(zip(told[::2], told[1::2], strict=True))


def _cursor(entry_id: bytes) -> Cursor:
    ms, _, number = entry_id.partition(b"-")
    return Cursor(int(ms), int(number))


def _entry(row: Any) -> Entry | None:
    try:
        return entry_of(row[0], row[1][1])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        # Somebody else has written there. GetEvents shows what it is.
        log_limited(logger.warning, "unreadable_event", id=row[0].decode(), error=str(error))
        return None
