"""Ids of stream entries, assigned here and not by Redis.

A commit that is sent again must be the same to the byte, so its ids cannot be
``*``. They rise strictly, also when the wall clock goes back.
"""

from __future__ import annotations

from dbos_actors.clock import Clock
from dbos_actors.store.connection import Connection
from dbos_actors.store.resp import ReplyError, pack


class EventIds:
    """Makes ``milliseconds-number`` ids above ``last``."""

    __slots__ = ("_clock", "_ms", "_number")

    def __init__(self, clock: Clock, last: bytes = b"0-0") -> None:
        ms, _, number = last.partition(b"-")
        self._clock = clock
        self._ms = int(ms)
        self._number = int(number)

    def next_id(self) -> bytes:
        """Above every id given before; from the wall clock unless it went back."""
        now_ms = int(self._clock.wall_s() * 1000)
        if now_ms > self._ms:
            self._ms = now_ms
            self._number = 0
        else:
            self._number += 1
        return b"%d-%d" % (self._ms, self._number)


async def last_event_id(connection: Connection, stream: str) -> bytes:
    """The highest id the stream ever had, also when it was trimmed; ``0-0`` if there is none.

    Raises `ConnectionLostError`.
    """
    (reply,) = await connection.call(pack("XINFO", "STREAM", stream), 1)
    if isinstance(reply, ReplyError) or not isinstance(reply, list):
        return b"0-0"
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    last = fields.get(b"last-generated-id", b"0-0")
    return last if isinstance(last, bytes) else b"0-0"
