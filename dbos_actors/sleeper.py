"""A task that sleeps until another one wakes it."""

from __future__ import annotations

import trio


class Sleeper:
    """Base class of what has one task that sleeps while there is nothing to do.

    Cheaper than a `trio.Event` made anew for each sleep.
    """

    __slots__ = ("_sleeper",)

    def __init__(self) -> None:
        # The task, while it sleeps.
        self._sleeper: trio.lowlevel.Task | None = None

    async def sleep(self) -> None:
        """Sleep until woken. Only one task at a time may do so; if cancelled, it sleeps no more."""
        self._sleeper = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort_sleep)

    def wake(self) -> None:
        """Wake the task if it sleeps; it runs in Trio's next round."""
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            trio.lowlevel.reschedule(sleeper)

    def _abort_sleep(self, _: object) -> trio.lowlevel.Abort:
        # Trio wakes the task itself; rescheduling it a second time would crash the run.
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED
