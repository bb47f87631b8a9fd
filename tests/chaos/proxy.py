"""A proxy between two parties that cuts, delays, halves and silences their connections.

Bytes in, bytes out, on TCP or unix sockets; it knows nothing of what they mean. Its address stays
the same whatever happens behind it, and its target may be moved, as a virtual address is when
another machine takes over.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import trio

CHUNK_BYTES: Final = 64 * 1024

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Way(Enum):
    """A direction."""

    FORTH = auto()
    """From whoever connects to the target."""
    BACK = auto()


class Proxy:
    """Listens, and connects each connection on; the faults are methods."""

    def __init__(self, random: Random, *, target: str = "", path: Path | None = None) -> None:
        """``target`` is ``host:port`` or a path; listens on ``path``, or on a port of its own."""
        self.target = target
        self.delay_s = 0.0
        """Each chunk waits up to twice as long, either way."""
        self.connections = 0
        """Ever accepted."""
        self._random = random
        self._path = path
        self._links: set[_Link] = set()
        self._open = trio.Event()
        self._open.set()
        self.address = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        if self._path is None:
            listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
            self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        else:
            listening = trio.socket.socket(socket.AF_UNIX)
            await listening.bind(str(self._path))
            listening.listen(100)
            listener = trio.SocketListener(listening)
            self.address = str(self._path)
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, [listener])
            task_status.started()

    # ---------------------------------------------------------------- faults

    def cut(self) -> None:
        """Every connection breaks at once, both ways."""
        for link in list(self._links):
            link.cut()

    def cut_after(self, size_bytes: int) -> None:
        """Every connection breaks after so many more bytes: in the middle of something."""
        for link in self._links:
            link.left_bytes = size_bytes

    async def half_close(self, way: Way) -> None:
        """One direction of every connection ends; the other one goes on."""
        for link in list(self._links):
            await link.half_close(way)

    def silence(self) -> None:
        """Nothing arrives any more; the connections stand, and new ones can be made."""
        self._open = trio.Event()

    def heal(self) -> None:
        """What was held back arrives, and nothing is delayed any more."""
        self.delay_s = 0.0
        self._open.set()

    # ------------------------------------------------------------- internals

    async def wait_may_pass(self) -> None:
        """Hold a chunk back for as long as the faults ask for."""
        if self.delay_s:
            await trio.sleep(self._random.uniform(0.0, 2 * self.delay_s))
        await self._open.wait()

    async def _serve(self, near: trio.SocketStream) -> None:
        self.connections += 1
        with suppress(*_BROKEN):
            async with near:
                far = await _connect(self.target)
                async with far:
                    link = _Link(self, near, far)
                    self._links.add(link)
                    try:
                        await link.run()
                    finally:
                        self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.left_bytes: int | None = None
        self._proxy = proxy
        self._near = near
        self._far = far
        self._scope = trio.CancelScope()
        self._ended: set[Way] = set()

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(self._pump, Way.FORTH))
                nursery.start_soon(partial(self._pump, Way.BACK))

    def cut(self) -> None:
        for stream in (self._near, self._far):
            if stream.socket.family != socket.AF_UNIX:
                # Close with a reset, as a broken path does, not with an orderly end.
                linger = struct.pack("ii", 1, 0)
                with suppress(OSError):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._scope.cancel()

    async def half_close(self, way: Way) -> None:
        self._ended.add(way)
        with suppress(*_BROKEN, trio.BusyResourceError):
            await self._ends(way)[1].send_eof()

    def _ends(self, way: Way) -> tuple[trio.SocketStream, trio.SocketStream]:
        return (self._near, self._far) if way is Way.FORTH else (self._far, self._near)

    async def _pump(self, way: Way) -> None:
        source, sink = self._ends(way)
        with suppress(*_BROKEN):
            while data := bytes(await source.receive_some(CHUNK_BYTES)):
                await self._proxy.wait_may_pass()
                if way in self._ended:
                    # What comes now gets lost on the way. Again, since the sink may have been busy.
                    with suppress(trio.BusyResourceError):
                        await sink.send_eof()
                    continue
                if self.left_bytes is not None:
                    data, whole = data[: self.left_bytes], data
                    self.left_bytes -= len(data)
                    if data != whole:
                        await sink.send_all(data)
                        break
                await sink.send_all(data)
            else:
                with suppress(*_BROKEN):
                    await sink.send_eof()
                return
        self.cut()


async def _connect(target: str) -> trio.SocketStream:
    if target.startswith("/"):
        return await trio.open_unix_socket(target)
    host, _, port = target.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))
