"""A connector whose commits can be held back on their way to Redis."""

from __future__ import annotations

import threading

import trio

from dbos_actors.store import Connector
from tests.support.passing import PassingConnector, PassingStream


class StallingConnector(PassingConnector):
    """Passes everything on, except transactions while `stall` is in force; reads go through.

    `stall` and `release` are to be called in the server's loop.
    """

    def __init__(self, inner: Connector) -> None:
        super().__init__(inner)
        self._open = trio.Event()
        self._open.set()
        self.has_stalled = threading.Event()
        """Set once a transaction is held back."""

    async def connect(self) -> trio.abc.Stream:
        return _StallingStream(await self._inner.connect(), self)

    def stall(self) -> None:
        self._open = trio.Event()
        self.has_stalled.clear()

    def release(self) -> None:
        self._open.set()

    async def pass_or_wait(self, data: bytes) -> None:
        if b"MULTI" in data and not self._open.is_set():
            self.has_stalled.set()
            await self._open.wait()


class _StallingStream(PassingStream):
    def __init__(self, inner: trio.abc.Stream, connector: StallingConnector) -> None:
        super().__init__(inner)
        self._connector = connector

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._connector.pass_or_wait(bytes(data))
        await super().send_all(data)
