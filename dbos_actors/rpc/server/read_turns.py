"""Whose turn it is to read, while more comes in than can be answered soon.

Trio runs every task that can run before it looks for I/O again. When a hundred connections are
busy, one such round takes a second. The tasks that answer the calls, above all the committer, need
several rounds for each batch. So the more came in, the less would get done.

Therefore connections take turns at reading when more than `ServerLimits.calls_busy` unary calls
wait. One connection reads in a round of Trio, at most `TURN_BYTES`, in the order of their arrival.
What is not read waits in its client's socket, where it costs the server nothing.

The same holds for bytes: when a thousand connections bring 64 KiB each, handling them takes a third
of a second, whatever the calls are. A connection is *heavy* if its last read brought `TURN_BYTES`
or more. While more than `HEAVY_MAX` connections are heavy, these take turns. The others read at
once, so a client that sends little does not wait behind those that send much.

A connection whose client is not known yet always takes turns, and reads `STRANGER_BYTES` in each.
So strangers can cause some milliseconds of work in a round, and no more.

A connection also takes turns while handlers of its streams wait for theirs (`HandlerTurns`), and to
end all its streams when it is lost.

Refusing calls takes time as well, which the calls that are served need. After a turn in which calls
were refused because the server is overloaded, the next turn begins after a pause of four times its
length. So refusing takes a fifth of the time at most, however many calls are sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from dbos_actors.rpc.server.shared_state import SharedState

TURN_BYTES: Final = 32 * 1024
"""What a connection may read in a turn: some milliseconds of small calls."""

STRANGER_BYTES: Final = 16 * 1024
"""What a connection may read in a turn while its client is not known: 250 small calls, which are
refused in 3 ms. Enough for the engine to see a flood of settings or pings as one."""

HEAVY_MAX: Final = 16
"""Heavy connections that read without a turn: 1 MiB a round at a window of 64 KiB, some 5 ms."""

_PAUSE_FACTOR: Final = 4
_PAUSE_S_MIN: Final = 0.002
"""Shorter ones are owed until they are worth a system call's resolution."""
_PAUSE_S_MAX: Final = 0.05
"""Pings and resets have to be read too."""


class ReadTurns:
    """An async context manager: one turn at reading; `is_needed` says when to take one."""

    __slots__ = (
        "_began_s",
        "_busy",
        "_free_s",
        "_heavy",
        "_line",
        "_overloaded",
        "_shared",
        "_shed_before",
    )

    def __init__(self, shared: SharedState, overloaded: Callable[[], bool]) -> None:
        """``overloaded`` says whether calls wait so long that new ones had better be refused."""
        self._shared = shared
        self._busy = shared.limits.calls_busy
        self._overloaded = overloaded
        self._line = trio.Lock()
        self._heavy = 0
        self._began_s = 0.0
        self._free_s = 0.0
        self._shed_before = 0

    @property
    def is_needed(self) -> bool:
        """Whether so many calls wait that connections should take turns."""
        shared = self._shared
        if shared.calls_live - shared.streams_live > self._busy:
            return True
        shared.shedding = False
        return False

    def must_wait(self, *, is_stranger: bool, is_heavy: bool) -> bool:
        """Whether a connection that has something to read must take a turn for it."""
        return self.is_needed or is_stranger or (is_heavy and self._heavy > HEAVY_MAX)

    def count_heavy(self, change: int) -> None:
        """One connection more (1) or less (-1) is heavy."""
        self._heavy += change

    async def __aenter__(self) -> None:
        """Wait for the turn. Cancellation gives the place in the line up."""
        await self._line.acquire()
        try:
            now_s = trio.current_time()
            if self._free_s > now_s + _PAUSE_S_MIN:
                await trio.sleep_until(self._free_s)
            else:
                await trio.lowlevel.checkpoint()
        except BaseException:
            self._line.release()
            raise
        shared = self._shared
        shared.shedding = self.is_needed and self._overloaded()
        self._shed_before = shared.shed_total
        self._began_s = trio.current_time()

    async def __aexit__(self, *_: object) -> None:
        """End the turn; without a checkpoint."""
        if self._shared.shed_total != self._shed_before:
            now_s = trio.current_time()
            owed_s = _PAUSE_FACTOR * (now_s - self._began_s)
            self._free_s = min(max(self._free_s, now_s) + owed_s, now_s + _PAUSE_S_MAX)
        self._line.release()
