"""The server of gRPC and Connect: it accepts connections, and drives them until it is drained.

`Server.serve` runs one task for each listener, one for each connection, and five for all
connections: one ends calls whose deadline has passed, one flushes answers that are given outside
a connection's own read, one keeps the ticks at which connections are read while calls are gathered,
one starts and ends handlers in turns, and one looks at keepalive, idle and age limits every second.
`dbos_actors.rpc.server.socket_driver` has what is done for one connection.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import trio

from dbos_actors.clock import Clock, SystemClock
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.authentication import Authenticator
from dbos_actors.rpc.server.handler_turns import HandlerTurns
from dbos_actors.rpc.server.interceptors import Interceptor
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import Listener, TlsListener
from dbos_actors.rpc.server.read_ticks import ReadTicks
from dbos_actors.rpc.server.read_turns import ReadTurns
from dbos_actors.rpc.server.routes import Servable
from dbos_actors.rpc.server.shared_state import AnswerRound, SharedState
from dbos_actors.rpc.server.socket_driver import READ_BYTES, SocketDriver
from dbos_actors.rpc.server.unary import UnaryMethod
from dbos_actors.rpc.server.web_options import WebOptions
from dbos_actors.rpc.wire.deadlines import watch
from dbos_actors.rpc.wire.peers import peer_name
from dbos_actors.rpc.wire.status import StatusOf
from dbos_actors.rpc.wire.tls import ContextProvider
from dbos_actors.sleeper import Sleeper

log = get_logger(__name__)

_TICK_S = 1.0
"""How often keepalive, idle and age limits are looked at."""

_FAREWELL_S = 0.5
"""How long clients have to read the status of calls that a drain has cut."""

_ACCEPT_RETRY_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_ACCEPT_RETRY_S = 0.1
_DISMISSED_AT_ONCE = 16
"""Connections of strangers that are closed when the system has no descriptor for another."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What the transport is doing now, and has done since its start."""

    connections: int
    connections_max: int
    connections_strangers: int
    """Those on which nobody was authenticated yet."""
    connections_total: int
    connections_dismissed: int
    """Closed because others needed their place."""
    connections_refused: int
    """Closed as they came, because every place was taken."""
    calls_live: int
    calls_total: int
    calls_connect: int
    """Those of the Connect protocol."""
    calls_open: int
    """Live calls that need no authentication."""
    calls_unauthenticated: int
    """Refused because they came without valid credentials."""
    calls_denied: int
    """Refused because their client may not make them."""
    calls_excess: int
    """Refused because their client was beyond its quota."""
    calls_shed: int
    """Refused as they arrived, because those before them waited too long."""
    calls_gathered: bool
    """Whether connections are read at ticks now, so that more calls come in a read."""
    web_refused: int
    """Requests that were refused because of the host that they named, or of their origin."""
    mailbox_bytes: int
    """Unsent responses beyond each connection's own allowance."""
    held_bytes: int
    """Unread request bytes beyond each connection's own allowance."""
    deadlines: int


class Server:
    """A server of gRPC and of Connect, on the same listeners.

    ``unary`` maps full paths (``/dbos.DBOS/GetAgent``) to plain functions of a call; it
    wins over ``services``, grpclib's, whose handlers get a
    `dbos_actors.rpc.server.stream.ServerStream`.
    ``authenticator`` knows the client of each call, and whether it may make it; ``open_services``
    need none (see `dbos_actors.rpc.server.strangers`).
    ``status_of`` gives the status of the errors that calls fail with. While ``overloaded``
    says so, and `ServerLimits.calls_busy` calls wait, unary calls are refused as they arrive.
    ``web``: which hosts and origins may call by Connect, and what plain GET requests get.
    ``random`` spreads the ages at which connections are drained. ``cpu_s`` tells the CPU time
    that the thread of the server has used; by that it decides whether to gather calls before it
    reads them (`dbos_actors.rpc.server.gathering`). Nothing is opened before `serve`; a server
    serves once.
    """

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryMethod],
        services: Collection[Servable] = (),
        open_services: Collection[Servable] = (),
        status_of: StatusOf,
        authenticator: Authenticator | None = None,
        overloaded: Callable[[], bool] = bool,
        web: WebOptions | None = None,
        limits: ServerLimits | None = None,
        interceptors: Sequence[Interceptor] = (),
        clock: Clock | None = None,
        random: random.Random | None = None,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._limits = limits or ServerLimits()
        self._clock = clock or SystemClock()
        self._random = random
        self._shared = SharedState(
            unary=unary,
            services=services,
            open_services=open_services,
            status_of=status_of,
            authenticator=authenticator,
            web=web,
            limits=self._limits,
            interceptors=interceptors,
        )
        self._flusher = Sleeper()
        self._shared.wake = self._flusher.wake
        self.answer_round = AnswerRound(self._shared)
        """To be entered by who answers many calls at once; at its end the answers are sent. All
        other answers are sent in the next round of Trio."""
        self._read_turns = ReadTurns(self._shared, overloaded)
        self._handler_turns = HandlerTurns()
        self._read_ticks = ReadTicks(self._shared, cpu_s)
        self._connections: dict[SocketDriver, None] = {}
        self._connections_total = 0
        self._dismissed_total = 0
        self._refused_total = 0
        self._read_buffer = memoryview(bytearray(READ_BYTES))
        self._accepting = trio.CancelScope()
        self._running = trio.CancelScope()
        self._connection_ended = trio.lowlevel.ParkingLot()
        self._draining = False

    async def serve(
        self,
        listeners: Sequence[Listener],
        *,
        task_status: trio.TaskStatus[Sequence[Listener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled or drained; closes the listeners either way.

        Cancellation closes every connection at once, without an answer to its calls.
        """
        with self._running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, self._shared.deadlines, self._clock)
                nursery.start_soon(self._read_ticks.run)
                nursery.start_soon(self._flush_dirty)
                nursery.start_soon(self._handler_turns.run)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._accept_all, listeners, nursery)
                task_status.started(listeners)

    async def drain(self, grace_s: float) -> None:
        """Stop gently: no new connections or calls, GOAWAY, running calls finish.

        Returns when the last connection is closed. Calls that still run after ``grace_s``
        seconds are answered UNAVAILABLE, and connections are closed as soon as their clients have
        read that, or half a second later. If cancelled, the server goes on draining without
        a limit; call it again to set one.
        """
        self._draining = True
        self._accepting.cancel()
        with trio.move_on_after(grace_s):
            for connection in list(self._connections):
                connection.announce_shutdown()
            await self._wait_until_empty()
        for connection in list(self._connections):
            connection.end_calls()
        with trio.move_on_after(_FAREWELL_S):
            await self._wait_until_empty()
        self._running.cancel()

    async def reauthenticate(self) -> None:
        """End every live call whose client the authenticator knows, or allows it, no longer.

        To be called when clients may have lost their right to call. Other tasks run between
        two connections. If cancelled, the rest of the connections was not looked at.
        """
        for connection in list(self._connections):
            connection.reauthenticate()
            await trio.lowlevel.checkpoint()

    async def _wait_until_empty(self) -> None:
        while self._connections:
            await self._connection_ended.park()

    def statistics(self) -> ServerStatistics:
        """A snapshot."""
        shared = self._shared
        return ServerStatistics(
            connections=len(self._connections),
            connections_max=self._limits.connections_max,
            connections_strangers=len(shared.strangers),
            connections_total=self._connections_total,
            connections_dismissed=self._dismissed_total,
            connections_refused=self._refused_total,
            calls_live=shared.calls_live,
            calls_total=shared.calls_total,
            calls_connect=shared.calls_connect,
            calls_open=len(shared.open_calls_of_strangers) + len(shared.open_calls_of_clients),
            calls_unauthenticated=shared.calls_unauthenticated,
            calls_denied=shared.calls_denied,
            calls_excess=shared.excess_total,
            calls_shed=shared.shed_total,
            calls_gathered=self._read_ticks.is_on,
            web_refused=shared.web_refused,
            mailbox_bytes=self._limits.unsent_bytes_shared - shared.unsent_free,
            held_bytes=self._limits.held_bytes_shared - shared.held_free,
            deadlines=len(shared.deadlines),
        )

    # ------------------------------------------------------------ connections

    async def _accept_all(self, listeners: Sequence[Listener], connections: trio.Nursery) -> None:
        try:
            with self._accepting:
                async with trio.open_nursery() as nursery:
                    for listener in listeners:
                        nursery.start_soon(self._accept, listener, connections)
        finally:
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await listener.aclose()

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> NoReturn:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _ACCEPT_RETRY_ERRNOS:
                    raise
                log_limited(log.warning, "cannot accept a connection", error=str(error))
                self._dismiss(_DISMISSED_AT_ONCE)
                await trio.sleep(_ACCEPT_RETRY_S)
                continue
            sock = _plain_socket(stream)
            if not self._make_place():
                log_limited(
                    log.warning, "connection refused: too many", limit=self._limits.connections_max
                )
                self._refused_total += 1
                sock.close()
                continue
            self._connections_total += 1
            context = listener.context if isinstance(listener, TlsListener) else None
            self._add_connection(sock, context, connections)

    def _make_place(self) -> bool:
        """Have a place for one more connection, if need be by closing a stranger's."""
        limits, strangers = self._limits, self._shared.strangers
        is_full = len(self._connections) >= limits.connections_max
        if is_full or len(strangers) >= limits.connections_strangers_max:
            return self._dismiss(1)
        return True

    def _dismiss(self, count: int) -> bool:
        """Close so many connections of strangers; whether there were any."""
        dismissed = 0
        while dismissed < count and self._shared.strangers.dismiss_oldest():
            dismissed += 1
        self._dismissed_total += dismissed
        return dismissed > 0

    def _add_connection(
        self, sock: socket.socket, context: ContextProvider | None, connections: trio.Nursery
    ) -> None:
        """Count a connection from the moment it is accepted, and start its task."""
        try:
            connection = SocketDriver(
                sock,
                None if context is None else context(),
                shared=self._shared,
                clock=self._clock,
                read_buffer=self._read_buffer,
                read_turns=self._read_turns,
                handler_turns=self._handler_turns,
                read_ticks=self._read_ticks,
                age_factor=self._age_factor(),
            )
        except Exception as failure:  # noqa: BLE001 - logged, and dealt with here
            log_limited(log.error, "connection failed", peer=peer_name(sock), exc_info=failure)
            sock.close()
            return
        self._connections[connection] = None
        if self._draining:
            connection.announce_shutdown()
        connections.start_soon(self._serve_connection, connection, sock)

    async def _serve_connection(self, connection: SocketDriver, sock: socket.socket) -> None:
        """Run one connection to its end; nothing that happens in it gets out."""
        peer = peer_name(sock)
        try:
            await connection.run()
        except Exception as failure:  # noqa: BLE001 - logged, and dealt with here
            log_limited(log.error, "connection failed", peer=peer, exc_info=failure)
        finally:
            trio.lowlevel.notify_closing(sock)
            sock.close()
            connection.let_go()
            del self._connections[connection]
            self._connection_ended.unpark_all()

    def _age_factor(self) -> float:
        """Connections made at once are not all to come back at once (grpc-go: within 10 %)."""
        return 1.0 if self._random is None else self._random.uniform(0.9, 1.1)

    # ------------------------------------------------- tasks for all of them

    async def _tick(self) -> NoReturn:
        while True:
            await trio.sleep(_TICK_S)
            now_s = self._clock.monotonic_s()
            for connection in list(self._connections):
                connection.tick(now_s)

    async def _flush_dirty(self) -> NoReturn:
        """Send what connections have to send.

        This task runs after every task that is runnable now, so that one flush sends all that they
        have answered.
        """
        while True:
            if self._shared.dirty:
                self._shared.flush()
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await self._flusher.sleep()


def _plain_socket(stream: trio.SocketStream) -> socket.socket:
    """Take the socket out of Trio's wrapper; non-blocking, and now the caller's."""
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock
