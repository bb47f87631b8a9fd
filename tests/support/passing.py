"""A connector and a stream that pass everything on: what tests derive their faults from."""

from __future__ import annotations

import trio

from dbos_actors.store import Connector


class PassingConnector:
    """A connector to where another one connects."""

    def __init__(self, inner: Connector) -> None:
        self._inner = inner

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
        return await self._inner.connect()


class PassingStream(trio.abc.Stream):
    """A stream over another one."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()
