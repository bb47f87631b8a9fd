"""The timer heap: ids ordered by the tick at which they fire.

It has no clock. A tick is an integer on a scale the owner chooses (a wall-clock
second, a sixteenth of a monotonic second), and the owner says how far time has
come. Which kind of timer an id stands for follows from the heap it is in.

Shape. Time is cut into periods of `PERIOD_TICKS` ticks; a heap orders the
periods, and only the earliest one, the *open* period, has a heap of its own
ticks. The ids of a tick sit in a bucket, oldest first, and leave it by name. So

- adding, discarding and taking cost O(log n) of few, small numbers;
- what is discarded is gone at once: no timer leaves a corpse. Only *ticks* and
  *periods* are deleted lazily, each kept within twice what is live (plus
  `_SLACK`) by rebuilding a list of at most 2 x `PERIOD_TICKS` numbers;
- nothing grows in one piece: no table of a million entries is ever rehashed in
  one step, except the bucket of one single tick;
- a million timers are a few hundred objects to the garbage collector, since a
  dict of strings and numbers alone is not tracked.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import NamedTuple

PERIOD_BITS = 12
PERIOD_TICKS = 1 << PERIOD_BITS
"""Ticks of a period: opening one sorts at most so many numbers, 0.3 ms."""

_SLACK = 64
"""Dead periods that are not worth a rebuild."""


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
        self.many: dict[int, dict[str, None]] = {}
        self.size = 0

    def ticks(self) -> list[int]:
        return [*self.single, *self.many]

    def ids(self, tick: int) -> Iterator[str]:
        bucket = self.many.get(tick)
        return iter((self.single[tick],)) if bucket is None else iter(bucket)


class TimerHeap:
    """A set of (tick, id) pairs, taken in order of tick, then of arrival."""

    __slots__ = ("_numbers", "_open", "_open_ticks", "_periods", "_size")

    def __init__(self) -> None:
        self._periods: dict[int, _Period] = {}
        self._numbers: list[int] = []  # heap; holds every key of `_periods`, perhaps dead ones
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
            heappush(self._numbers, number)
            if len(self._numbers) > 2 * len(self._periods) + _SLACK:
                self._numbers = list(self._periods)
                heapify(self._numbers)
        bucket = period.many.get(tick)
        if bucket is not None:
            if timer_id in bucket:
                return
            bucket[timer_id] = None
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
            del bucket[timer_id]
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
        while self._numbers:
            number = self._numbers[0]
            period = self._periods.get(number)
            if period is None:
                heappop(self._numbers)
                continue
            if number != self._open:
                self._open = number
                self._open_ticks = period.ticks()
                heapify(self._open_ticks)
            ticks = self._open_ticks
            while ticks[0] not in period.single and ticks[0] not in period.many:
                heappop(ticks)
            return ticks[0]
        return None

    def pop(self, until: int, limit: int) -> list[tuple[int, str]]:
        """Remove and return up to ``limit`` timers of ticks up to and with ``until``, in order.

        Meant for batches: a bucket that is eaten one by one costs more each time.
        """
        taken: list[tuple[int, str]] = []
        while len(taken) < limit:
            tick = self.first_tick()
            if tick is None or tick > until:
                break
            number = tick >> PERIOD_BITS
            period = self._periods[number]
            ids = list(islice(period.ids(tick), limit - len(taken)))
            bucket = period.many.get(tick)
            if bucket is None:
                del period.single[tick]
            elif len(ids) == len(bucket):
                del period.many[tick]
            else:
                for timer_id in ids:
                    del bucket[timer_id]
            self._shrink(number, period, len(ids))
            taken.extend((tick, timer_id) for timer_id in ids)
        return taken

    def ascending(self, until: int | None = None) -> Iterator[tuple[int, str]]:
        """All timers up to and with ``until``, in order; lazily: nothing may change meanwhile."""
        for number in sorted(self._periods):
            if until is not None and number << PERIOD_BITS > until:
                return
            period = self._periods[number]
            for tick in sorted(period.ticks()):
                if until is not None and tick > until:
                    return
                for timer_id in period.ids(tick):
                    yield tick, timer_id

    def after(self, tick: int) -> list[tuple[int, str]]:
        """All timers later than ``tick``, in order."""
        first = tick >> PERIOD_BITS
        found: list[tuple[int, str]] = []
        for number in sorted(n for n in self._periods if n >= first):
            period = self._periods[number]
            for later in sorted(t for t in period.ticks() if t > tick):
                found.extend((later, timer_id) for timer_id in period.ids(later))
        return found

    def _shrink(self, number: int, period: _Period, by: int) -> None:
        period.size -= by
        self._size -= by
        if not period.size:
            del self._periods[number]

    def _push_open_tick(self, period: _Period, tick: int) -> None:
        heappush(self._open_ticks, tick)
        if len(self._open_ticks) > 2 * PERIOD_TICKS:
            self._open_ticks = period.ticks()
            heapify(self._open_ticks)
