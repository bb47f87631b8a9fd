"""The values that a simulated Redis keeps. A string is plain bytes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

Member = tuple[float, bytes]


class HashMap(dict[bytes, bytes]):
    """A hash."""


class MemberSet(dict[bytes, None]):
    """A set; ordered by insertion."""


class ValueList(list[bytes]):
    """A list."""


class SortedSet:
    """Members ordered by (score, member)."""

    __slots__ = ("_ordered", "scores")

    def __init__(self) -> None:
        self.scores: dict[bytes, float] = {}
        self._ordered: list[Member] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def put(self, member: bytes, score: float) -> None:
        """Add a member or change its score."""
        self.scores[member] = score
        self._ordered = None

    def remove(self, member: bytes) -> bool:
        """Whether it was there."""
        if self.scores.pop(member, None) is None:
            return False
        self._ordered = None
        return True

    @property
    def ordered(self) -> list[Member]:
        """All of it, in order; not to be changed."""
        if self._ordered is None:
            self._ordered = sorted((score, member) for member, score in self.scores.items())
        return self._ordered

    def rank(self, member: bytes) -> int | None:
        """The member's place from the lowest, from 0."""
        score = self.scores.get(member)
        return None if score is None else bisect_left(self.ordered, (score, member))


StreamId = tuple[int, int]
STREAM_ID_MAX: StreamId = (2**64 - 1, 2**64 - 1)


class EventStream:
    """Entries by id, ascending."""

    __slots__ = ("added", "entries", "last_id")

    def __init__(self) -> None:
        self.entries: list[tuple[StreamId, list[bytes]]] = []
        self.last_id: StreamId = (0, 0)
        self.added = 0

    def __len__(self) -> int:
        return len(self.entries)

    def between(self, low: StreamId, high: StreamId) -> list[tuple[StreamId, list[bytes]]]:
        """Entries with ids from ``low`` to ``high``, both included."""
        first = bisect_left(self.entries, low, key=lambda entry: entry[0])
        after = bisect_right(self.entries, high, key=lambda entry: entry[0])
        return self.entries[first:after]


def shown_id(stream_id: StreamId) -> bytes:
    """As it goes over the wire."""
    return b"%d-%d" % stream_id
