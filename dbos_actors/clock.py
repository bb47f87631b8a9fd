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


class SystemClock:
    """The machine's clocks, with monotonic time as Trio sees it (so a `MockClock` moves it)."""

    __slots__ = ()

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_s(self) -> float:
        return time.time()
