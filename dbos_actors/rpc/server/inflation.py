"""Memory for decompressed request messages.

Four kilobytes of gzip can become four megabytes, so the limit is on the bytes that come out. The
bytes of a message count from the moment it is decompressed until its unary call is answered, or
until its stream's handler asks for further messages or returns.

These limits are apart from those for request bytes as they were sent. So a client that uses all of
this memory does not keep others from sending messages that are not compressed. A message that finds
no room is refused, and is never decompressed beyond the room that there is.
"""

from __future__ import annotations

from typing import Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.wire.compression import restore

_NO_ROOM: Final = (
    "decompressed messages of earlier calls still take up the memory there is for them: "
    "try again later, or send messages that are not compressed"
)


class Inflation:
    """The decompressed bytes of one connection."""

    __slots__ = ("_shared", "_used")

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._used = 0

    def inflate(self, encoding: bytes | None, body: bytes, message_bytes_max: int) -> bytes:
        """Decompress a message and count its bytes, to be released later.

        Raises `grpclib.GRPCError`: RESOURCE_EXHAUSTED without room, or as `restore` does.
        """
        shared = self._shared
        room = min(message_bytes_max, shared.inflated_free)
        if self._used:  # one message has a place, whatever the limits are
            room = min(room, shared.limits.inflated_bytes_max - self._used)
        try:
            data = restore(encoding, body, max(0, room))
        except GRPCError as error:
            if error.status is Status.RESOURCE_EXHAUSTED and room < message_bytes_max:
                raise GRPCError(Status.RESOURCE_EXHAUSTED, _NO_ROOM) from error
            raise
        self._used += len(data)
        shared.inflated_free -= len(data)
        return data

    def release(self, size: int) -> None:
        """So many bytes are no longer held."""
        self._used -= size
        self._shared.inflated_free += size
