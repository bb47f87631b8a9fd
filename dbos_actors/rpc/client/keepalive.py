"""When a client pings its server, and when it gives the connection up (keepalive.md). Pure."""

from __future__ import annotations

from dbos_actors.rpc.client.options import ChannelOptions
from dbos_actors.rpc.wire.keepalive import Action


class ClientKeepalive:
    """The state of one connection."""

    __slots__ = ("_answer_s_max", "_interval_s", "_ping_s", "_without_calls", "heard_s")

    heard_s: float
    """When bytes last came from the server."""

    def __init__(self, options: ChannelOptions, interval_s: float, now_s: float) -> None:
        self._interval_s = interval_s
        self._answer_s_max = options.keepalive_answer_s_max
        self._without_calls = options.keepalive_without_calls
        self._ping_s: float | None = None
        self.heard_s = now_s

    def tick(self, now_s: float, *, busy: bool) -> Action:
        """What to do now; to be called several times in each interval."""
        if self._ping_s is not None:
            if self.heard_s >= self._ping_s:
                self._ping_s = None
            elif now_s - self._ping_s >= self._answer_s_max:
                return Action.CLOSE
            else:
                return Action.NOTHING
        if not busy and not self._without_calls:
            self.heard_s = now_s  # a server that was asked nothing has nothing to say
        elif now_s - self.heard_s >= self._interval_s:
            self._ping_s = now_s
            self.heard_s = min(self.heard_s, now_s - self._interval_s)
            return Action.PING
        return Action.NOTHING
