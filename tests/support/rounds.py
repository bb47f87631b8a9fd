"""How much happens in one round of Trio's loop: what other tasks have to wait for."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

import trio


class Rounds(trio.abc.Instrument):
    """Counts events by name, and keeps the most of each in one round, inside its ``with`` block."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self._most: Counter[str] = Counter()
        self._total: Counter[str] = Counter()
        self.rounds = 0

    def count(self, name: str) -> None:
        """It has happened once more."""
        self._now[name] += 1

    def most(self, name: str) -> int:
        """How often it happened in one round at most."""
        return self._most[name]

    def total(self, name: str) -> int:
        """How often it happened."""
        return self._total[name]

    def before_io_wait(self, timeout: float) -> None:
        """As Trio calls it: a round is over."""
        self.rounds += 1
        for name, number in self._now.items():
            self._most[name] = max(self._most[name], number)
        self._total.update(self._now)
        self._now.clear()

    def __enter__(self) -> Self:
        self._now.clear()
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        trio.lowlevel.remove_instrument(self)
        self.before_io_wait(0.0)
