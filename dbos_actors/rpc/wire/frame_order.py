"""Whether a client's frames are on streams that may have them (RFC 9113, 5.1 and 5.1.1). Pure.

nghttp2 ignores frames on a stream that it does not know any more: it cannot tell whether the client
has sent them before it heard of the stream's end. `FrameOrder` can, because it only remembers what
the client itself has opened and ended. After its own END_STREAM or RST_STREAM the client must send
neither HEADERS nor DATA on a stream, and it must open streams in ascending order.

Only the first `FRAMES_CHECKED` frames of a connection are looked at. To look at a frame costs about
1,700 instructions, 2 % of an empty call. A client that gets its streams wrong does so from its
first calls on, and what is not noticed is ignored by nghttp2, which does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from dbos_actors.rpc.wire.http2 import ErrorCode

FRAMES_CHECKED: Final = 100
"""Frames of a connection that are looked at: about 45 calls, in 0.05 ms."""

PREFACE_BYTES: Final = 24
"""What a client sends before its first frame (RFC 9113, 3.4); left to nghttp2."""

_HEAD: Final = Struct(">IBI")  # length (24 bits) and type, flags, stream identifier
_HEAD_BYTES: Final = _HEAD.size

_DATA: Final = 0
_HEADERS: Final = 1
_PRIORITY: Final = 2
_RST_STREAM: Final = 3
_END_STREAM: Final = 1


@dataclass(frozen=True, slots=True)
class OrderViolation:
    """The first frame that the client must not have sent: an error of the connection."""

    offset: int
    """Where the frame begins in the bytes that were checked; 0 if it began before them."""
    code: ErrorCode
    reason: str


class FrameOrder:
    """The streams that a client has opened and ended, on a connection that has just begun."""

    __slots__ = ("_ended", "_frames_left", "_head", "_last_id", "_open", "_skip")

    def __init__(self) -> None:
        self._frames_left = FRAMES_CHECKED
        self._skip = PREFACE_BYTES
        # The beginning of a frame's head, if the bytes so far have ended inside it.
        self._head = b""
        self._last_id = 0
        self._open: set[int] = set()
        self._ended: set[int] = set()

    @property
    def is_done(self) -> bool:
        """Whether no further frame is looked at."""
        return self._frames_left <= 0

    def check(self, data: bytes | bytearray | memoryview) -> OrderViolation | None:
        """Look at the next bytes from the client; of no use after a violation."""
        early = len(self._head)
        if early:
            data = self._head + bytes(data)
            self._head = b""
        size = len(data)
        position = self._skip
        while position + _HEAD_BYTES <= size and self._frames_left > 0:
            self._frames_left -= 1
            length_and_kind, flags, stream_id = _HEAD.unpack_from(data, position)
            found = self._judge(length_and_kind & 0xFF, flags, stream_id & 0x7FFFFFFF)
            if found is not None:
                return OrderViolation(max(0, position - early), *found)
            position += _HEAD_BYTES + (length_and_kind >> 8)
        self._skip = max(0, position - size)
        self._head = bytes(data[position:]) if self._frames_left > 0 else b""
        return None

    def _judge(self, kind: int, flags: int, stream_id: int) -> tuple[ErrorCode, str] | None:
        if kind == _PRIORITY:
            return (ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0") if stream_id == 0 else None
        if kind not in (_DATA, _HEADERS, _RST_STREAM) or stream_id % 2 == 0:
            return None  # no stream of a client: nghttp2 knows what to do
        if stream_id > self._last_id:
            if kind != _HEADERS:
                return None  # a stream that is idle: likewise
            self._last_id = stream_id
            self._open.add(stream_id)
        elif kind != _RST_STREAM and stream_id not in self._open:
            if stream_id in self._ended:
                return ErrorCode.STREAM_CLOSED, "a frame on a stream that the client has ended"
            return ErrorCode.PROTOCOL_ERROR, "a stream below the one that was opened last"
        if kind == _RST_STREAM or flags & _END_STREAM:
            self._open.discard(stream_id)
            self._ended.add(stream_id)
        return None
