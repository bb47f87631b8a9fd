"""The latest events, in memory, for all watches together.

The ring holds every event behind its *floor*. What is at or before the floor may be missing, and
has to be read from Redis. The floor is not known at first: whoever reads the log to its end, after
the ring has begun to be fed, tells it. Entries have numbers that rise by one, so that a watch can
remember an entry by its number and find out that it has left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from dbos_actors.actors.watching.entries import Cursor, Entry

_OVERHEAD_BYTES: Final = 400
"""Of an entry besides its encoded form: the tuple, its cursor and its names. Measured."""


class EventRing:
    """Entries in order, up to a number of bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: deque[Entry] = deque()
        self._first = 0  # the number of the first entry
        self.size_bytes = 0
        self.floor: Cursor | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def end(self) -> Cursor | None:
        """Behind every event that is known to be committed; None while that is not known."""
        if self._entries:
            return self._entries[-1].cursor
        return self.floor

    def append(self, entry: Entry) -> int:
        """Add the next entry, and let the oldest go if there are too many bytes; its number."""
        self._entries.append(entry)
        self.size_bytes += _size_bytes(entry)
        while self.size_bytes > self._bytes_max:
            oldest = self._entries.popleft()
            self.size_bytes -= _size_bytes(oldest)
            self._first += 1
            self.floor = oldest.cursor
        return self._first + len(self._entries) - 1

    def covers(self, cursor: Cursor) -> bool:
        """Whether every event behind the cursor is here."""
        return self.floor is not None and cursor >= self.floor

    def read_to_the_end(self, cursor: Cursor) -> None:
        """The log has been read up to there, and every later event was or will be appended."""
        if self.floor is None:
            self.floor = cursor

    def get(self, number: int) -> Entry | None:
        """The entry of that number; None if it has left."""
        position = number - self._first
        return self._entries[position] if position >= 0 else None

    def behind(self, cursor: Cursor, count: int) -> Iterator[Entry]:
        """Up to ``count`` entries behind a cursor, in order; nothing may change meanwhile."""
        low, high = 0, len(self._entries)
        while low < high:
            middle = (low + high) // 2
            if self._entries[middle].cursor > cursor:
                high = middle
            else:
                low = middle + 1
        return islice(self._entries, low, low + count)

    def clear(self) -> None:
        """Forget everything, the floor too. Numbers go on rising."""
        self._first += len(self._entries)
        self._entries.clear()
        self.size_bytes = 0
        self.floor = None


def _size_bytes(entry: Entry) -> int:
    return len(entry.encoded) + _OVERHEAD_BYTES
