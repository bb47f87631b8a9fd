"""How many handlers are started or ended in one round of Trio's loop, and whose.

The handler of a grpclib service runs in a task. Trio runs every task that can run before it looks
for I/O again. So if a client opens ten thousand streams at once, or resets them, or goes away, one
round runs ten thousand handlers. That takes a second, in which nobody else is served.

Therefore `STEPS` handlers are started or told of their call's end in a round. Each connection has a
line of its own for more, and the connections take turns, one step each. So a client with one stream
does not wait behind a client with thousands, unless that one has thousands of connections too.

A call that waits for its start counts as live, and its handler as started, so the limits of both
also bound the lines.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final, NoReturn

import trio

from dbos_actors.sleeper import Sleeper

STEPS: Final = 4
"""Handlers that are started or told in a round. Each takes some 0.2 ms in the next rounds."""


class HandlerTurns:
    """The steps that wait, of all connections of a server."""

    __slots__ = ("_left", "_lines", "_sleeper")

    def __init__(self) -> None:
        # Steps that may still be done in this round. None are left while others wait.
        self._left = STEPS
        self._lines: OrderedDict[Hashable, deque[Callable[[], None]]] = OrderedDict()
        self._sleeper = Sleeper()

    def take(self, connection: Hashable, step: Callable[[], None]) -> None:
        """Do a step of a connection now if there is time in this round, or else in its turn.

        Its steps are done in their order. They must not raise.
        """
        if self._left:
            if self._left == STEPS:
                self._sleeper.wake()
            self._left -= 1
            step()
        elif (line := self._lines.get(connection)) is not None:
            line.append(step)
        else:
            self._lines[connection] = deque([step])

    def waits(self, connection: Hashable) -> bool:
        """Whether some steps of a connection wait for their turn."""
        return connection in self._lines

    async def run(self) -> NoReturn:
        """Give the turns, until cancelled; then what waits is never done."""
        while True:
            if self._left == STEPS:
                await self._sleeper.sleep()
            self._begin_round()
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _begin_round(self) -> None:
        lines = self._lines
        left = STEPS
        while left and lines:
            connection, line = lines.popitem(last=False)
            step = line.popleft()
            if line:
                lines[connection] = line
            left -= 1
            step()
        self._left = left
