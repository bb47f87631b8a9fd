"""The deadlines of a server's unary calls: one heap, watched by one task.

`Deadlines` is pure: times come in as arguments. Calls answered in time are not
searched for; they are counted, and swept once they outnumber the live ones, so
the heap stays within twice the calls in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

_SWEEP_ENTRIES_MIN = 1_024
"""Below this many entries sweeping is not worth it."""


class Expiring(Protocol):
    """A call with a deadline."""

    @property
    def answered(self) -> bool:
        """Whether its deadline no longer matters."""
        ...

    def expire(self) -> None:
        """Its deadline has passed."""
        ...


class Deadlines:
    """A heap of calls by deadline."""

    __slots__ = ("_answered", "_heap", "_sequence", "on_earlier")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Expiring]] = []
        self._sequence = count()
        self._answered = 0
        self.on_earlier: Callable[[float], None] = _ignore
        """Called with the new earliest deadline whenever `add` brings one."""

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_s(self) -> float:
        """The earliest deadline; infinity without any."""
        return self._heap[0][0] if self._heap else float("inf")

    def add(self, deadline_s: float, call: Expiring) -> None:
        """Watch a call."""
        heap = self._heap
        heappush(heap, (deadline_s, next(self._sequence), call))
        if heap[0][2] is call:
            self.on_earlier(deadline_s)

    def answered(self) -> None:
        """One of the watched calls was answered in time."""
        self._answered += 1
        heap = self._heap
        if self._answered * 2 > len(heap) > _SWEEP_ENTRIES_MIN:
            heap[:] = [entry for entry in heap if not entry[2].answered]
            heapify(heap)
            self._answered = 0

    def expire(self, now_s: float) -> None:
        """Expire every unanswered call whose deadline is not after now."""
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            call = heap[0][2]
            if call.answered:
                heappop(heap)
                self._answered -= 1
            else:
                call.expire()  # reports itself to `answered`; taken off the heap next time round


def _ignore(_deadline_s: float) -> None:
    pass
