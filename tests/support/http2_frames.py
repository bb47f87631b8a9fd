"""HTTP/2 frames as bytes, for tests that send what no engine would."""

from __future__ import annotations

import struct

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION, ALTSVC = 8, 9, 10

END_STREAM, END_HEADERS = 1, 4

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def http2_frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame, whatever is wrong with it."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream_id) + payload
