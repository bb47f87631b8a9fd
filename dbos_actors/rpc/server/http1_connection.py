"""A server's connection over HTTP/1.1.

It is a `ServerConnection` with another engine, and so has the same admission, limits, accounts and
drain. What differs is when it is given up. HTTP/1.1 has neither a greeting nor a ping, so a client
is judged by what it sends and by what it takes (`Http1Options`):

    a head is incomplete for too long            the connection is closed
    a body pauses for too long                   likewise, unless the server does not read on
    output waits, and the client takes nothing   likewise
    there is no request for too long             it ends; nothing is lost

A client that has silently gone while the server has nothing to send it is TCP's matter
(`dbos_actors.rpc.server.socket_driver`).
"""

from __future__ import annotations

from dbos_actors.rpc.server.connection import ServerConnection
from dbos_actors.rpc.server.keepalive import Keepalive, KeepalivePolicy
from dbos_actors.rpc.server.shared_state import Driver, SharedState
from dbos_actors.rpc.wire.http1 import Http1Connection, Http1Options
from dbos_actors.rpc.wire.keepalive import Action


class Http1Keepalive(Keepalive):
    """When a connection over HTTP/1.1 is drained or given up."""

    __slots__ = ("_engine", "_head_s", "_options")

    def __init__(
        self,
        engine: Http1Connection,
        options: Http1Options,
        policy: KeepalivePolicy,
        now_s: float,
        *,
        age_factor: float,
    ) -> None:
        super().__init__(policy, now_s, age_factor=age_factor)
        self._engine = engine
        self._options = options
        # Since when a head is incomplete, to about a second.
        self._head_s: float | None = None
        self.greeted = True

    def tick(self, now_s: float, *, busy: bool) -> Action:
        """To be asked about once a second."""
        engine, options, policy = self._engine, self._options, self._policy
        if not engine.is_gathering_head:
            self._head_s = None
        elif self._head_s is None:
            self._head_s = now_s
        elif now_s - self._head_s >= options.head_s_max:
            return Action.CLOSE
        if engine.is_awaiting_body and now_s - self.heard_s >= options.body_pause_s_max:
            return Action.CLOSE
        if busy or self.responded or engine.is_gathering_head:
            self._idle_s = now_s
            self.responded = False
        age_s = now_s - self._opened_s
        if age_s >= self._age_s_max + policy.age_grace_s:
            return Action.CLOSE
        if self._draining_s is not None:
            return Action.NOTHING
        idle_s = now_s - self._idle_s
        if age_s >= self._age_s_max or idle_s >= min(options.idle_s_max, policy.idle_s_max):
            return Action.DRAIN
        return Action.NOTHING


class Http1ServerConnection(ServerConnection):
    """The protocol's state of one connection over HTTP/1.1."""

    __slots__ = ("_accepted", "_http1", "_stalled_s_max")

    def __init__(
        self,
        shared: SharedState,
        driver: Driver,
        *,
        peer: str,
        now_s: float,
        age_factor: float = 1.0,
        is_loopback: bool = False,
        is_tls: bool = False,
    ) -> None:
        limits = shared.limits
        engine = Http1Connection(limits.http1, is_tls=is_tls)
        keepalive = Http1Keepalive(
            engine, limits.http1, limits.keepalive, now_s, age_factor=age_factor
        )
        super().__init__(
            shared,
            driver,
            peer=peer,
            now_s=now_s,
            is_loopback=is_loopback,
            engine=engine,
            keepalive=keepalive,
        )
        self._http1 = engine
        self._stalled_s_max = limits.stalled_s_max
        # How much the socket had accepted when that last changed, and when that was.
        self._accepted = (0, now_s)

    @property
    def is_full(self) -> bool:
        """Whether nothing is to be read until what has come is used."""
        return self._http1.is_full

    def flushed(self, socket_bytes: int, now_s: float) -> bool:
        """As `ServerConnection.flushed`."""
        again = super().flushed(socket_bytes, now_s)
        if self._http1.is_over and not socket_bytes:
            self.lost()
        return not self.closed and (again or self._http1.has_output)

    def tick(self, now_s: float, accepted_bytes: int) -> None:
        """As `ServerConnection.tick`."""
        accepted, since_s = self._accepted
        if accepted != accepted_bytes or not self.unsent_bytes:
            self._accepted = accepted_bytes, now_s
        elif now_s - since_s >= self._stalled_s_max:
            self.lost()
        super().tick(now_s, accepted_bytes)
