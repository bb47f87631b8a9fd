"""The scheduler's time, which stands still for leases and retry delays while Redis is away.

While Redis is away, no worker can settle or extend a lease, so that time must not count.
"""

from __future__ import annotations

from dbos_actors.clock import AgeClock, Clock
from dbos_actors.domain.tasks.timers import Now


class TaskClock:
    """Both clocks, the monotonic one without the time that Redis was away."""

    __slots__ = ("_age_clock", "_away_s", "_away_since_s", "_clock")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._age_clock = AgeClock(clock)
        self._away_s = 0.0  # in all, until it was last back
        self._away_since_s: float | None = None

    def now(self) -> Now:
        """The present time."""
        monotonic_s = self._clock.monotonic_s()
        if self._away_since_s is not None:
            monotonic_s = self._away_since_s
        unjumped_s = self._age_clock.unjumped_s()
        return Now(self._clock.wall_s(), monotonic_s - self._away_s, unjumped_s)

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start, whether Redis is away or not."""
        return self._clock.monotonic_s()

    def stop(self) -> None:
        """Redis is away."""
        if self._away_since_s is None:
            self._away_since_s = self._clock.monotonic_s()

    def resume(self) -> None:
        """Redis is back."""
        if self._away_since_s is not None:
            self._away_s += self._clock.monotonic_s() - self._away_since_s
            self._away_since_s = None
