"""The gRPC server: protocol state machines driven over Trio sockets.

The supervision tree: `Server.serve` runs one task per listener, one per connection
(which reads), a writer per connection only while its socket does not accept, and two
for all connections: one watches deadlines, one flushes answers given outside reads.

Sockets are used directly: a read or write that would block waits in
`trio.lowlevel.wait_readable` / `wait_writable`; one that would not costs one system
call and no task switch. Bytes taken from the engine are either accepted by the socket
or kept in ``_unsent``, which only the writer takes from; nothing that can be
cancelled ever holds a part of the output.
"""

from __future__ import annotations

import errno
import random
import socket
import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import structlog
import trio
from grpclib.const import Status

from dbos_actors.clock import Clock, SystemClock
from dbos_actors.log_limits import log_limited
from dbos_actors.rpc.server.connection import ServerConnection
from dbos_actors.rpc.server.interceptors import Interceptor
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import Listener, TlsListener
from dbos_actors.rpc.server.read_turns import STRANGER_BYTES, TURN_BYTES, ReadTurns
from dbos_actors.rpc.server.routes import Servable
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.strangers import Authenticator
from dbos_actors.rpc.server.stream import handle
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import UnaryMethod
from dbos_actors.rpc.wire.deadlines import watch
from dbos_actors.rpc.wire.peers import peer_name
from dbos_actors.rpc.wire.status import StatusOf
from dbos_actors.rpc.wire.tls import AlpnError, ContextProvider, TlsFilter
from dbos_actors.sleeper import Sleeper

log = structlog.get_logger(__name__)

_READ_BYTES = 256 * 1024
"""One buffer for every connection: what a read brings is processed before the next read."""

_WRITE_BYTES = 64 * 1024
"""Handed to the socket at a time; also what a connection keeps of framed output at most."""

_TICK_S = 1.0
"""How often keepalive, idle and age limits are looked at."""

_LINGER_S = 1.0
"""How long a connection we end is kept for its client to take our last bytes."""

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
    calls_open: int
    """Live calls that need no authentication."""
    calls_unauthenticated: int
    """Refused because they came without valid credentials."""
    calls_shed: int
    """Refused as they arrived, because those before them waited too long."""
    mailbox_bytes: int
    """Unsent responses beyond each connection's own allowance."""
    held_bytes: int
    """Unread request bytes beyond each connection's own allowance."""
    deadlines: int


class Server:
    """A gRPC server.

    ``unary`` maps full paths (``/dbos.DBOS/GetAgent``) to plain functions of a call; it
    wins over ``services``, grpclib's, whose handlers get a `dbos_actors.rpc.server.stream.Stream`.
    ``authenticator`` knows the client of each call; ``open_services`` need none (see
    `dbos_actors.rpc.server.strangers`).
    ``status_of`` gives the status of the errors that calls fail with. While ``overloaded``
    says so, and `ServerLimits.calls_busy` calls wait, unary calls are refused as they arrive.
    ``random`` spreads the ages at which connections are drained. Nothing is opened before
    `serve`; a server serves once.
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
        limits: ServerLimits | None = None,
        interceptors: Sequence[Interceptor] = (),
        clock: Clock | None = None,
        random: random.Random | None = None,
    ) -> None:
        self._limits = limits or ServerLimits()
        self._clock = clock or SystemClock()
        self._random = random
        self._core = SharedState(
            unary=unary,
            services=services,
            open_services=open_services,
            status_of=status_of,
            authenticator=authenticator,
            limits=self._limits,
            interceptors=interceptors,
        )
        self._flusher = Sleeper()
        self._core.wake = self._flusher.wake
        self._pacer = ReadTurns(self._core, overloaded)
        self._connections: dict[_Connection, None] = {}
        self._connections_total = 0
        self._dismissed_total = 0
        self._refused_total = 0
        self._read_buffer = memoryview(bytearray(_READ_BYTES))
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
                nursery.start_soon(watch, self._core.deadlines, self._clock)
                nursery.start_soon(self._flush_dirty)
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
        """End every live call whose client the authenticator knows no longer.

        To be called when clients may have lost their right to call. Other tasks run between
        two connections. If cancelled, the rest of the connections was not looked at.
        """
        for connection in list(self._connections):
            connection.reauthenticate()
            await trio.lowlevel.checkpoint()

    async def _wait_until_empty(self) -> None:
        while self._connections:
            await self._connection_ended.park()

    def flush(self) -> None:
        """Send answers given since the last flush now, instead of at the end of the batch."""
        self._core.flush()

    def statistics(self) -> ServerStatistics:
        """A snapshot."""
        core = self._core
        return ServerStatistics(
            connections=len(self._connections),
            connections_max=self._limits.connections_max,
            connections_strangers=len(core.strangers),
            connections_total=self._connections_total,
            connections_dismissed=self._dismissed_total,
            connections_refused=self._refused_total,
            calls_live=core.calls_live,
            calls_total=core.calls_total,
            calls_open=len(core.open_calls_of_strangers) + len(core.open_calls_of_clients),
            calls_unauthenticated=core.calls_unauthenticated,
            calls_shed=core.shed_total,
            mailbox_bytes=self._limits.unsent_bytes_shared - core.unsent_free,
            held_bytes=self._limits.held_bytes_shared - core.held_free,
            deadlines=len(core.deadlines),
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
        limits, strangers = self._limits, self._core.strangers
        is_full = len(self._connections) >= limits.connections_max
        if is_full or len(strangers) >= limits.connections_strangers_max:
            return self._dismiss(1)
        return True

    def _dismiss(self, count: int) -> bool:
        """Close so many connections of strangers; whether there were any."""
        dismissed = 0
        while dismissed < count and self._core.strangers.dismiss_oldest():
            dismissed += 1
        self._dismissed_total += dismissed
        return dismissed > 0

    def _add_connection(
        self, sock: socket.socket, context: ContextProvider | None, connections: trio.Nursery
    ) -> None:
        """Count a connection from the moment it is accepted, and start its task."""
        try:
            connection = _Connection(
                sock,
                None if context is None else context(),
                core=self._core,
                clock=self._clock,
                read_buffer=self._read_buffer,
                pacer=self._pacer,
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

    async def _serve_connection(self, connection: _Connection, sock: socket.socket) -> None:
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
            if self._core.dirty:
                self._core.flush()
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await self._flusher.sleep()


def _plain_socket(stream: trio.SocketStream) -> socket.socket:
    """Take the socket out of Trio's wrapper; non-blocking, and now the caller's."""
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


class _NoDriver:
    """The driver of a connection that has ended; a late answer finds nothing to do."""

    def flush(self) -> None:
        pass

    def start(self, call: StreamCall) -> None:
        pass

    def dismiss(self) -> None:
        pass


_NO_DRIVER = _NoDriver()


class _Connection:
    """Drives one `ServerConnection` over one socket."""

    __slots__ = (
        "_accepted_bytes",
        "_clock",
        "_core",
        "_is_heavy",
        "_lingers",
        "_moved",
        "_nursery",
        "_pacer",
        "_protocol",
        "_read_buffer",
        "_reading",
        "_sock",
        "_tls",
        "_unsent",
    )

    _unsent: memoryview | None
    """Taken from the engine and not accepted by the socket yet; while there is some, only the
    writer touches the socket's sending side."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        *,
        core: SharedState,
        clock: Clock,
        read_buffer: memoryview,
        pacer: ReadTurns,
        age_factor: float,
    ) -> None:
        self._sock = sock
        self._core = core
        self._clock = clock
        self._read_buffer = read_buffer
        self._pacer = pacer
        self._is_heavy = False
        self._tls = None if context is None else TlsFilter(context)
        self._protocol = ServerConnection(
            core, self, peer=peer_name(sock), now_s=clock.monotonic_s(), age_factor=age_factor
        )
        self._nursery: trio.Nursery | None = None
        self._unsent = None
        self._accepted_bytes = 0
        self._lingers = True
        self._moved: trio.Event | None = None
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        """Read until the connection ends, and its handlers have returned.

        Its failures are dealt with inside its nursery: outside, they could come joined with
        the cancellation of the server, which no handler of exceptions may swallow.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    if self._tls is None:
                        self.flush()
                    with self._reading:
                        await self._read()
                    if self._protocol.closed and self._lingers:
                        with trio.move_on_after(_LINGER_S):
                            await self._linger()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this connection's
                    self._failed(error)
                self._protocol.lost()
                self._nursery.cancel_scope.cancel()
        finally:
            self._protocol.lost()
            if self._is_heavy:
                self._weigh(False)

    def let_go(self) -> None:
        """Part from the protocol, once nothing is to be read or written any more.

        They hold each other, and the engine with its buffers. Apart they are freed at once,
        without the garbage collector.
        """
        self._protocol.let_go(_NO_DRIVER)
        self._nursery = None

    def _failed(self, error: Exception) -> None:
        """The connection cannot go on."""
        if not isinstance(error, OSError):  # a client that goes without a word is no news
            log_limited(log.error, "connection failed", peer=self._protocol.peer, exc_info=error)
        self._protocol.lost()

    async def _read(self) -> None:
        protocol, sock, pacer = self._protocol, self._sock, self._pacer
        backlog_max = self._core.limits.unsent_bytes_max
        while not protocol.closed:
            while self._unsent is not None and protocol.unsent_bytes > backlog_max:
                await self._wait_moved()
            await trio.lowlevel.wait_readable(sock)
            is_stranger = protocol.is_stranger
            if pacer.must_wait(is_stranger=is_stranger, is_heavy=self._is_heavy):
                async with pacer:
                    more = self._receive(STRANGER_BYTES if is_stranger else TURN_BYTES)
            else:
                more = self._receive(_READ_BYTES)
            if not more:
                return

    def _receive(self, limit_bytes: int) -> bool:
        """Take what has come, and send what it is answered with; False: that was the end."""
        buffer, tls = self._read_buffer, self._tls
        try:
            size = self._sock.recv_into(buffer, limit_bytes)
        except (BlockingIOError, InterruptedError):
            return True
        if size == 0:
            return False
        if self._is_heavy is not (size >= TURN_BYTES):
            self._weigh(not self._is_heavy)
        if tls is None:
            self._protocol.receive(buffer[:size], self._clock.monotonic_s())
        elif not self._receive_sealed(tls, buffer[:size]):
            return False
        self.flush()
        return True

    def _weigh(self, is_heavy: bool) -> None:
        self._is_heavy = is_heavy
        self._pacer.count_heavy(1 if is_heavy else -1)

    def _receive_sealed(self, tls: TlsFilter, data: memoryview) -> bool:
        """Take bytes under TLS; False: the connection is not worth going on with."""
        protocol = self._protocol
        try:
            for plain in tls.open(data):
                protocol.receive(plain, self._clock.monotonic_s())
        except ssl.SSLError as error:
            log_limited(
                log.info, "TLS failed", peer=protocol.peer, error=error.reason or str(error)
            )
            with suppress(OSError):
                self._sock.send(tls.seal(b""))  # the alert; lost if the socket is full
            return False
        except AlpnError:
            log_limited(log.info, "TLS client without h2", peer=protocol.peer)
            return False
        if protocol.peer_certificate is None and tls.ready:
            protocol.peer_certificate = tls.peer_certificate
        return True

    async def _linger(self) -> None:
        """Let the last bytes (a GOAWAY) reach the client: closing over unread input loses them."""
        while self._unsent is not None:
            await self._wait_moved()
        if self._tls is not None:
            self._sock.send(self._tls.close())
        self._sock.shutdown(socket.SHUT_WR)
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            if not self._sock.recv_into(self._read_buffer):
                return

    async def _wait_moved(self) -> None:
        """Wait until the writer has got on."""
        self._moved = trio.Event()
        await self._moved.wait()

    def start(self, call: StreamCall) -> None:
        """Start a call's handler."""
        assert self._nursery is not None
        self._nursery.start_soon(handle, call, self._core, self._clock)

    def tick(self, now_s: float) -> None:
        """Look at the time."""
        self._protocol.tick(now_s, self._accepted_bytes)
        if self._protocol.closed:
            self._reading.cancel()

    def reauthenticate(self) -> None:
        """End the calls of who may call no longer."""
        self._protocol.reauthenticate()

    def dismiss(self) -> None:
        """Close at once, with a GOAWAY if the socket takes it."""
        self._protocol.queue_dismissal()
        self.flush()
        self._lingers = False
        self._protocol.lost()
        self._reading.cancel()

    def announce_shutdown(self) -> None:
        """Begin a graceful end."""
        self._protocol.announce_shutdown(self._clock.monotonic_s(), after_streams=True)
        self.flush()

    def end_calls(self) -> None:
        """End what still runs, with a status."""
        self._protocol.end_calls(Status.UNAVAILABLE, "the server is shutting down")
        self.flush()

    def flush(self) -> None:
        """Send what the socket accepts; the rest is the writer's. Nothing before `run`."""
        if self._unsent is None and self._nursery is not None:
            try:
                blocked = self._pump()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this connection's
                self._failed(error)
                blocked = False
            if blocked:
                self._nursery.start_soon(self._write)
            elif self._protocol.closed:
                self._reading.cancel()

    def _pump(self) -> bool:
        """Move output to the socket until there is none (False) or it accepts no more (True)."""
        protocol, sock, tls = self._protocol, self._sock, self._tls
        if tls is not None and not tls.ready:
            return self._send(sock, tls.seal(b""))
        while True:
            data = protocol.output(_WRITE_BYTES)
            more = len(data) == _WRITE_BYTES
            if tls is not None:
                data = tls.seal(data)
            if data:
                if self._send(sock, data):
                    return True
                if more:
                    continue
            if not protocol.flushed(0, self._clock.monotonic_s()):
                return False

    def _send(self, sock: socket.socket, data: bytes) -> bool:
        """Send; whether some of it was left, for the writer."""
        if not data:
            return False
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        self._accepted_bytes += sent
        if sent == len(data):
            return False
        self._unsent = memoryview(data)[sent:]
        self._protocol.flushed(len(self._unsent), self._clock.monotonic_s())
        return True

    async def _write(self) -> None:
        """Move output to a socket that accepted no more, until it has all of it."""
        sock = self._sock
        try:
            while self._unsent is not None:
                await trio.lowlevel.wait_writable(sock)
                try:
                    sent = sock.send(self._unsent)
                except (BlockingIOError, InterruptedError):
                    continue
                self._accepted_bytes += sent
                if sent < len(self._unsent):
                    self._unsent = self._unsent[sent:]
                    continue
                self._unsent = None
                self._pump()
                if self._moved is not None:
                    self._moved.set()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this connection's
            self._failed(error)
            self._unsent = None
        if self._moved is not None:
            self._moved.set()
        if self._protocol.closed:
            self._reading.cancel()
