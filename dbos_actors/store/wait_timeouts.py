"""How long callers wait for a Redis that is away.

While Redis answers, nothing is tracked, because a healthy store answers in
milliseconds. When it goes away, everything that waits is entered, and so is what
comes in meanwhile. Each is told to give up when its own time has come.
"""

from __future__ import annotations

import heapq
from typing import Protocol

import trio

from dbos_actors.clock import Clock
from dbos_actors.errors import UnavailableError

# What is left of a caller's deadline for the answer to travel: a twentieth of a second, or
# this share of the whole, whichever is more.
ANSWER_S = 0.05
ANSWER_SHARE = 0.1


class Waiting(Protocol):
    """Something that can be told to stop waiting. `Submission` is one."""

    @property
    def deadline_s(self) -> float | None: ...

    def give_up(self, error: UnavailableError, /) -> None: ...


def give_up_at_s(since_s: float, deadline_s: float | None, wait_timeout_s: float) -> float:
    """When to answer someone who waits since ``since_s``, so that the answer arrives in time."""
    latest_s = since_s + wait_timeout_s
    if deadline_s is None:
        return latest_s
    return min(latest_s, deadline_s - max(ANSWER_S, ANSWER_SHARE * (deadline_s - since_s)))


class WaitTimeouts:
    """Tells those who wait, each once, when it is time to give up."""

    def __init__(self, *, wait_timeout_s: float, clock: Clock, address: str) -> None:
        self._wait_timeout_s = wait_timeout_s
        self._clock = clock
        self._address = address
        self._heap: list[tuple[float, int, Waiting]] = []
        self._enrolled = 0
        # By id, of those told that have no outcome yet: an object that waits keeps its id.
        self._given_up: set[int] = set()
        self._changed = trio.Event()
        self.reason = ""
        """Why Redis is away."""
        self.given_up_count = 0

    def enrol(self, waiting: Waiting, since_s: float) -> None:
        """Redis is away: have ``waiting`` give up in due time, unless it did already."""
        if id(waiting) in self._given_up:
            return
        at_s = give_up_at_s(since_s, waiting.deadline_s, self._wait_timeout_s)
        self._enrolled += 1
        heapq.heappush(self._heap, (at_s, self._enrolled, waiting))
        if self._heap[0][2] is waiting:
            self._changed.set()

    def clear(self) -> None:
        """Redis is back: nobody needs to give up."""
        self._heap.clear()

    def ended(self, waiting: Waiting) -> None:
        """``waiting`` has its outcome."""
        if self._given_up:
            self._given_up.discard(id(waiting))

    @property
    def has_given_up(self) -> bool:
        """Whether `ended` needs to be called at all."""
        return bool(self._given_up)

    def give_up(self, waiting: Waiting, error: UnavailableError) -> None:
        """Tell ``waiting`` now, unless it was told before."""
        if id(waiting) not in self._given_up:
            self._given_up.add(id(waiting))
            self.given_up_count += 1
            waiting.give_up(error)

    async def run(self) -> None:
        """Tell them, until cancelled."""
        while True:
            self._changed = trio.Event()
            with trio.CancelScope() as scope:
                if self._heap:
                    scope.deadline = self._heap[0][0]
                await self._changed.wait()
            self._tell()

    def _tell(self) -> None:
        now_s = self._clock.monotonic_s()
        error = UnavailableError(f"Redis at {self._address} is away: {self.reason}")
        while self._heap and self._heap[0][0] <= now_s:
            self.give_up(heapq.heappop(self._heap)[2], error)
