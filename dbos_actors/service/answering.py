"""What the two streams with answers have in common: their tasks, and messages that have to wait.

Each stream takes messages, has actors decide about them, and sends responses. It has two tasks,
which run only while there is something to do. One sends responses. The other delivers again what
found an actor's queue full; meanwhile the stream reads nothing more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Generic, TypeVar

import trio

from dbos_actors.service.on_demand import OnDemand

_OVERLOAD_PAUSE_S: Final = 0.02
"""Before what found a queue full is tried again."""

Taken = TypeVar("Taken")
"""What is delivered to an actor: a message, or several as one."""


class AnsweringStream(ABC, Generic[Taken]):
    """The state of one stream, as far as every such stream has it."""

    def __init__(self) -> None:
        # Found a queue full; delivered again before anything more is read.
        self._postponed: list[Taken] = []
        self._responses = OnDemand(self._send_responses)
        self._deliveries = OnDemand(self._deliver_postponed)
        self._progress = trio.Event()

    def run_in(self, nursery: trio.Nursery) -> None:
        """Send responses there; it gets what the stream is to fail with. `stop` before it ends."""
        self._responses.run_in(nursery)
        self._deliveries.run_in(nursery)

    def stop(self) -> None:
        """Send nothing more, however what was taken turns out."""
        self._responses.stop()
        self._deliveries.stop()

    def postpone(self, taken: Taken) -> None:
        """A queue was full: deliver it again soon."""
        self._postponed.append(taken)
        self._deliveries.wake()

    async def _deliver_postponed(self) -> None:
        await trio.sleep(_OVERLOAD_PAUSE_S)
        postponed, self._postponed = self._postponed, []
        for taken in postponed:
            self._deliver_again(taken)
        self._progress.set()

    async def _wait_for_progress(self) -> None:
        self._progress = trio.Event()
        await self._progress.wait()

    @abstractmethod
    def _deliver_again(self, taken: Taken) -> None:
        """Deliver what was postponed."""

    @abstractmethod
    async def _send_responses(self) -> None:
        """Send what there is. Raises what the stream is to fail with."""
