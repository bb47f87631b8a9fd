"""Through what the calls of one connection are answered.

`Outbox` has the HTTP/2 engine of the connection, its live streams, and the way to a flush:
- Answers that are queued while the connection handles what it has read need nothing more: the
  driver flushes when that is done.
- Any other output marks the connection as dirty. The dirty connections of a server are flushed
  together: at the end of the `AnswerRound` that is under way, or else soon (`SharedState.wake`).

A call may be answered while its client still sends. Its stream is then *discarded*: what still
comes is thrown away, and the stream is reset (NO_ERROR) once its trailers are handed to the socket,
because a reset drops what is queued on its stream.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from dbos_actors.rpc.server.keepalive import Keepalive
from dbos_actors.rpc.server.shared_state import Driver, SharedState
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.engine import Engine
from dbos_actors.rpc.wire.http2 import HEADER_BYTES_MAX, ErrorCode, Http2Connection, StreamError
from dbos_actors.rpc.wire.status import Fields, fitting

SHARED_RESPONSE_BYTES: Final = 16_384
"""A response larger than one DATA frame is interleaved with others instead of going first."""


class Discarded:
    """A stream that has its answer while the client still sends."""

    __slots__ = ()


DISCARDED: Final = Discarded()
Inbound: TypeAlias = UnaryCall | StreamCall | Discarded


class Outbox:
    """The engine of one connection, its streams, and whether it has to be flushed."""

    __slots__ = (
        "_send_response",
        "driver",
        "engine",
        "has_reset",
        "header_bytes_max",
        "is_dirty",
        "is_http2",
        "is_receiving",
        "keepalive",
        "peer",
        "peer_certificate",
        "resets",
        "shared",
        "streams",
    )

    streams: dict[int, Inbound]
    """By id. A stream leaves when its status is queued, or its client has gone."""

    resets: dict[int, bool]
    """Discarded streams that are not reset, and whether a body precedes their trailers. If there
    are any, `reset_discarded` is to be called when the socket has taken all output."""

    header_bytes_max: int
    """Size of a header block that the client accepts. One that is larger ends the connection
    with some clients, and the calls of others with it."""

    has_reset: bool
    """Whether a stream was reset since the connection's window was looked at."""

    is_receiving: bool
    """Whether the driver will flush as soon as what was read is handled."""

    is_dirty: bool
    """Whether it is among those to be flushed."""

    def __init__(
        self,
        shared: SharedState,
        driver: Driver,
        keepalive: Keepalive,
        *,
        peer: str,
        engine: Engine | None = None,
    ) -> None:
        """``engine``: of another version of HTTP than HTTP/2."""
        self.shared = shared
        self.driver = driver
        self.keepalive = keepalive
        self.peer = peer
        self.peer_certificate: dict[str, Any] | None = None
        self.is_http2 = engine is None
        self.engine: Engine = engine or Http2Connection.server(shared.limits.http2)
        self._send_response = self.engine.send_response
        self.streams = {}
        self.resets = {}
        self.header_bytes_max = HEADER_BYTES_MAX
        self.has_reset = False
        self.is_receiving = False
        self.is_dirty = False

    def wants_flush(self) -> None:
        """There is output. No-op while the driver is about to flush anyway."""
        if not self.is_receiving and not self.is_dirty:
            self.is_dirty = True
            shared = self.shared
            shared.dirty.append(self)
            if not shared.in_round and len(shared.dirty) == 1:
                shared.wake()

    def refuse(self, stream_id: int, fields: Fields, *, request_ended: bool) -> None:
        """Queue a stream's only headers."""
        self.keepalive.responded = True
        try:
            self._send_response(stream_id, fitting(fields, self.header_bytes_max), end_stream=True)
        except StreamError:
            return
        if not request_ended:
            self.discard(stream_id, has_body=False)
        self.wants_flush()

    def answer(
        self, stream_id: int, head: Fields | None, body: bytes, *, request_ended: bool
    ) -> None:
        """Queue the whole answer of a stream, or, without ``head``, what is left of it."""
        self.keepalive.responded = True
        engine = self.engine
        try:
            if head is not None:
                engine.send_response(stream_id, head, end_stream=not body)
            if body:
                engine.send_data(stream_id, body, end_stream=True)
                if len(body) > SHARED_RESPONSE_BYTES:
                    engine.share_fairly(stream_id)
        except StreamError:
            return
        if not request_ended:
            self.discard(stream_id, has_body=bool(body))
        self.wants_flush()

    def discard(self, stream_id: int, *, has_body: bool) -> None:
        """The stream has its answer, but not the end of its request."""
        self.streams[stream_id] = DISCARDED
        self.resets[stream_id] = has_body

    def forget_discarded(self, stream_id: int) -> None:
        """A discarded stream has ended."""
        self.resets.pop(stream_id, None)

    def reset_discarded(self) -> bool:
        """Reset the streams whose trailers are on their way; whether any was."""
        any_reset = False
        for stream_id, has_body in list(self.resets.items()):
            if self.streams.get(stream_id) is not DISCARDED:
                del self.resets[stream_id]
                continue
            try:
                if has_body and not self.engine.can_send_trailers(stream_id):
                    continue
                self.engine.reset(stream_id, ErrorCode.NO_ERROR)
                self.has_reset = any_reset = True
            except StreamError:
                self.streams.pop(stream_id, None)
            del self.resets[stream_id]
        return any_reset

    def has_lost_window(self) -> bool:
        """Whether our resets have used up the connection's window."""
        return self.engine.has_lost_window(self._unacknowledged_bytes)

    def _unacknowledged_bytes(self) -> int:
        calls = self.streams.values()
        return sum([one.unacknowledged for one in calls if not isinstance(one, Discarded)])
