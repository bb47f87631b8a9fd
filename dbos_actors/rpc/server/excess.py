"""Clients beyond their quota: what refusing them may cost the others.

An `Authenticator` that has quotas refuses a call with RESOURCE_EXHAUSTED when its headers come.
That is cheap, but a client that sends a hundred thousand such calls a second would still take all
of the server's time. So a connection on which such a call was refused stands in a *line* with the
other connections of its client. One of them reads at a time, and what its refusals took is owed
nine times over before the next one reads. So refusing one client takes a tenth of the time, over
however many connections it sends. A read that brought no call (the rest of refused messages, or
frames of no use) is owed in the same way. Calls that are admitted are not.

A connection leaves the line with a read of admitted calls alone, once nothing is owed. The other
connections of its client wait with it as long as anything is owed. While others
wait for their turns at reading (`read_turns`), a client in a line waits for one turn at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

import trio

REFUSAL_S: Final = 10e-6
"""What refusing a call takes, measured with a quota of a token file."""

_PAUSE_FACTOR: Final = 9
_PAUSE_S_MIN: Final = 0.002
"""Shorter ones are owed until they are worth a system call's resolution."""
_OWED_S_MAX: Final = 1.0
"""Pings and cancellations have to be read too."""

LINES_MAX: Final = 1_000
"""As many clients at once have a line; beyond it the one whose line is oldest begins a new one."""


class ExcessLine:
    """The connections of one client on which calls were refused for its quota."""

    __slots__ = ("_free_s", "lock")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        """Held by the connection whose turn it is."""
        # When what is owed is paid, on `trio.current_time`'s scale.
        self._free_s = 0.0

    def is_free(self, now_s: float) -> bool:
        """Whether nothing is owed."""
        return self._free_s <= now_s

    def owe(self, took_s: float, now_s: float) -> None:
        """So much of the server's time went into what the client was not entitled to."""
        free_s = max(self._free_s, now_s) + _PAUSE_FACTOR * took_s
        self._free_s = min(free_s, now_s + _OWED_S_MAX)

    async def wait_free(self) -> None:
        """Wait until what is owed is paid, if that is worth the while; a checkpoint."""
        if self._free_s > trio.current_time() + _PAUSE_S_MIN:
            await trio.sleep_until(self._free_s)
        else:
            await trio.lowlevel.checkpoint()


class ExcessLines:
    """The lines of a server's clients."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: OrderedDict[Hashable, ExcessLine] = OrderedDict()

    def line_of(self, client: Hashable) -> ExcessLine:
        """The line of a client of which a call was refused."""
        line = self.lines.get(client)
        if line is None:
            if len(self.lines) >= LINES_MAX:
                self.lines.popitem(last=False)
            line = self.lines[client] = ExcessLine()
        return line
