"""How much happens in a second: sums that are looked at once a second, and what they rose by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

_EVERY_S: Final = 1.0
_OVER_S: Final = 10
"""Rates are over the last so many seconds: long enough for one commit a second not to flicker."""


class Totals(NamedTuple):
    """Sums since the start."""

    results: int
    calls: int
    """Submissions that were committed, reads that waited for a commit included."""
    written_bytes: int


class Rates:
    """Differences of `Totals` over the last seconds."""

    def __init__(self, totals: Callable[[], Totals]) -> None:
        self._totals = totals
        self._seen: deque[tuple[float, Totals]] = deque(maxlen=_OVER_S + 1)

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            self._seen.append((trio.current_time(), self._totals()))
            await trio.sleep(_EVERY_S)

    def per_second(self) -> Totals:
        """By how much each rises in a second, rounded; 0 in the first second after the start."""
        if not self._seen:
            return Totals(0, 0, 0)
        since_s, before = self._seen[0]
        passed_s = trio.current_time() - since_s
        if passed_s < _EVERY_S:
            return Totals(0, 0, 0)
        now = self._totals()
        return Totals(*(round((b - a) / passed_s) for a, b in zip(before, now, strict=True)))
