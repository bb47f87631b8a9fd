"""A socket stream for requests and replies: as few steps per round trip as there can be.

Trio's own stream lets other tasks run after every send, and tries to receive before
it waits. A commit is one small write and one reply that is never there yet, so
both are steps for nothing: together they made up a third of the cost of a commit that
carries one call.
"""

from __future__ import annotations

import socket

import trio


class DirectStream(trio.abc.Stream):
    """A connected stream socket. One task sends, one receives.

    Unlike other streams, a send that the socket accepts at once is no checkpoint;
    a receive always is one.
    """

    __slots__ = ("_socket",)

    def __init__(self, stream: trio.SocketStream) -> None:
        """Take the socket out of ``stream``, which must not be used any more."""
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        sock = self._require_open()
        rest = memoryview(data)
        while True:
            try:
                sent = sock.send(rest)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            rest = rest[sent:]
            if not rest:
                return
            await trio.lowlevel.wait_writable(sock)
            self._require_open()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.wait_writable(self._require_open())

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        sock = self._require_open()
        while True:
            await trio.lowlevel.wait_readable(sock)
            self._require_open()
            try:
                return sock.recv(max_bytes or 65_536)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def aclose(self) -> None:
        sock = self._socket
        if sock.fileno() != -1:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        await trio.lowlevel.checkpoint()

    def _require_open(self) -> socket.socket:
        if self._socket.fileno() == -1:
            raise trio.ClosedResourceError("the stream is closed")
        return self._socket
