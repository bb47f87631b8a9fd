"""What all listings together may hold in memory, and how their records are read within that.

A listing holds what it has put into its response and the records of one read. A small listing, of
at most `SMALL_BYTES`, needs no permission. One that grows beyond that waits for a place among the
large ones, and leaves its turn to others meanwhile; so small listings never wait for large ones.
A place stands for the most that a listing can hold, so one that has it waits for nothing more, and
listings cannot wait for each other.

How large records are is asked before they are read (HSTRLEN), so that no read brings more than
`STEP_BYTES`, or one record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from dbos_actors.store import Store, pack_head

SMALL_BYTES: Final = 64 * 1024
"""What a listing may hold without a place. A thousand waiting ones hold 64 MiB."""

STEP_BYTES: Final = 1024 * 1024
"""Of the records in one read: Redis needs half a millisecond to send so much."""

_RUNNING_MAX = 64
"""Listings that read at the same time: 16,000 records' sizes may be asked for at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingStatistics:
    """Listings since the start, and now."""

    calls: int
    rows: int
    """Entries and records looked at for them. Divided by what they list it tells how well the
    filters that clients use are served."""
    running: int
    large: int


class ListingBudget:
    """The memory of all listings."""

    def __init__(self, limit_bytes: int, *, message_bytes: int) -> None:
        """``limit_bytes`` for all large listings together; ``message_bytes`` bounds a response.

        One large listing may run even if ``limit_bytes`` is less than it may hold: the parts of
        its response, these joined, and a read as bytes and as objects.
        """
        large_bytes = 2 * (message_bytes + STEP_BYTES)
        self.large = trio.CapacityLimiter(max(1, limit_bytes // large_bytes))
        """The places of large listings."""
        self.running = trio.CapacityLimiter(_RUNNING_MAX)
        self.rows = 0
        self._calls = 0

    def statistics(self) -> ListingStatistics:
        """What listings did and do."""
        return ListingStatistics(
            calls=self._calls,
            rows=self.rows,
            running=int(self.running.borrowed_tokens),
            large=int(self.large.borrowed_tokens),
        )

    @asynccontextmanager
    async def room(self) -> AsyncIterator[Room]:
        """A listing's share, for the length of the context; waits until it may run."""
        room = Room(self)
        self._calls += 1
        try:
            await room.run()
            yield room
        finally:
            room.close()


class Room:
    """One listing's share of the budget."""

    __slots__ = ("_budget", "_held_bytes", "_is_large", "_is_running")

    def __init__(self, budget: ListingBudget) -> None:
        self._budget = budget
        self._held_bytes = 0
        self._is_large = False
        self._is_running = False

    async def run(self) -> None:
        """Wait for a turn to read."""
        await _acquire(self._budget.running, self)
        self._is_running = True

    async def reserve(self, size_bytes: int) -> None:
        """Say that so many bytes more are about to be read; waits while they are too many."""
        self._held_bytes += size_bytes
        if self._is_large or self._held_bytes <= SMALL_BYTES:
            return
        self._is_running = False
        self._budget.running.release_on_behalf_of(self)
        await _acquire(self._budget.large, self)
        self._is_large = True
        await self.run()

    def looked_at(self, rows: int) -> None:
        """Count what was looked at."""
        self._budget.rows += rows

    def release(self, size_bytes: int) -> None:
        """Of what was read, so much is not part of the response."""
        self._held_bytes -= size_bytes

    def close(self) -> None:
        """Give back what is held."""
        if self._is_running:
            self._budget.running.release_on_behalf_of(self)
        if self._is_large:
            self._budget.large.release_on_behalf_of(self)
        self._is_running = self._is_large = False


async def _acquire(limiter: trio.CapacityLimiter, room: Room) -> None:
    """Take a token; without a checkpoint if one is free, since each read is one."""
    try:
        limiter.acquire_on_behalf_of_nowait(room)
    except trio.WouldBlock:
        await limiter.acquire_on_behalf_of(room)


async def record_sizes(store: Store, key: str, fields: Sequence[bytes]) -> list[int]:
    """How large the records of a hash are, in bytes; 0 for one that is not there.

    Raises `UnavailableError` or `OverloadedError`.
    """
    if not fields:
        return []
    return await store.read_each(pack_head(3, "HSTRLEN", key), fields)


def reads(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Cut records of these sizes into reads of at most `STEP_BYTES`, or of one record.

    Yields (first, behind the last, bytes).
    """
    total_bytes = sum(sizes)
    if sizes and total_bytes <= STEP_BYTES:
        yield 0, len(sizes), total_bytes
        return
    first = size_bytes = 0
    for index, size in enumerate(sizes):
        if index > first and size_bytes + size > STEP_BYTES:
            yield first, index, size_bytes
            first, size_bytes = index, 0
        size_bytes += size
    if first < len(sizes):
        yield first, len(sizes), size_bytes
