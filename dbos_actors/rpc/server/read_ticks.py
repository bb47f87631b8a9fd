"""The ticks at which connections are read while calls are gathered.

`dbos_actors.rpc.server.gathering` decides whether they are. One task keeps the time for all
connections; it sleeps while none waits for a tick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import trio

from dbos_actors.rpc.server.gathering import TICK_S, Gathering, Totals
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.sleeper import Sleeper


class ReadTicks(Sleeper):
    """The ticks of one server. Whoever reads a connection counts that in ``reads``."""

    __slots__ = ("_cpu_s", "_gathering", "_line", "_shared", "due_s", "is_on", "reads")

    is_on: bool
    """Whether a connection with something to read is to `wait` before."""

    due_s: float
    """When `look` is to be called, at the next read."""

    def __init__(
        self, shared: SharedState, cpu_s: Callable[[], float], gathering: Gathering | None = None
    ) -> None:
        """``cpu_s`` tells how much CPU time the thread of the server has used so far."""
        super().__init__()
        self._shared = shared
        self._cpu_s = cpu_s
        self._gathering = gathering or Gathering()
        self._line = trio.lowlevel.ParkingLot()
        self.reads = 0
        self.is_on = self._gathering.is_on
        self.due_s = self._gathering.due_s

    def look(self, now_s: float) -> None:
        """Decide anew whether calls are gathered."""
        gathering = self._gathering
        gathering.look(Totals(now_s, self._cpu_s(), self._shared.calls_total, self.reads))
        self.is_on = gathering.is_on
        self.due_s = gathering.due_s

    async def wait(self) -> None:
        """Wait for the next tick. If cancelled, the place among those that wait is given up."""
        if not self._line:
            self.wake()
        await self._line.park()

    async def run(self) -> NoReturn:
        """Keep the time until cancelled. A tick is never less than `TICK_S` after the last."""
        last_s = -TICK_S
        while True:
            if not self._line:
                await self.sleep()
            await trio.sleep_until(last_s + TICK_S)
            last_s = trio.current_time()
            self._line.unpark_all()
