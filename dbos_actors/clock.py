"""The two clocks of the service, passed in wherever time is needed.

Durations, deadlines, leases and timeouts follow monotonic time; only what the
contract calls a time of day follows the wall clock.
"""

from __future__ import annotations

import time
from typing import Protocol

import trio


class Clock(Protocol):
    """A source of time."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never goes back. `trio.current_time`'s scale."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch; may jump either way."""
        ...


class AgeClock:
    """The wall clock as retention reads it: a jump forward makes nothing old.

    It shows the earlier of what the wall clock says and of what it would say had it
    not jumped since this object was made. What is dropped cannot be had back, so of
    two clocks that differ the earlier one is right.
    """

    __slots__ = ("_clock", "_monotonic_s", "_wall_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall_s = clock.wall_s()
        self._monotonic_s = clock.monotonic_s()

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, to subtract an age from."""
        return min(self._clock.wall_s(), self.unjumped_s())

    def unjumped_s(self) -> float:
        """What the wall clock would say had it not jumped since this object was made."""
        return self._wall_s + self._clock.monotonic_s() - self._monotonic_s


class SystemClock:
    """The machine's clocks, with monotonic time as Trio sees it (so a `MockClock` moves it)."""

    __slots__ = ()

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_s(self) -> float:
        return time.time()
