"""Reads a store in slices, on a connection of its own.

Every step reads a bounded number of entries, and fewer of them where they are large.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, Self, TypeVar

from dbos_actors.errors import StoreUnreachableError, UnusableStoreError
from dbos_actors.store import ConnectionLostError, Connector, ReplyError, open_connection, pack

T = TypeVar("T")

_ENTRIES: Final = 1_000
"""In one step: a millisecond of Redis's time, which others wait for."""

_FIRST_ENTRIES: Final = 10
"""In the first step: nobody knows yet how large they are."""

_STEP_BYTES: Final = 1 << 20
"""In one step, about, as far as the entries before it tell."""

_TIMEOUT_S: Final = 60.0
"""For one step: a Redis that is this slow is taken for away."""


WRONG_TYPE: Final = object()
"""Instead of a reply about a key that has another type than the command is for."""


class StoreReader:
    """Steps through one store."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._call: Any = None
        self.entries = 0
        """How many fields, members and entries have been read."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Have a connection for the length of the block. Raises `StoreUnreachableError`."""
        try:
            async with open_connection(self._connector, timeout_s=_TIMEOUT_S) as call:
                self._call = call
                yield
        except ConnectionLostError as error:
            raise StoreUnreachableError(self._connector.address, str(error)) from error

    async def read(self, *commands: bytes) -> list[Any]:
        """The replies; one that is about a key of the wrong type is `WRONG_TYPE`.

        Raises `UnusableStoreError` if Redis refuses a command for another reason.
        """
        if not commands:
            return []
        return [_told(reply) for reply in await self._call(b"".join(commands), len(commands))]

    async def at_once(self, *commands: bytes) -> list[Any]:
        """The same, from one moment."""
        if not commands:
            return []
        payload = b"".join((pack("MULTI"), *commands, pack("EXEC")))
        replies = (await self._call(payload, len(commands) + 2))[-1]
        if not isinstance(replies, list):
            raise UnusableStoreError(f"Redis refuses to be read: {replies}")
        return [_told(reply) for reply in replies]

    async def at_once_watched(self, *commands: bytes) -> bool:
        """Execute commands unless a key watched before has changed; whether they were."""
        payload = b"".join((pack("MULTI"), *commands, pack("EXEC")))
        replies = (await self._call(payload, len(commands) + 2))[-1]
        if isinstance(replies, ReplyError):
            raise UnusableStoreError(f"Redis refuses to be written to: {replies}")
        return replies is not None

    # ------------------------------------------------------------------ steps

    def keys(self, prefix: str) -> Pages[list[tuple[bytes, bytes]]]:
        """Keys that begin with ``prefix``, with their types."""
        pattern = prefix.replace("[", "\\[").replace("*", "\\*").replace("?", "\\?") + "*"
        cursor: bytes | None = b"0"

        async def page() -> list[tuple[bytes, bytes]] | None:
            nonlocal cursor
            if cursor is None:
                return None
            ((cursor, names),) = await self.read(
                pack("SCAN", cursor, "MATCH", pattern, "COUNT", _ENTRIES)
            )
            cursor = None if cursor == b"0" else cursor
            types = await self.read(*(pack("TYPE", name) for name in names))
            return list(zip(names, types, strict=True))

        return Pages(page)

    def fields(self, key: bytes | str) -> Pages[list[tuple[bytes, bytes]]]:
        """The fields and values of a hash."""
        scan = self._scan("HSCAN", key)

        async def page() -> list[tuple[bytes, bytes]] | None:
            flat = await scan()
            return None if flat is None else list(zip(flat[::2], flat[1::2], strict=True))

        return Pages(page)

    def members(self, key: bytes | str, *, is_sorted: bool) -> Pages[list[bytes]]:
        """The members of a set or of a sorted set."""
        scan = self._scan("ZSCAN" if is_sorted else "SSCAN", key)

        async def page() -> list[bytes] | None:
            found = await scan()
            return found if found is None or not is_sorted else found[::2]

        return Pages(page)

    def stream_entries(
        self, key: bytes | str, after: bytes = b"0-0"
    ) -> Pages[list[tuple[bytes, list[bytes]]]]:
        """The entries of a stream after an id, each with its fields and values in turn."""
        count = _FIRST_ENTRIES

        async def page() -> list[tuple[bytes, list[bytes]]] | None:
            nonlocal after, count
            (found,) = await self.read(pack("XRANGE", key, b"(" + after, "+", "COUNT", count))
            if not found or found is WRONG_TYPE:
                return None
            self.entries += len(found)
            entries = [(entry_id, fields or []) for entry_id, fields in found]
            after = entries[-1][0]
            count = _next_step(len(entries), sum(sum(map(len, fields)) for _, fields in entries))
            return entries

        return Pages(page)

    def elements(self, key: bytes | str) -> Pages[list[bytes]]:
        """The elements of a list."""
        position, count = 0, _FIRST_ENTRIES

        async def page() -> list[bytes] | None:
            nonlocal position, count
            (found,) = await self.read(pack("LRANGE", key, position, position + count - 1))
            if not found or found is WRONG_TYPE:
                return None
            self.entries += len(found)
            position += len(found)
            count = _next_step(len(found), sum(map(len, found)))
            return list(found)

        return Pages(page)

    def _scan(self, command: str, key: bytes | str) -> Callable[[], Awaitable[list[bytes] | None]]:
        """Gives the replies of a SCAN command one by one, then None; some may be empty."""
        cursor: bytes | None = b"0"
        count = _FIRST_ENTRIES
        parts = 1 if command == "SSCAN" else 2

        async def page() -> list[bytes] | None:
            nonlocal cursor, count
            if cursor is None:
                return None
            (reply,) = await self.read(pack(command, key, cursor, "COUNT", count))
            if reply is WRONG_TYPE:
                return None
            cursor, found = reply
            cursor = None if cursor == b"0" else cursor
            if found:
                self.entries += len(found) // parts
                count = _next_step(len(found) // parts, sum(map(len, found)))
            return list(found)

        return page


class Pages(Generic[T]):
    """An asynchronous iterator that may be left at any page, unlike a generator."""

    def __init__(self, page: Callable[[], Awaitable[T | None]]) -> None:
        self._page = page

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        page = await self._page()
        if page is None:
            raise StopAsyncIteration
        return page


def _next_step(entries: int, size_bytes: int) -> int:
    return max(1, min(_ENTRIES, _STEP_BYTES * entries // max(1, size_bytes)))


def _told(reply: Any) -> Any:
    if not isinstance(reply, ReplyError):
        return reply
    if str(reply).startswith("WRONGTYPE"):
        return WRONG_TYPE
    raise UnusableStoreError(f"Redis refuses to be read: {reply}")
