"""Room for request messages larger than their stream's window. Pure.

Until a message has room, its bytes are not acknowledged, so that its client can send
no more than a window of it. Room is given for a whole message or not at all: pieces
could leave every message waiting for another one's end. At least one always has room.
"""

from __future__ import annotations

from collections.abc import Callable


class Uploads:
    """The reservations of one connection, by stream."""

    __slots__ = ("_limit", "_reserved", "_reserved_bytes", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserved: dict[int, int] = {}
        self._reserved_bytes = 0
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}

    def request(self, stream_id: int, size: int, grant: Callable[[], None]) -> None:
        """Ask for room, once per message; ``grant`` is called when there is some."""
        self._waiting[stream_id] = (size, grant)
        self._grant()

    def has_room(self, stream_id: int) -> bool:
        """Whether the stream's message has its room."""
        return stream_id in self._reserved

    def knows(self, stream_id: int) -> bool:
        """Whether the stream has room or waits for it."""
        return stream_id in self._reserved or stream_id in self._waiting

    def release(self, stream_id: int) -> None:
        """The message was taken, or never will be."""
        self._waiting.pop(stream_id, None)
        self._reserved_bytes -= self._reserved.pop(stream_id, 0)
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            stream_id, (size, grant) = next(iter(self._waiting.items()))
            if self._reserved and self._reserved_bytes + size > self._limit:
                return
            del self._waiting[stream_id]
            self._reserved[stream_id] = size
            self._reserved_bytes += size
            grant()
