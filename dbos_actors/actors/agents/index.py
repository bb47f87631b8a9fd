"""A sorted set of an agent, read in steps that survive inserts and deletions."""

from __future__ import annotations

from dbos_actors.store import Store, pack

Entry = tuple[float, bytes]
"""Of a sorted set: score and member."""


class Entries:
    """Entries of a sorted set that follow each other, as Redis sent them.

    A score is parsed when it is asked for: most listings need that of their last entry only.
    """

    __slots__ = ("_scores", "are_last", "members")

    def __init__(self, members: list[bytes], scores: list[bytes], *, are_last: bool) -> None:
        self.members = members
        self.are_last = are_last
        """Whether nothing followed them when they were read."""
        self._scores = scores

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> Entry:
        return float(self._scores[number]), self.members[number]

    def behind(self, count: int) -> Entries:
        """Those behind the first ``count``."""
        return Entries(self.members[count:], self._scores[count:], are_last=self.are_last)

    def up_to(self, count: int) -> Entries:
        """At most ``count`` of them, the first ones."""
        if len(self) <= count:
            return self
        return Entries(self.members[:count], self._scores[:count], are_last=False)


class Index:
    """A sorted set of (score, member), read in steps that survive inserts and deletions."""

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        low: str = "-inf",
        high: str = "+inf",
        reverse: bool = False,
    ) -> None:
        self._store = store
        self._key = key
        self._low = low
        self._high = high
        self._reverse = reverse

    async def entries_after(self, last: Entry | None, count: int) -> Entries:
        """At most ``count`` entries behind ``last``; none only when there are no more.

        Where many entries share the score of ``last``, reading begins inside that
        group, at its rank. Only if ``last`` is still the first entry there is what
        follows it what it should be; else the group is read from its start. Either
        way the answer is from one moment, so whatever stays is never passed over.
        """
        entries = await self._read(last, 0, count)
        if last is None or not self._all_before(entries, last, count):
            return self._behind(entries, last)
        offset = await self._rank_in_group(last)
        entries = await self._read(last, offset, count + 1)
        if entries and entries[0] == last:
            return entries.behind(1)
        size = count
        while self._all_before(entries := await self._read(last, 0, size), last, size):
            size *= 2
        return self._behind(entries, last).up_to(count)

    def _is_behind(self, entry: Entry, last: Entry) -> bool:
        return entry < last if self._reverse else entry > last

    def _all_before(self, entries: Entries, last: Entry, count: int) -> bool:
        return len(entries) == count and not self._is_behind(entries[-1], last)

    def _behind(self, entries: Entries, last: Entry | None) -> Entries:
        if last is None:
            return entries
        first = 0
        while first < len(entries) and not self._is_behind(entries[first], last):
            first += 1
        return entries.behind(first) if first else entries

    async def _read(self, last: Entry | None, offset: int, count: int) -> Entries:
        low, high = self._low, self._high
        if self._reverse:
            bounds = [high if last is None else repr(last[0]), low, "BYSCORE", "REV"]
        else:
            bounds = [low if last is None else repr(last[0]), high, "BYSCORE"]
        (flat,) = await self._store.read(
            pack("ZRANGE", self._key, *bounds, "LIMIT", offset, count, "WITHSCORES")
        )
        members = flat[::2]
        return Entries(members, flat[1::2], are_last=len(members) < count)

    async def _rank_in_group(self, last: Entry) -> int:
        score, member = last
        rank = "ZREVRANK" if self._reverse else "ZRANK"
        outside = (f"({score!r}", "+inf") if self._reverse else ("-inf", f"({score!r}")
        position, before = await self._store.read(
            pack(rank, self._key, member), pack("ZCOUNT", self._key, *outside)
        )
        return 0 if position is None else max(0, int(position) - int(before))
