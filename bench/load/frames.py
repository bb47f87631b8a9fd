"""HTTP/2 frames and request header blocks (RFC 9113, RFC 7541), as bytes.

Only what a gRPC client sends and must understand. Frame headers are packed by
`struct`; the header block of a request is written once in full, entering its
fields into the connection's dynamic table, and is a handful of index bytes from
then on, which is what real gRPC clients send.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

DATA: Final = 0x0
HEADERS: Final = 0x1
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

SETTING_HEADER_TABLE_SIZE: Final = 0x1
SETTING_ENABLE_PUSH: Final = 0x2
SETTING_MAX_CONCURRENT_STREAMS: Final = 0x3
SETTING_INITIAL_WINDOW_SIZE: Final = 0x4
SETTING_MAX_FRAME_SIZE: Final = 0x5

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
DEFAULT_WINDOW_BYTES: Final = 65_535  # RFC 9113, 6.9.2
DEFAULT_FRAME_BYTES: Final = 16_384  # RFC 9113, 4.2
DEFAULT_TABLE_BYTES: Final = 4_096  # RFC 7541 through RFC 9113, 6.5.2
MAX_WINDOW_BYTES: Final = 2**31 - 1
GRPC_PREFIX_BYTES: Final = 5

STREAM_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""What this client grants each response: beyond the 4 MiB a gRPC message may have."""

# length and type in one 32-bit word, flags, stream id.
_FRAME_HEADER = struct.Struct(">LBL")
_SETTING = struct.Struct(">HL")
_WORD = struct.Struct(">L")

unpack_header = _FRAME_HEADER.unpack_from
"""(length << 8 | type, flags, stream id) of the frame that starts at an offset."""

pack_word = _WORD.pack


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame, header and payload."""
    return _FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


class FrameReader:
    """Cuts what a connection receives into frames."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """The frames that are complete now: type, flags, stream id and payload of each."""
        buffer = self._rest + data
        found = []
        at = 0
        while len(buffer) - at >= FRAME_HEADER_BYTES:
            length_kind, flags, stream_id = unpack_header(buffer, at)
            end = at + FRAME_HEADER_BYTES + (length_kind >> 8)
            if end > len(buffer):
                break
            payload = buffer[at + FRAME_HEADER_BYTES : end]
            found.append((length_kind & 0xFF, flags, stream_id, payload))
            at = end
        self._rest = buffer[at:]
        return found


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """A message with the five bytes that gRPC puts before it."""
    return bytes((compressed,)) + pack_word(len(body)) + body


def data(stream_id: int, body: bytes, *, end: bool = False) -> bytes:
    """A body in DATA frames of the size that every peer allows."""
    pieces = [
        body[start : start + DEFAULT_FRAME_BYTES]
        for start in range(0, len(body), DEFAULT_FRAME_BYTES)
    ] or [b""]
    ends = [0] * (len(pieces) - 1) + [END_STREAM if end else 0]
    return b"".join(
        frame(DATA, flags, stream_id, piece) for flags, piece in zip(ends, pieces, strict=True)
    )


def unary_call(stream_id: int, block: bytes, request: bytes) -> bytes:
    """A whole call: its header block, and its one message."""
    return frame(HEADERS, END_HEADERS, stream_id, block) + data(
        stream_id, message(request), end=True
    )


def frame_start(kind: int, flags: int, length: int) -> bytes:
    """A frame header without its last four bytes, the stream id."""
    return _FRAME_HEADER.pack(length << 8 | kind, flags, 0)[:5]


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_SETTING.pack(*item) for item in values.items())
    return frame(SETTINGS, 0, 0, payload)


def parse_settings(payload: bytes) -> dict[int, int]:
    """The settings of a SETTINGS frame's payload."""
    whole = len(payload) // _SETTING.size * _SETTING.size
    return dict(_SETTING.iter_unpack(payload[:whole]))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, pack_word(increment))


def client_preface(stream_window_bytes: int = STREAM_WINDOW_BYTES) -> bytes:
    """What a client says first: preface, settings, and a connection window it never exhausts."""
    return (
        PREFACE
        + settings({SETTING_ENABLE_PUSH: 0, SETTING_INITIAL_WINDOW_SIZE: stream_window_bytes})
        + window_update(0, MAX_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
    )


def _integer(prefix: int, bits: int, value: int) -> bytes:
    """An HPACK integer (RFC 7541, 5.1) under the pattern ``prefix``."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((prefix | value,))
    encoded = bytearray((prefix | limit,))
    value -= limit
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _string(text: str) -> bytes:
    raw = text.encode("ascii")
    return _integer(0, 7, len(raw)) + raw


class RequestHeaders:
    """The header block of one method's calls on one connection.

    `first` goes with the first request of the connection, `later` with every
    other one. A peer whose table is smaller than the default gets the fields as
    literals each time, so that neither side keeps a table.
    """

    __slots__ = ("first", "later")

    _METHOD_POST = b"\x83"
    _SCHEME_HTTP = b"\x86"
    _STATIC_ENTRIES = 61

    def __init__(
        self,
        path: str,
        authority: str,
        peer_table_bytes: int,
        *,
        more: Sequence[tuple[str, str]] = (),
    ) -> None:
        """``more``: fields beyond those of every gRPC call, such as an authorization."""
        # (static index of the name or 0, name, value); pseudo-headers first.
        fields = (
            (4, ":path", path),
            (1, ":authority", authority),
            (0, "te", "trailers"),
            (31, "content-type", "application/grpc"),
            (58, "user-agent", "dbos-bench/1"),
            *((0, name, value) for name, value in more),
        )
        start = self._METHOD_POST + self._SCHEME_HTTP
        if peer_table_bytes < DEFAULT_TABLE_BYTES:
            literals = start + b"".join(self._literal(0x00, 4, *field) for field in fields)
            self.first = _integer(0x20, 5, 0) + literals
            self.later = literals
            return
        self.first = start + b"".join(self._literal(0x40, 6, *field) for field in fields)
        newest = self._STATIC_ENTRIES + 1
        self.later = start + b"".join(
            _integer(0x80, 7, newest + age) for age in range(len(fields) - 1, -1, -1)
        )

    @staticmethod
    def _literal(pattern: int, bits: int, index: int, name: str, value: str) -> bytes:
        head = _integer(pattern, bits, index)
        return head + (b"" if index else _string(name)) + _string(value)
