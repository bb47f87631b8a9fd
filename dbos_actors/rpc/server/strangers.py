"""Clients that have not said who they are, and the bounds of what they may use.

Most methods need a client that the server's `Authenticator` knows. *Open* methods (health checks)
need none, so their calls must not use up what others need. A connection on which no client was
authenticated yet is a *stranger*. On a server without an authenticator, a connection is a stranger
until its first call of a method that is not open.

Rules:
- A call is authenticated when its headers arrive. One that is not is refused at once: nothing of
  its message is kept, and it counts as live nowhere. The same holds for a call that its client may
  not make (`Authenticator.admit`).
- When a client loses the right to a call, its live calls are ended (`Server.reauthenticate`).
- Open calls do not count towards `ServerLimits.calls_live_max`. They have bounds of their own, for
  each connection and for all. Those of strangers are counted apart from those of known clients.
- When the bound for all is reached, the oldest call (or idle connection) makes room for the new
  one. If the new one were refused, a client that fills the bound first would keep all others out. A
  load balancer's health check is answered at once, so it is hardly ever the oldest.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from grpclib.const import Status

from dbos_actors.rpc.server.stream_call import StreamCall

DISPLACED = "too many calls that need no authentication: newer ones took this one's place"


class Stranger(Protocol):
    """A connection on which nobody was authenticated yet."""

    @property
    def is_busy(self) -> bool:
        """Whether it has calls."""
        ...

    def dismiss(self) -> None:
        """Close it at once: others need its place."""
        ...


class OpenCalls:
    """Live calls of open methods; `add` ends the oldest if there are too many."""

    __slots__ = ("_calls", "_count_max")

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._calls: OrderedDict[StreamCall, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: StreamCall) -> None:
        """Count a call, which must be discarded when it is over."""
        if len(self._calls) >= self._count_max:
            oldest, _ = self._calls.popitem(last=False)
            oldest.end(Status.RESOURCE_EXHAUSTED, DISPLACED)
        self._calls[call] = None

    def discard(self, call: StreamCall) -> None:
        """The call is over, or counted elsewhere."""
        self._calls.pop(call, None)


class Strangers:
    """Connections on which nobody was authenticated yet, in the order of their arrival."""

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: OrderedDict[Stranger, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Stranger) -> None:
        """A connection that was made, or whose client is no longer known."""
        self._connections[connection] = None

    def discard(self, connection: Stranger) -> None:
        """Its client is known now, or the connection is over."""
        self._connections.pop(connection, None)

    def dismiss_oldest(self) -> bool:
        """Close the oldest that has no call, or else the oldest; False: there is none.

        Those that have calls are at most as many as `ServerLimits.open_calls_strangers_max`,
        which bounds the search.
        """
        chosen = next((one for one in self._connections if not one.is_busy), None)
        if chosen is None:
            chosen = next(iter(self._connections), None)
        if chosen is None:
            return False
        self.discard(chosen)
        chosen.dismiss()
        return True
