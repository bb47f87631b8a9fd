"""The timer heap: ids ordered by the tick at which they fire.

It has no clock. A tick is an integer on a scale the owner chooses (a wall-clock
second, a sixteenth of a monotonic second), and the owner says how far time has
come. Which kind of timer an id stands for follows from the heap it is in.

Shape. Time is cut into periods of `PERIOD_TICKS` ticks; their numbers are kept in
order, and the earliest one, the *open* period, has a heap of its own ticks. The ids
of a tick sit in a bucket and leave it by name; a bucket of more than `BLOCK_MAX` ids
is an `IdTable`. So

- adding, discarding and taking cost O(log n) of few, small numbers;
- what is discarded is gone at once. Only the *ticks* of the
  open period are deleted lazily, kept within twice what is live by rebuilding a list
  of at most 2 x `PERIOD_TICKS` numbers;
- nothing grows in one piece: no table of a million entries is ever rehashed, walked or
  copied in one step, not even the bucket of one single tick;
- the order, by tick and then by id, does not depend on what has happened before. So a
  reader goes on behind any timer after the heap has changed (`following`);
- a million timers are a few thousand objects to the garbage collector, since a
  dict of strings and numbers alone is not tracked.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import NamedTuple

from dbos_actors.domain.tasks.id_table import BLOCK_MAX, IdTable

PERIOD_BITS = 10
PERIOD_TICKS = 1 << PERIOD_BITS
"""Ticks of a period: opening one sorts at most so many numbers, 0.1 ms."""


class Now(NamedTuple):
    """One reading of both clocks, and of the one that retention follows.

    The first two are never compared with each other. What the contract calls a time
    of day follows ``wall_s`` (seconds since the epoch, may jump either way);
    leases and delays follow ``monotonic_s`` (never goes back; whoever reads it
    may leave out spans in which nobody could have been served). ``unjumped_s`` is
    what the wall clock would say had it not jumped, None if that is not known.

    An age is the difference of `age_s` now and `outcome_s` then. Whichever way the
    wall clock has jumped meanwhile, it is not more than the time that has passed.
    """

    wall_s: float
    monotonic_s: float
    unjumped_s: float | None = None

    @property
    def age_s(self) -> float:
        """The moment that ages are counted up to."""
        return self.wall_s if self.unjumped_s is None else min(self.wall_s, self.unjumped_s)

    @property
    def outcome_s(self) -> float:
        """The moment from which the age of what ends now is counted."""
        return self.wall_s if self.unjumped_s is None else max(self.wall_s, self.unjumped_s)


class _Period:
    __slots__ = ("many", "single", "size")

    def __init__(self) -> None:
        # A tick with one id is in `single`, with several in `many`, never in both.
        self.single: dict[int, str] = {}
        self.many: dict[int, dict[str, None] | IdTable[None]] = {}
        self.size = 0

    def ticks(self) -> list[int]:
        return [*self.single, *self.many]

    def following(self, tick: int, timer_id: str) -> Iterator[str]:
        """The ids of a tick behind ``timer_id``, in order."""
        bucket = self.many.get(tick)
        if bucket is None:
            single = self.single[tick]
            if single > timer_id:
                yield single
        elif isinstance(bucket, IdTable):
            while ids := bucket.following(timer_id):
                for timer_id, _ in ids:  # noqa: PLR1704 - where to go on
                    yield timer_id
        else:
            yield from sorted(bucket if not timer_id else (i for i in bucket if i > timer_id))


class TimerHeap:
    """A set of (tick, id) pairs, in that order."""

    __slots__ = ("_numbers", "_open", "_open_ticks", "_periods", "_size")

    def __init__(self) -> None:
        self._periods: dict[int, _Period] = {}
        self._numbers: list[int] = []  # the keys of `_periods`, in order
        self._open: int | None = None
        # Heap; holds every tick of the open period that has ids, perhaps dead ones.
        self._open_ticks: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, timer: tuple[int, str]) -> bool:
        tick, timer_id = timer
        period = self._periods.get(tick >> PERIOD_BITS)
        if period is None:
            return False
        if period.single.get(tick) == timer_id:
            return True
        bucket = period.many.get(tick)
        return bucket is not None and timer_id in bucket

    def add(self, tick: int, timer_id: str) -> None:
        """Add a timer; nothing happens if exactly this one is there already."""
        number = tick >> PERIOD_BITS
        period = self._periods.get(number)
        if period is None:
            period = self._periods[number] = _Period()
            insort(self._numbers, number)
        bucket = period.many.get(tick)
        if bucket is not None:
            if timer_id in bucket:
                return
            if isinstance(bucket, IdTable):
                bucket.put(timer_id, None)
            elif len(bucket) < BLOCK_MAX:
                bucket[timer_id] = None
            else:
                table = period.many[tick] = IdTable()
                for one in sorted([*bucket, timer_id]):
                    table.put(one, None)
        else:
            single = period.single.get(tick)
            if single is None:
                period.single[tick] = timer_id
                if number == self._open:
                    self._push_open_tick(period, tick)
            elif single == timer_id:
                return
            else:
                del period.single[tick]
                period.many[tick] = {single: None, timer_id: None}
        period.size += 1
        self._size += 1

    def discard(self, tick: int, timer_id: str) -> bool:
        """Remove a timer; False if it was not there."""
        number = tick >> PERIOD_BITS
        period = self._periods.get(number)
        if period is None:
            return False
        bucket = period.many.get(tick)
        if bucket is not None:
            if timer_id not in bucket:
                return False
            bucket.pop(timer_id)
            if not bucket:
                del period.many[tick]
        elif period.single.get(tick) == timer_id:
            del period.single[tick]
        else:
            return False
        self._shrink(number, period, 1)
        return True

    def first_tick(self) -> int | None:
        """The earliest tick that has a timer."""
        if not self._numbers:
            return None
        number = self._numbers[0]
        period = self._periods[number]
        if number != self._open:
            self._open = number
            self._open_ticks = period.ticks()
            heapify(self._open_ticks)
        ticks = self._open_ticks
        while ticks[0] not in period.single and ticks[0] not in period.many:
            heappop(ticks)
        return ticks[0]

    def count_from(self, tick: int) -> int:
        """How many timers there are of ``tick`` and later ones. Looks at their periods only."""
        count = 0
        for at in range(len(self._numbers) - 1, -1, -1):
            number = self._numbers[at]
            if number < tick >> PERIOD_BITS:
                break
            period = self._periods[number]
            if number > tick >> PERIOD_BITS:
                count += period.size
                continue
            count += sum(one >= tick for one in period.single)
            count += sum(len(ids) for one, ids in period.many.items() if one >= tick)
        return count

    def pop(self, until: int, limit: int) -> list[tuple[int, str]]:
        """Remove and return up to ``limit`` timers of ticks up to and with ``until``, in order."""
        taken: list[tuple[int, str]] = []
        while len(taken) < limit:
            tick = self.first_tick()
            if tick is None or tick > until:
                break
            number = tick >> PERIOD_BITS
            period = self._periods[number]
            ids = list(islice(period.following(tick, ""), limit - len(taken)))
            bucket = period.many.get(tick)
            if bucket is None:
                del period.single[tick]
            elif len(ids) == len(bucket):
                del period.many[tick]
            else:
                for timer_id in ids:
                    bucket.pop(timer_id)
            self._shrink(number, period, len(ids))
            taken.extend((tick, timer_id) for timer_id in ids)
        return taken

    def ascending(self, until: int | None = None) -> Iterator[tuple[int, str]]:
        """All timers up to and with ``until``, in order; lazily: nothing may change meanwhile."""
        if not self._numbers:
            return
        for timer in self._behind(self._numbers[0] << PERIOD_BITS, ""):
            if until is not None and timer[0] > until:
                return
            yield timer

    def following(self, tick: int, timer_id: str, limit: int) -> list[tuple[int, str]]:
        """Up to ``limit`` timers behind the one of that tick and id, in order.

        The id "" is before every other. Costs what it returns, and the ticks of a period.
        """
        return list(islice(self._behind(tick, timer_id), limit))

    def ids(self) -> list[str]:
        """Every id, in no order."""
        return [
            timer_id
            for period in self._periods.values()
            for ids in (period.single.values(), *period.many.values())
            for timer_id in ids
        ]

    def _behind(self, tick: int, timer_id: str) -> Iterator[tuple[int, str]]:
        numbers = self._numbers
        for at in range(bisect_left(numbers, tick >> PERIOD_BITS), len(numbers)):
            period = self._periods[numbers[at]]
            for later in sorted(t for t in period.ticks() if t >= tick):
                for one in period.following(later, timer_id if later == tick else ""):
                    yield later, one

    def _shrink(self, number: int, period: _Period, by: int) -> None:
        period.size -= by
        self._size -= by
        if not period.size:
            del self._periods[number]
            del self._numbers[bisect_left(self._numbers, number)]
            if number == self._open:
                self._open = None

    def _push_open_tick(self, period: _Period, tick: int) -> None:
        heappush(self._open_ticks, tick)
        if len(self._open_ticks) > 2 * PERIOD_TICKS:
            self._open_ticks = period.ticks()
            heapify(self._open_ticks)
