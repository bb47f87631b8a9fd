"""What wakes the scheduler's task, which otherwise sleeps until something falls due."""

from __future__ import annotations

import math

import trio


class Alarm:
    """Wakes one task. Whoever finds work for that task rings."""

    __slots__ = ("_rung", "planned_s")

    def __init__(self) -> None:
        self._rung = trio.Event()
        self.planned_s = math.inf
        """When the task will wake by itself, on the clock of `Now.monotonic_s`."""

    def ring(self) -> None:
        """There is work: end the present sleep, or the next one."""
        self._rung.set()

    def reset(self) -> None:
        """All that was rung for is about to be done."""
        self._rung = trio.Event()

    async def sleep(self, pause_s: float, *, until_s: float) -> None:
        """Sleep for ``pause_s`` seconds, or until it rings.

        ``until_s`` is the same moment on the clock of `Now.monotonic_s`.
        """
        self.planned_s = until_s
        with trio.move_on_after(pause_s):
            await self._rung.wait()
        self.planned_s = -math.inf
