"""Streams that break after a given byte, in either direction."""

from __future__ import annotations

from collections.abc import Callable

import trio

from dbos_actors.store import Connector
from tests.support.passing import PassingConnector, PassingStream


def _nothing() -> None:
    """The default for what happens when a stream breaks."""


class BreakingStream(PassingStream):
    """A stream that passes everything on until `break_after` is due."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        super().__init__(inner)
        self._send_left: int | None = None
        self._receive_left: int | None = None
        self._on_break: Callable[[], None] = _nothing
        self.sent = 0
        self.received = 0
        self.broken = False

    def break_after(
        self,
        *,
        sent: int | None = None,
        received: int | None = None,
        on_break: Callable[[], None] = _nothing,
    ) -> None:
        """Pass on so many more bytes, call ``on_break``, and be broken from then on."""
        self._send_left = sent
        self._receive_left = received
        self._on_break = on_break

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._send_left is None or len(data) <= self._send_left:
            await self._inner.send_all(data)
            self.sent += len(data)
            if self._send_left is not None:
                self._send_left -= len(data)
            return
        await self._inner.send_all(bytes(data)[: self._send_left])
        await self._break()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.broken:
            raise trio.BrokenResourceError
        if self._receive_left is not None and self._receive_left <= 0:
            # The peer has sent more, which is lost.
            await self._inner.receive_some(max_bytes)
            await self._break()
        limit = max_bytes if self._receive_left is None else self._receive_left
        data = bytes(await self._inner.receive_some(limit))
        self.received += len(data)
        if self._receive_left is not None:
            self._receive_left -= len(data)
        return data

    async def _break(self) -> None:
        self.broken = True
        await trio.aclose_forcefully(self._inner)
        self._on_break()
        raise trio.BrokenResourceError


class BreakingConnector(PassingConnector):
    """A connector whose streams can be broken; `streams` are those it opened, in order."""

    def __init__(self, inner: Connector) -> None:
        super().__init__(inner)
        self.streams: list[BreakingStream] = []
        self.on_connect: Callable[[BreakingStream], None] = lambda _: None

    def break_first(self, **plan: int) -> None:
        """Break the first stream it will open, as `BreakingStream.break_after` does."""

        def on_connect(stream: BreakingStream) -> None:
            if len(self.streams) == 1:
                stream.break_after(sent=plan.get("sent"), received=plan.get("received"))

        self.on_connect = on_connect

    async def connect(self) -> trio.abc.Stream:
        stream = BreakingStream(await self._inner.connect())
        self.streams.append(stream)
        self.on_connect(stream)
        return stream
