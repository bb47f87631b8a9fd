"""When a connection is pinged, drained or given up.

`Keepalive` is told what happens and what time it is, and says what to do. It reads no clock.

The policy is that of gRPC's keepalive.md and of grpc-go's server. The server pings a client that it
has not heard from. A client that pings more often than it may collects strikes, and is sent away
when it has too many. Any response that is sent to it clears them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from dbos_actors.rpc.wire.keepalive import Action

UNANSWERED_SHUTDOWN_S = 5.0
"""How long a client has to acknowledge a shutdown notice before the final GOAWAY."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepalivePolicy:
    """Times of a connection, in seconds; enforced to about a second."""

    handshake_s_max: float = 120.0
    """From accepting to the client's SETTINGS (TLS handshake included); grpc-go's default."""
    silence_s_max: float = 7_200.0
    """Nothing heard for so long: ping; grpc-go's default."""
    answer_s_max: float = 20.0
    """Nothing heard for so long after a ping: the client is gone; grpc-go's default."""
    client_ping_s_min: float = 300.0
    """A client's pings must be so far apart while it has calls; grpc-go's default."""
    client_pings_without_calls: bool = False
    """Whether it may ping so often without calls too; else once in two hours."""
    strikes_max: int = 2
    """Pings too early before it is told ENHANCE_YOUR_CALM; grpc-go's."""
    idle_s_max: float = inf
    """Without calls for so long: drained."""
    age_s_max: float = inf
    """Drained when so old, so that clients spread anew (behind a load balancer)."""
    age_grace_s: float = inf
    """Closed so long after that, even with calls."""


_PING_WITHOUT_CALLS_S_MIN = 7_200.0


class Keepalive:
    """The state of one connection."""

    __slots__ = (
        "_age_s_max",
        "_client_ping_s",
        "_draining_s",
        "_idle_s",
        "_opened_s",
        "_ping_s",
        "_policy",
        "_strikes",
        "greeted",
        "heard_s",
        "responded",
    )

    heard_s: float
    """When bytes last came from the client."""
    greeted: bool
    """Whether its SETTINGS came."""
    responded: bool
    """Whether a response was sent since the last ping or tick."""

    def __init__(self, policy: KeepalivePolicy, now_s: float, *, age_factor: float = 1.0) -> None:
        self._policy = policy
        self._age_s_max = policy.age_s_max * age_factor
        self._opened_s = now_s
        self._idle_s = now_s
        self._ping_s: float | None = None
        self._client_ping_s = -inf
        self._strikes = 0
        self._draining_s: float | None = None
        self.heard_s = now_s
        self.greeted = False
        self.responded = False

    def client_pinged(self, now_s: float, *, busy: bool) -> bool:
        """The client sent a PING; whether that was one too many."""
        earlier_s, self._client_ping_s = self._client_ping_s, now_s
        if self.responded:
            self.responded = False
            self._idle_s = now_s
            self._strikes = 0
            return False
        policy = self._policy
        apart_s = policy.client_ping_s_min
        if not busy and not policy.client_pings_without_calls:
            apart_s = max(apart_s, _PING_WITHOUT_CALLS_S_MIN)
        if now_s - earlier_s < apart_s:
            self._strikes += 1
        return self._strikes > policy.strikes_max

    def draining(self, now_s: float) -> None:
        """A graceful end has begun."""
        if self._draining_s is None:
            self._draining_s = now_s

    def tick(self, now_s: float, *, busy: bool) -> Action:
        """To be asked about once a second."""
        policy = self._policy
        if self.responded or busy:
            self._idle_s = now_s
            if self.responded:
                self.responded = False
                self._strikes = 0
        if not self.greeted:
            late = now_s - self._opened_s >= policy.handshake_s_max
            return Action.CLOSE if late else Action.NOTHING
        if self._ping_s is not None:
            if self.heard_s > self._ping_s:
                self._ping_s = None
            elif now_s - self._ping_s >= policy.answer_s_max:
                return Action.CLOSE
        elif now_s - self.heard_s >= policy.silence_s_max:
            self._ping_s = now_s
            return Action.PING
        age_s = now_s - self._opened_s
        if age_s >= self._age_s_max + policy.age_grace_s:
            return Action.CLOSE
        if self._draining_s is not None:
            return Action.NOTHING
        if age_s >= self._age_s_max or now_s - self._idle_s >= policy.idle_s_max:
            return Action.DRAIN
        return Action.NOTHING
