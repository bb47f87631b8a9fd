"""Listening sockets: TCP and unix, by address."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import TypeAlias

import trio

from dbos_actors.rpc.wire.addresses import TcpAddress, UnixAddress, parse_address
from dbos_actors.rpc.wire.tls import ContextProvider

BACKLOG = 1_024
"""Connections the kernel keeps until they are accepted; a restart of many clients at once."""


Listener: TypeAlias = trio.abc.Listener[trio.SocketStream]
"""What a server accepts connections from."""


async def open_listeners(address: str, *, tls: ContextProvider | None = None) -> list[Listener]:
    """Listen on an address; the caller owns what is returned.

    With ``tls``, every connection is made with the context that it returns at that time.
    A unix socket file left by a process that is gone is replaced; one that is in
    use raises OSError (EADDRINUSE). Raises `AddressError` and OSError.
    """
    parsed = parse_address(address)
    if tls is not None:
        return [TlsListener(listener, tls) for listener in await open_listeners(address)]
    if isinstance(parsed, UnixAddress):
        return [await _open_unix_listener(parsed.path)]
    return [*await trio.open_tcp_listeners(parsed.port, host=parsed.host or None, backlog=BACKLOG)]


async def _open_unix_listener(path: str) -> UnixListener:
    await _remove_stale(path)
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return UnixListener(sock, path)


async def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):  # noqa: ASYNC240 - one stat at start
            return
    except FileNotFoundError:
        return
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)  # noqa: ASYNC240
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)


class UnixListener(trio.abc.Listener[trio.SocketStream]):
    """A listener that removes its socket file when closed."""

    def __init__(self, sock: trio.socket.SocketType, path: str) -> None:
        self._listener = trio.SocketListener(sock)
        self.path = path

    async def accept(self) -> trio.SocketStream:
        """The next connection. Raises OSError, `trio.ClosedResourceError`."""
        return await self._listener.accept()

    async def aclose(self) -> None:
        """Close, and remove the socket file."""
        Path(self.path).unlink(missing_ok=True)  # noqa: ASYNC240 - unlinking does not block
        await self._listener.aclose()


class TlsListener(trio.abc.Listener[trio.SocketStream]):
    """A listener whose connections begin with a TLS handshake, which the server does."""

    def __init__(self, listener: Listener, context: ContextProvider) -> None:
        self.listener = listener
        self.context = context

    async def accept(self) -> trio.SocketStream:
        """The next connection, before its handshake."""
        return await self.listener.accept()

    async def aclose(self) -> None:
        """Close the listener within."""
        await self.listener.aclose()


def bound_address(listener: Listener) -> str:
    """Where a listener is reached, as `open_listeners` takes it."""
    if isinstance(listener, TlsListener):
        return bound_address(listener.listener)
    if isinstance(listener, UnixListener):
        return str(UnixAddress(listener.path))
    assert isinstance(listener, trio.SocketListener)
    host, port = listener.socket.getsockname()[:2]
    return str(TcpAddress(host, port))
