"""The deadlines of calls: one as its user sees it, and all of a server or a channel.

`Deadlines` holds every call that has a deadline. It is pure: times come in as arguments. One task,
`watch`, sleeps until the earliest deadline.

Calls are kept in buckets of a few milliseconds, and a heap orders the buckets. A call that is
answered in time is taken out of its bucket's dict, and nothing of it stays behind. (A heap of calls
doubled the cost of a call: calls that had been answered stayed in it until their deadline, and the
garbage collector walked them all that time.)
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import ceil
from typing import NoReturn, Protocol

import trio

from dbos_actors.clock import Clock

_BUCKETS_PER_S = 256
"""A call expires at the end of its bucket, so up to 4 ms late; never early."""

_EXPIRED_AT_ONCE = 100
"""Calls that expire before other tasks run: each is answered in some 20 µs."""

_SWEEP_ENTRIES_MIN = 1_024
"""Below this many entries of empty buckets sweeping is not worth it."""


class Deadline:
    """When the client gives its call up (`grpclib.metadata.Deadline`, on a `Clock`)."""

    __slots__ = ("_clock", "deadline_s")

    def __init__(self, deadline_s: float, clock: Clock) -> None:
        self.deadline_s = deadline_s
        """On `Clock.monotonic_s`'s scale."""
        self._clock = clock

    def time_remaining(self) -> float:
        """Seconds until then; not negative."""
        return max(0.0, self.deadline_s - self._clock.monotonic_s())


class Expiring(Protocol):
    """A call with a deadline."""

    def expire(self) -> None:
        """Its deadline has passed."""
        ...


class Deadlines:
    """Calls by deadline."""

    __slots__ = ("_buckets", "_heap", "on_earlier")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Expiring, None]] = {}
        # Every bucket's number, perhaps twice, and those of some that are gone.
        self._heap: list[int] = []
        self.on_earlier: Callable[[float], None] = _ignore
        """Called with the new earliest deadline whenever `add` brings one."""

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    @property
    def next_s(self) -> float:
        """When to call `expire`; infinity if never."""
        return self._heap[0] / _BUCKETS_PER_S if self._heap else float("inf")

    def add(self, deadline_s: float, call: Expiring) -> None:
        """Watch a call."""
        number = ceil(deadline_s * _BUCKETS_PER_S)
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket[call] = None
            return
        self._buckets[number] = {call: None}
        heap = self._heap
        if len(heap) > _SWEEP_ENTRIES_MIN + 2 * len(self._buckets):
            heap[:] = self._buckets
            heapify(heap)
            self.on_earlier(self.next_s)
            return
        heappush(heap, number)
        if heap[0] == number:
            self.on_earlier(number / _BUCKETS_PER_S)

    def remove(self, deadline_s: float, call: Expiring) -> None:
        """The call was answered; no-op for one that is not watched."""
        number = ceil(deadline_s * _BUCKETS_PER_S)
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket.pop(call, None)
            if not bucket:
                del self._buckets[number]

    def expire(self, now_s: float) -> None:
        """Expire watched calls whose bucket ends not after now: the earliest ones, and not more
        than a round of the loop has time for. `next_s` is in the past if there are more.
        """
        heap, buckets = self._heap, self._buckets
        left = _EXPIRED_AT_ONCE
        while left and heap and heap[0] <= now_s * _BUCKETS_PER_S:
            bucket = buckets.get(heap[0])
            if bucket is None:
                heappop(heap)
                continue
            call, _ = bucket.popitem()
            if not bucket:
                del buckets[heap[0]]
            left -= 1
            call.expire()


async def watch(deadlines: Deadlines, clock: Clock) -> NoReturn:
    """Expire calls when their deadlines pass, until cancelled."""
    while True:
        scope = trio.CancelScope(deadline=deadlines.next_s)

        def sooner(deadline_s: float, scope: trio.CancelScope = scope) -> None:
            scope.deadline = deadline_s

        deadlines.on_earlier = sooner
        with scope:
            await trio.sleep_forever()
        deadlines.expire(clock.monotonic_s())


def _ignore(_deadline_s: float) -> None:
    pass
