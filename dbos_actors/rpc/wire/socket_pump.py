"""How the output of a connection gets to its socket; the same for servers and clients.

`SocketPump.flush` takes output from the HTTP/2 engine and writes it to the socket at once, which
costs one system call and no switch of tasks. When the socket accepts no more, a task of the
connection's nursery waits until it is writable again, and writes the rest.

Bytes that were taken from the engine are either accepted by the socket or kept in ``_unsent``.
While there are some, only the writing task touches the sending side of the socket. So no
cancellation loses a part of the output.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import trio

from dbos_actors.rpc.wire.tls import TlsFilter


class Pumped(Protocol):
    """A connection that has output."""

    @property
    def closed(self) -> bool:
        """Whether nothing more will happen: its socket is closed once the output is sent."""
        ...

    def output(self, amount: int) -> bytes:
        """At most so many bytes; fewer: nothing else can be sent now."""
        ...


class SocketPump(ABC):
    """Moves the output of one connection to one socket. The base of both sides' drivers."""

    __slots__ = (
        "_accepted_bytes",
        "_moved",
        "_nursery",
        "_protocol",
        "_reading",
        "_sock",
        "_tls",
        "_unsent",
    )

    _write_bytes: ClassVar[int]
    """Taken from the engine at a time; also what a connection keeps of framed output at most."""

    _protocol: Pumped | None
    """None while there is none to send for."""

    _tls: TlsFilter | None
    _nursery: trio.Nursery | None
    """Runs the writing task. None: nothing is sent."""

    _reading: trio.CancelScope
    """Cancelled when the connection is closed and its output is sent."""

    _unsent: memoryview | None
    """Taken from the engine and not accepted by the socket yet."""

    _accepted_bytes: int
    """What the socket has accepted so far."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._protocol = None
        self._tls = None
        self._nursery = None
        self._unsent = None
        self._accepted_bytes = 0
        self._moved: trio.Event | None = None
        self._reading = trio.CancelScope()

    @abstractmethod
    def _flushed(self, socket_bytes: int) -> bool:
        """All output was taken, and so many bytes of it wait for the socket.

        Returns whether there is more output now.
        """

    @abstractmethod
    def _failed(self, error: Exception) -> None:
        """The connection cannot go on."""

    def _sent(self, size: int) -> None:
        """The socket has accepted so many bytes."""
        self._accepted_bytes += size

    def flush(self) -> None:
        """Send what the socket accepts; the writing task sends the rest. Never raises."""
        protocol, nursery = self._protocol, self._nursery
        if self._unsent is not None or nursery is None or protocol is None:
            return
        try:
            blocked = self._pump(protocol)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this connection's
            self._failed(error)
            blocked = False
        if blocked:
            nursery.start_soon(self._write)
        elif protocol.closed:
            self._reading.cancel()

    def _pump(self, protocol: Pumped) -> bool:
        """Move output to the socket until there is none (False) or it accepts no more (True)."""
        tls, amount = self._tls, self._write_bytes
        if tls is not None and not tls.ready:
            return self._send(tls.seal(b""))
        while True:
            data = protocol.output(amount)
            more = len(data) == amount
            if tls is not None:
                data = tls.seal(data)
            if data:
                if self._send(data):
                    return True
                if more:
                    continue
            if not self._flushed(0):
                return False

    def _send(self, data: bytes) -> bool:
        """Send; whether some of it was left, for the writing task."""
        if not data:
            return False
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent:
            self._sent(sent)
        if sent == len(data):
            return False
        self._unsent = memoryview(data)[sent:]
        self._flushed(len(self._unsent))
        return True

    async def _write(self) -> None:
        """Move output to a socket that accepted no more, until it has all of it."""
        protocol, sock = self._protocol, self._sock
        assert protocol is not None
        try:
            while self._unsent is not None:
                await trio.lowlevel.wait_writable(sock)
                try:
                    sent = sock.send(self._unsent)
                except (BlockingIOError, InterruptedError):
                    continue
                if sent:
                    self._sent(sent)
                if sent < len(self._unsent):
                    self._unsent = self._unsent[sent:]
                    continue
                self._unsent = None
                self._pump(protocol)
                if self._moved is not None:
                    self._moved.set()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this connection's
            self._failed(error)
            self._unsent = None
        if self._moved is not None:
            self._moved.set()
        if protocol.closed:
            self._reading.cancel()

    async def _wait_moved(self) -> None:
        """Wait until the writing task has got on."""
        self._moved = trio.Event()
        await self._moved.wait()
