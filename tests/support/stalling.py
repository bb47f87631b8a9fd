"""A connector whose commits can be held back on their way to Redis."""

from __future__ import annotations

import threading

import trio

from dbos_actors.store import Connector


class StallingConnector:
    """Passes everything on, except transactions while `stall` is in force; reads go through.

    `stall` and `release` are to be called in the server's loop.
    """

    def __init__(self, inner: Connector) -> None:
        self._inner = inner
        self._open = trio.Event()
        self._open.set()
        self.has_stalled = threading.Event()
        """Set once a transaction is held back."""

    @property
    def address(self) -> str:
        return self._inner.address

    @property
    def username(self) -> str | None:
        return self._inner.username

    @property
    def password(self) -> str | None:
        return self._inner.password

    @property
    def database(self) -> int:
        return self._inner.database

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


class _StallingStream(trio.abc.Stream):
    def __init__(self, inner: trio.abc.Stream, connector: StallingConnector) -> None:
        self._inner = inner
        self._connector = connector

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._connector.pass_or_wait(bytes(data))
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()
