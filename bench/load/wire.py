"""What all connections share: the socket, HTTP/2's own traffic, and the tally of calls."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sized
from typing import Protocol

from hpack import Decoder, HPACKError

from bench.load import frames

RECEIVE_BYTES = 262_144
REGRANT_BYTES = 2**30
"""The connection window is topped up each time this much was received: half of what it holds."""

_MAX_EXAMPLES = 5
_OK = ""


class ConnectionLostError(Exception):
    """The peer closed the connection, reset it or broke the protocol."""


Times = Callable[[int], Iterable[float]]
"""When the next so many calls of an open loop were due."""


class Connection(Protocol):
    """What the worker's loop needs of a connection, unary or streaming."""

    limit: int
    max_streams: int
    unsent: memoryview

    @property
    def in_flight(self) -> Sized: ...

    @property
    def room(self) -> int: ...

    def connect(self) -> None: ...

    def fileno(self) -> int: ...

    def issue(self, count: int, now: float, times: Times | None) -> int: ...

    def receive(self) -> None: ...

    def writable(self) -> None: ...

    def close(self) -> None: ...

    @property
    def hollow(self) -> int: ...


class Tally:
    """What became of a group's calls; shared by its connections."""

    __slots__ = ("acknowledged", "examples", "failures", "issued", "received_bytes", "samples")

    def __init__(self) -> None:
        self.issued = 0
        self.acknowledged = 0
        self.received_bytes = 0
        self.failures: Counter[str] = Counter()
        self.examples: list[str] = []
        self.samples: list[float] = []
        """Latencies in seconds, of good replies; the worker empties it when measuring begins."""

    def fail(self, reason: str, detail: str = "") -> None:
        """Counts a call that was not answered well."""
        self.failures[reason] += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"{reason}: {detail}" if detail else reason)


class Wire:
    """The socket and HTTP/2's own traffic, common to unary and streaming connections.

    After `connect` the peer's settings are known. Subclasses take DATA and the end
    of streams; everything else is handled here.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.unsent = memoryview(b"")
        """Bytes the socket would not take; nothing else is sent before them."""
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self.stream_window = frames.DEFAULT_WINDOW_BYTES
        self.max_streams = 2**31
        self.peer_table_bytes = frames.DEFAULT_TABLE_BYTES
        self.going_away = False
        self._rest = b""
        self._ungranted = 0
        self._has_settings = False
        self._decoder = Decoder()
        self._newest_entry: object = None
        self._blocks: dict[bytes, tuple[str, str]] = {}
        self._fragments = b""
        self._socket = self._dial(address)

    @staticmethod
    def _dial(address: str) -> socket.socket:
        if address.startswith("unix:"):
            connected = socket.socket(socket.AF_UNIX)
            connected.connect(address.removeprefix("unix:"))
            return connected
        host, _, port = address.rpartition(":")
        connected = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def connect(self) -> None:
        """Exchanges settings; blocks until the peer's have come (at most 10 s)."""
        self._socket.settimeout(10)
        self._socket.sendall(frames.client_preface())
        while not self._has_settings:
            self._receive(self._socket.recv(RECEIVE_BYTES))
        self._socket.setblocking(False)
        self._flush()

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def receive(self) -> None:
        """Takes what the socket holds, without blocking."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLostError(errno.errorcode.get(error.errno or 0, "?")) from error
        self._receive(data)

    def send(self, data: bytes) -> None:
        """Sends, or keeps what the socket does not take."""
        if self.unsent:
            self.unsent = memoryview(bytes(self.unsent) + data)
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ConnectionLostError(errno.errorcode.get(error.errno or 0, "?")) from error
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]

    def _flush(self) -> None:
        unsent, self.unsent = self.unsent, memoryview(b"")
        if unsent:
            self.send(unsent.tobytes())

    def writable(self) -> None:
        """The socket takes bytes again."""
        self._flush()

    # ------------------------------------------------------------ receiving

    def _receive(self, data: bytes) -> None:
        raise NotImplementedError

    def _granted(self, size_bytes: int) -> None:
        """``size_bytes`` of DATA were consumed: the connection window is topped up in time."""
        self._ungranted += size_bytes
        if self._ungranted >= REGRANT_BYTES:
            self.send(frames.window_update(0, self._ungranted))
            self._ungranted = 0

    def _status(self, block: bytes) -> tuple[str, str]:
        """(status, message) of a header block: status is "" if it is well, so far."""
        known = self._blocks.get(block)
        if known is not None:
            return known
        try:
            fields = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise ConnectionLostError(f"header block: {error}") from error
        outcome = (_OK, "")
        named = {bytes(field[0]): bytes(field[1]) for field in fields}
        if named.get(b":status", b"200") != b"200":
            outcome = (f"http {named[b':status'].decode()}", "")
        elif named.get(b"grpc-status", b"0") != b"0":
            outcome = (
                f"grpc {named[b'grpc-status'].decode()}",
                named.get(b"grpc-message", b"").decode(errors="replace"),
            )
        entries = self._decoder.header_table.dynamic_entries
        newest = entries[0] if entries else None
        if newest is not self._newest_entry:
            # An index means something else from now on, in every block.
            self._newest_entry = newest
            self._blocks.clear()
        elif len(self._blocks) < 4096:
            self._blocks[block] = outcome
        return outcome

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Takes a frame that is neither DATA nor HEADERS."""
        if kind == frames.WINDOW_UPDATE:
            self._window_update(stream_id, int.from_bytes(payload, "big"))
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._settings(frames.parse_settings(payload))
            self.send(frames.frame(frames.SETTINGS, frames.ACK, 0))
        elif kind == frames.PING and not flags & frames.ACK:
            self.send(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM:
            self._ended(stream_id, f"reset {int.from_bytes(payload, 'big')}", "")
        elif kind == frames.GOAWAY:
            self.going_away = True
            code = int.from_bytes(payload[4:8], "big")
            if code:
                raise ConnectionLostError(f"GOAWAY {code} {payload[8:].decode(errors='replace')}")

    def _settings(self, values: dict[int, int]) -> None:
        self._has_settings = True
        self.max_streams = values.get(frames.SETTING_MAX_CONCURRENT_STREAMS, self.max_streams)
        self.peer_table_bytes = values.get(frames.SETTING_HEADER_TABLE_SIZE, self.peer_table_bytes)
        window = values.get(frames.SETTING_INITIAL_WINDOW_SIZE)
        if window is not None:
            self._stream_windows_moved(window - self.stream_window)
            self.stream_window = window

    def _window_update(self, stream_id: int, increment: int) -> None:
        if stream_id == 0:
            self.send_window += increment

    def _stream_windows_moved(self, difference: int) -> None:
        """Open streams gain ``difference`` bytes (RFC 9113, 6.9.2)."""

    def _ended(self, stream_id: int, status: str, message: str) -> None:
        raise NotImplementedError

    def _headers(self, kind: int, flags: int, payload: bytes) -> bytes | None:
        """The whole header block once it is there: padding, priority and CONTINUATION undone."""
        if kind == frames.HEADERS:
            if flags & frames.PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & frames.PRIORITY:
                payload = payload[5:]
            self._fragments = b""
        self._fragments += payload
        return self._fragments if flags & frames.END_HEADERS else None
