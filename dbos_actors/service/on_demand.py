"""What a stream has to do beside its reading, in a task that is started when it is first needed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from dbos_actors.sleeper import Sleeper


class OnDemand:
    """Work that is done once each time something has come up, or several things together.

    The first `wake` starts a task, which then waits for the next. Ten thousand streams that wait
    for their first task cost no task for it.
    """

    __slots__ = ("_has_news", "_is_started", "_nursery", "_sleeper", "_work")

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._nursery: trio.Nursery | None = None
        self._sleeper = Sleeper()
        self._is_started = False
        self._has_news = False

    def run_in(self, nursery: trio.Nursery) -> None:
        """Have the task run in this nursery, which gets what it raises. `stop` before it ends."""
        self._nursery = nursery
        if self._has_news:
            self.wake()

    def stop(self) -> None:
        """Do nothing more. Whose work it was is let go of, and so freed without a collection."""
        self._nursery = None
        self._work = trio.lowlevel.checkpoint

    def wake(self) -> None:
        """Something has come up."""
        self._has_news = True
        if self._is_started:
            self._sleeper.wake()
        elif self._nursery is not None:
            self._is_started = True
            self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        while True:
            self._has_news = False
            await self._work()
            if not self._has_news:
                await self._sleeper.sleep()
