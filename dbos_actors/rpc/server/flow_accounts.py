"""Memory for the bytes of requests and responses: who may keep how many, and who has to wait.

Every connection has an allowance of its own for requests that wait, and one for responses that are
not sent. What exceeds an allowance is taken from the memory that all connections of the server
share (`SharedState.held_free` and `SharedState.unsent_free`), and given back when it is no longer
used.

Request bytes are acknowledged one by one, always:
- when the handler takes their message;
- as they arrive, once their whole message has room;
- or when the call is over with some of them left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dbos_actors.rpc.server.outbox import Outbox
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.wire.http2 import Http2Error


class Uploads:
    """Room for request messages larger than their stream's window; one for each connection.

    Until a message has room, its bytes are not acknowledged, so its client can send no more than a
    window of it. A message gets room for all its bytes or for none: if messages got room piece by
    piece, each could wait for another one's end. At least one message always has room.
    """

    __slots__ = ("_limit", "_reserved", "_reserved_bytes", "_waiting")

    def __init__(self, limit: int) -> None:
        """``limit``: bytes that the messages of one connection may reserve together."""
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


class Uploading(Protocol):
    """A call whose request message is larger than its stream's window."""

    stream_id: int
    unacknowledged: int
    """Bytes that came and are not acknowledged."""
    message_bytes: int
    """Size of the message, prefix included, once it is known to be that large; else 0."""

    @property
    def due_bytes(self) -> int:
        """Those of the unacknowledged bytes that belong to the message."""
        ...


class RequestAccount:
    """The request bytes of one connection that wait for their end or their handler."""

    __slots__ = ("_acknowledge", "_free_max", "_outbox", "_shared", "charged", "held", "uploads")

    held: int
    """Bytes that wait."""

    charged: int
    """How many of them are taken from the memory that connections share."""

    def __init__(self, outbox: Outbox) -> None:
        shared = outbox.shared
        self._outbox = outbox
        self._acknowledge = outbox.engine.acknowledge
        self._shared = shared
        self._free_max = shared.limits.held_bytes_free
        self.uploads = Uploads(shared.limits.upload_bytes_max)
        self.held = 0
        self.charged = 0

    def hold(self, size: int) -> bool:
        """Count bytes that have come; False: there is no memory for them."""
        self.held += size
        extra = self.held - self._free_max - self.charged
        if extra > 0:
            if extra > self._shared.held_free:
                return False
            self._shared.held_free -= extra
            self.charged += extra
        return True

    def unhold(self, size: int) -> None:
        """So many bytes wait no more."""
        self.held -= size
        if self.charged:
            charged = max(0, min(self.charged, self.held - self._free_max))
            self._shared.held_free += self.charged - charged
            self.charged = charged

    def acknowledge(self, stream_id: int, amount: int) -> None:
        """Let the client send so many more bytes."""
        if amount:
            try:  # noqa: SIM105 - on the hot path, where a context manager costs four times as much
                self._acknowledge(amount, stream_id)
            except (Http2Error, ValueError):
                pass  # the connection is ending: nothing to reopen

    def upload(self, call: Uploading, size: int) -> None:
        """Acknowledge what has come of a message larger than its window, once it has room."""
        if self.uploads.has_room(call.stream_id):
            self._acknowledge_upload(call)
        elif not self.uploads.knows(call.stream_id):
            self.uploads.request(call.stream_id, size, lambda: self._acknowledge_upload(call))

    def _acknowledge_upload(self, call: Uploading) -> None:
        due = call.due_bytes
        if due > 0:
            self.acknowledge(call.stream_id, due)
            call.unacknowledged -= due
            self._outbox.wants_flush()

    def release(self, call: Uploading, waiting_bytes: int) -> None:
        """A call needs no more of its request, of which so many bytes wait."""
        self.acknowledge(call.stream_id, call.unacknowledged)
        call.unacknowledged = 0
        if call.message_bytes:
            self.uploads.release(call.stream_id)
            call.message_bytes = 0
        self.unhold(waiting_bytes)

    def close(self) -> None:
        """The connection is over: give back what it shared."""
        self._shared.held_free += self.charged
        self.charged = 0


class ResponseAccount:
    """The response bytes of one connection that its socket has not accepted."""

    __slots__ = ("_shared", "_stalled", "_stalled_s_max", "charged", "free_max", "unsent_bytes")

    unsent_bytes: int
    """Exact after each flush; between two flushes without headers and frames."""

    free_max: int
    """How many of them a connection may have without using shared memory."""

    charged: int
    """How many of them are taken from the memory that connections share."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self.free_max = shared.limits.unsent_bytes_free
        self._stalled_s_max = shared.limits.stalled_s_max
        # Since when the socket has accepted nothing, and how many bytes it had accepted by then.
        self._stalled: tuple[float, int] | None = None
        self.unsent_bytes = 0
        self.charged = 0

    def charge(self, unsent_bytes: int) -> bool:
        """Take what exceeds the allowance from the shared memory; False: there is not enough."""
        extra = unsent_bytes - self.free_max - self.charged
        if extra > self._shared.unsent_free:
            return False
        if extra > 0:
            self._shared.unsent_free -= extra
            self.charged += extra
        return True

    @property
    def room_bytes(self) -> int:
        """How many bytes more could be queued now."""
        return self.free_max + self.charged - self.unsent_bytes + self._shared.unsent_free

    def flushed(self, unsent_bytes: int) -> None:
        """So many bytes are left after a flush."""
        self.unsent_bytes = unsent_bytes
        if self.charged:
            charged = max(0, min(self.charged, unsent_bytes - self.free_max))
            self._shared.unsent_free += self.charged - charged
            self.charged = charged

    def is_stalled(self, now_s: float, accepted_bytes: int) -> bool:
        """Whether shared memory was kept for too long while the socket accepted nothing.

        ``accepted_bytes``: what the socket has accepted since the connection was made.
        """
        if not self.charged:
            self._stalled = None
        elif self._stalled is None or self._stalled[1] != accepted_bytes:
            self._stalled = (now_s, accepted_bytes)
        else:
            return now_s - self._stalled[0] >= self._stalled_s_max
        return False

    def close(self) -> None:
        """The connection is over: give back what it shared."""
        self._shared.unsent_free += self.charged
        self.charged = 0
