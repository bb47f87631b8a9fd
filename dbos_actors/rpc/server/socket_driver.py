"""One connection of a server over a real socket.

`SocketDriver` moves bytes between a socket and a `ServerConnection`, under TLS or not. Which kind
of connection it is, HTTP/2 or HTTP/1.1, is decided once the client has said something
(`undecided`). It runs three kinds of tasks in nurseries of its own:
- one that reads;
- one that writes, and only while the socket accepts no more;
- one for each handler of a grpclib service. They are started and ended in turns with those of other
  connections (`HandlerTurns`), so they may outlive the other two.

The socket is used directly. A read that would block waits in `trio.lowlevel.wait_readable`. One
that would not block costs one system call and no switch of tasks. While calls are gathered, a
connection is read at ticks (`ReadTicks`), and waits for its socket only if a tick brought nothing.
`SocketPump` has the other direction.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from grpclib.const import Status

from dbos_actors.clock import Clock
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.connection import ServerConnection
from dbos_actors.rpc.server.excess import ExcessLine
from dbos_actors.rpc.server.handler_turns import HandlerTurns
from dbos_actors.rpc.server.http1_connection import Http1ServerConnection
from dbos_actors.rpc.server.read_ticks import ReadTicks
from dbos_actors.rpc.server.read_turns import STRANGER_BYTES, TURN_BYTES, ReadTurns
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.stream import handle
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.undecided import Undecided
from dbos_actors.rpc.wire.peers import is_loopback, peer_name, watch_for_silence
from dbos_actors.rpc.wire.socket_pump import SocketPump
from dbos_actors.rpc.wire.tls import TlsFilter

log = get_logger(__name__)

READ_BYTES: Final = 256 * 1024
"""The most that one read takes. What a read brings is handled before the next one, so all
connections share one buffer of this size."""

_LINGER_S: Final = 1.0
"""How long a connection we end is kept for its client to take our last bytes."""

_STREAMS_ENDED_AT_ONCE: Final = 16
"""A connection with more streams ends in a turn of its own: a thousand take 3 ms."""


class _NoDriver:
    """The driver of a connection that has ended; a late answer finds nothing to do."""

    def flush(self) -> None:
        pass

    def start(self, call: StreamCall) -> None:
        pass

    def tell_over(self, call: StreamCall) -> None:
        pass

    def dismiss(self) -> None:
        pass


_NO_DRIVER = _NoDriver()


class SocketDriver(SocketPump):
    """Drives one `ServerConnection` over one socket."""

    __slots__ = (
        "_age_factor",
        "_clock",
        "_handler_turns",
        "_handlers",
        "_has_read",
        "_is_heavy",
        "_lingers",
        "_read_buffer",
        "_read_ticks",
        "_read_turns",
        "_shared",
    )

    _write_bytes = 64 * 1024

    _protocol: ServerConnection | Undecided

    _handlers: trio.Nursery | None
    """Runs the handlers; None before `run` and after `let_go`."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        *,
        shared: SharedState,
        clock: Clock,
        read_buffer: memoryview,
        read_turns: ReadTurns,
        handler_turns: HandlerTurns,
        read_ticks: ReadTicks,
        age_factor: float,
    ) -> None:
        super().__init__(sock)
        self._shared = shared
        self._clock = clock
        self._read_buffer = read_buffer
        self._read_turns = read_turns
        self._handler_turns = handler_turns
        self._handlers = None
        self._read_ticks = read_ticks
        # Whether the last read brought something, so that the next one may too.
        self._has_read = False
        self._is_heavy = False
        self._tls = None if context is None else TlsFilter(context)
        self._age_factor = age_factor
        self._protocol = Undecided(
            shared, self, self._decided, peer=peer_name(sock), now_s=clock.monotonic_s()
        )
        self._lingers = True

    async def run(self) -> None:
        """Read until the connection ends, and its handlers have returned.

        Its failures are dealt with inside its nursery: outside, they could come joined with
        the cancellation of the server, which no handler of exceptions may swallow.
        """
        try:
            async with (
                trio.open_nursery() as self._handlers,
                trio.open_nursery() as self._nursery,
            ):
                try:
                    with self._reading:
                        await self._read()
                    if self._protocol.closed and self._lingers:
                        with trio.move_on_after(_LINGER_S):
                            await self._linger()
                    if self._protocol.streams > _STREAMS_ENDED_AT_ONCE:
                        async with self._read_turns:
                            self._protocol.lost()
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
        self._nursery = self._handlers = None

    def _failed(self, error: Exception) -> None:
        """The connection cannot go on."""
        if not isinstance(error, OSError):  # a client that goes without a word is no news
            log_limited(log.error, "connection failed", peer=self._protocol.peer, exc_info=error)
        self._protocol.lost()

    async def _read(self) -> None:
        sock, turns, ticks = self._sock, self._read_turns, self._read_ticks
        unsent_max = self._shared.limits.unsent_bytes_max
        lines = self._shared.excess.lines
        while not self._protocol.closed:
            protocol = self._protocol
            while self._unsent is not None and protocol.unsent_bytes > unsent_max:
                await self._wait_moved()
            while protocol.is_full and not protocol.closed:
                await self._wait_moved()
            if not (ticks.is_on and self._has_read):
                await trio.lowlevel.wait_readable(sock)
            if ticks.is_on:
                await ticks.wait()
            is_stranger = protocol.is_stranger
            if lines and (line := protocol.excess_line(self._clock.monotonic_s())) is not None:
                more = await self._receive_in_line(line)
            elif turns.must_wait(
                is_stranger=is_stranger, is_heavy=self._is_heavy
            ) or self._handler_turns.waits(self):
                async with turns:
                    more = self._receive(STRANGER_BYTES if is_stranger else TURN_BYTES)
            else:
                more = self._receive(READ_BYTES)
            if not more:
                return

    async def _receive_in_line(self, line: ExcessLine) -> bool:
        """As `_receive`, on a connection of a client beyond its quota, when its turn comes."""
        async with line.lock:
            await line.wait_free()
            if self._read_turns.is_needed:
                async with self._read_turns:
                    return self._receive_as_excess(line)
            return self._receive_as_excess(line)

    def _receive_as_excess(self, line: ExcessLine) -> bool:
        shared, began_s = self._shared, self._clock.monotonic_s()
        calls, refused = shared.calls_total, shared.excess_total
        more = self._receive(TURN_BYTES)
        now_s = self._clock.monotonic_s()
        if shared.calls_total == calls:
            line.owe(now_s - began_s, now_s)
        elif shared.excess_total == refused and line.is_free(now_s):
            self._protocol.leave_excess()
        return more

    def _receive(self, limit_bytes: int) -> bool:
        """Take what has come, and send what it is answered with; False: that was the end."""
        buffer, tls = self._read_buffer, self._tls
        try:
            size = self._sock.recv_into(buffer, limit_bytes)
        except (BlockingIOError, InterruptedError):
            self._has_read = False
            return True
        if size == 0:
            return False
        self._has_read = True
        ticks = self._read_ticks
        ticks.reads += 1
        now_s = self._clock.monotonic_s()
        if now_s >= ticks.due_s:
            ticks.look(now_s)
        if self._is_heavy is not (size >= TURN_BYTES):
            self._weigh(not self._is_heavy)
        if tls is None:
            self._protocol.receive(buffer[:size], now_s)
        elif not self._receive_sealed(tls, buffer[:size], now_s):
            return False
        self.flush()
        return True

    def _weigh(self, is_heavy: bool) -> None:
        self._is_heavy = is_heavy
        self._read_turns.count_heavy(1 if is_heavy else -1)

    def _receive_sealed(self, tls: TlsFilter, data: memoryview, now_s: float) -> bool:
        """Take bytes under TLS; False: the connection is not worth going on with."""
        protocol = self._protocol
        try:
            for plain in tls.open(data):
                if isinstance(self._protocol, Undecided):
                    self._protocol.decide(tls.is_http2, now_s)
                self._protocol.receive(plain, now_s)
        except ssl.SSLError as error:
            log_limited(
                log.info, "TLS failed", peer=protocol.peer, error=error.reason or str(error)
            )
            with suppress(OSError):
                self._sock.send(tls.seal(b""))  # the alert; lost if the socket is full
            return False
        return True

    def _decided(self, is_http2: bool, data: bytes, now_s: float) -> None:
        """The client's version of HTTP is known, and so is its certificate."""
        undecided, tls = self._protocol, self._tls
        assert isinstance(undecided, Undecided)
        kind: type[ServerConnection] = ServerConnection
        options: dict[str, Any] = {}
        if not is_http2:
            kind = Http1ServerConnection
            options["is_tls"] = tls is not None
            watch_for_silence(self._sock)
        protocol = kind(
            self._shared,
            self,
            peer=undecided.peer,
            now_s=undecided.opened_s,
            age_factor=self._age_factor,
            is_loopback=is_loopback(self._sock),
            **options,
        )
        self._protocol = protocol
        undecided.let_go(_NO_DRIVER)
        if tls is not None:
            protocol.peer_certificate = tls.peer_certificate
        if data:
            protocol.receive(data, now_s)
        if undecided.is_draining:
            self.announce_shutdown()

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

    def start(self, call: StreamCall) -> None:
        """Start a call's handler, in its turn."""
        self._handler_turns.take(self, partial(self._start, call))

    def _start(self, call: StreamCall) -> None:
        if call.over:  # and its connection perhaps too
            call.finished()
            return
        assert self._handlers is not None
        self._handlers.start_soon(handle, call, self._shared, self._clock)

    def tell_over(self, call: StreamCall) -> None:
        """Tell a call's handler that the call is over, in its turn."""
        self._handler_turns.take(self, call.tell_over)

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

    def _flushed(self, socket_bytes: int) -> bool:
        again = self._protocol.flushed(socket_bytes, self._clock.monotonic_s())
        if self._moved is not None and not self._protocol.is_full:
            self._moved.set()
        return again
