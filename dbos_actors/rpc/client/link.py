"""The socket of a client's connection: how it is made, read, written and closed.

`connect` makes a socket from an address; `ClientDriver` moves bytes between it and a
`ClientConnection`, with or without TLS. How output gets to the socket is the same for servers and
clients, and is in `dbos_actors.rpc.wire.socket_pump`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import trio

from dbos_actors.clock import Clock
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.client.connection import ClientConnection
from dbos_actors.rpc.wire.addresses import Address, UnixAddress
from dbos_actors.rpc.wire.socket_pump import SocketPump
from dbos_actors.rpc.wire.tls import TlsFilter

log = get_logger(__name__)

Connector: TypeAlias = Callable[[], Awaitable[socket.socket]]
"""Makes a connected, non-blocking socket, which is then the caller's. Raises OSError."""

_READ_BYTES = 256 * 1024

_TICKS_PER_KEEPALIVE = 8


async def connect(address: Address) -> socket.socket:
    """Connect to an address, trying every one that a name has. Raises OSError."""
    if isinstance(address, UnixAddress):
        stream = await trio.open_unix_socket(address.path)
    else:
        stream = await trio.open_tcp_stream(address.host, address.port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


class ClientDriver(SocketPump):
    """Drives one `ClientConnection` over one socket, which it closes."""

    __slots__ = ("_clock", "_early")

    _write_bytes = 128 * 1024

    _protocol: ClientConnection | None

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        super().__init__(sock)
        self._clock = clock
        self._early: list[bytes] = []

    def close(self) -> None:
        """Close the socket."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    async def shake_hands(self, context: ssl.SSLContext, hostname: str) -> None:
        """Begin TLS. Raises OSError (ssl.SSLError is one) and `tls.AlpnError`."""
        tls = TlsFilter(context, server_side=False, server_hostname=hostname)
        self._tls = tls
        buffer = memoryview(bytearray(_READ_BYTES))
        data = memoryview(b"")
        try:
            while True:
                self._early += tls.open(data)
                await self._send_all(tls.seal(b""))
                if tls.ready:
                    return
                data = buffer[: await self._receive(buffer)]
                if not data:
                    raise ConnectionResetError("the connection has ended during the TLS handshake")
        except ssl.SSLError:
            with suppress(OSError):
                self._sock.send(tls.seal(b""))  # the alert; lost if the socket is full
            raise

    async def _send_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except (BlockingIOError, InterruptedError):
                await trio.lowlevel.wait_writable(self._sock)

    async def _receive(self, buffer: memoryview) -> int:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                return self._sock.recv_into(buffer)
            except (BlockingIOError, InterruptedError):
                continue

    async def run(self, protocol: ClientConnection, *, keepalive_s: float) -> None:
        """Move bytes until the connection ends; whatever ends it is in ``protocol.reason``.

        If cancelled, the server is told with what the socket still accepts.
        """
        self._protocol = protocol
        if self._tls is not None:
            protocol.peer_certificate = self._tls.peer_certificate
        try:
            async with trio.open_nursery() as self._nursery:
                if keepalive_s < float("inf"):
                    self._nursery.start_soon(self._tick, keepalive_s / _TICKS_PER_KEEPALIVE)
                with self._reading:
                    await self._read(protocol)
                self._nursery.cancel_scope.cancel()
        finally:
            if not protocol.closed:
                protocol.shut_down()
                protocol.lost("the channel is closed")
            if self._unsent is None:
                with suppress(Exception):  # a farewell
                    self._pump(protocol)
            self._protocol = None

    async def _read(self, protocol: ClientConnection) -> None:
        tls = self._tls
        buffer = memoryview(bytearray(_READ_BYTES))
        try:
            for plain in self._early:
                protocol.receive(plain, self._clock.monotonic_s())
            self._early.clear()
            self.flush()
            while not protocol.closed:
                size = await self._receive(buffer)
                if size == 0:
                    protocol.lost(protocol.reason or "the server has closed the connection")
                elif tls is None:
                    protocol.receive(buffer[:size], self._clock.monotonic_s())
                else:
                    for plain in tls.open(buffer[:size]):
                        protocol.receive(plain, self._clock.monotonic_s())
                self.flush()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this connection's
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        assert self._protocol is not None
        if not isinstance(error, OSError):
            log.error("connection failed", peer=self._protocol.peer, exc_info=error)
        self._protocol.lost(f"the connection is lost: {error}")

    async def _tick(self, period_s: float) -> None:
        assert self._protocol is not None
        while True:
            await trio.sleep(period_s)
            self._protocol.tick(self._clock.monotonic_s())
            if self._protocol.closed:
                self._reading.cancel()

    def _flushed(self, socket_bytes: int) -> bool:
        return not socket_bytes and self._protocol is not None and self._protocol.refill()

    def _sent(self, size: int) -> None:
        super()._sent(size)
        if self._protocol is not None:
            self._protocol.sent()
