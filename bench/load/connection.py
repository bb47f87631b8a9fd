"""One client connection: unary calls of one workload, many at a time.

Written for few microseconds per call: requests are joined from prepared parts
and sent many to a `send`, replies are found by walking the frame headers of what
one `recv` brought. Header blocks are decoded once and remembered; the memory is
dropped whenever a block changes the dynamic table. A reply is good if the body
begins as expected and the trailers say grpc-status 0.

Flow control is honoured both ways: requests wait for the peer's connection
window and its limit of concurrent streams, and what is received is granted anew.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from time import perf_counter
from typing import Protocol

from hpack import Decoder, HPACKError

from bench.load import frames
from bench.load.workloads import Item, Workload

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


class UnaryConnection(Wire):
    """Calls of one workload, at most ``limit`` unanswered at a time."""

    def __init__(
        self,
        address: str,
        workload: Workload,
        tally: Tally,
        limit: int,
        *,
        more_headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """``more_headers`` go with every call, such as an authorization."""
        super().__init__(address)
        self._more_headers = more_headers
        self.in_flight: dict[int, float] = {}
        """Stream id to the time its call was (to be) sent."""
        self._workload = workload
        self._tally = tally
        self.limit = limit
        self._next_stream = 1
        self._held: Item | None = None
        """Taken from the workload, but the connection window did not hold it."""
        self._bad: dict[int, tuple[str, str]] = {}
        self._open_messages: dict[int, int] = {}
        """Bytes to come of messages of several DATA frames."""
        self._items: dict[int, Item] = {}
        self._bodies: dict[int, bytes] = {}
        self._expected = workload.expected
        self._exact = workload.expected[:1] == b"\x00"
        self._good_bodies = 0
        self._acknowledged = 0
        self._first_block = b""
        self._block = b""

    def connect(self) -> None:
        super().connect()
        headers = frames.RequestHeaders(
            self._workload.path, self.address, self.peer_table_bytes, more=self._more_headers
        )
        self._first_block = headers.first
        self._block = headers.later

    @property
    def room(self) -> int:
        """How many calls may be issued now."""
        if self.unsent or self.going_away:
            return 0
        return min(self.limit, self.max_streams) - len(self.in_flight)

    # -------------------------------------------------------------- sending

    def issue(self, count: int, now: float, times: Times | None) -> int:
        """Sends up to ``count`` new calls (at most `room`); returns how many.

        ``now`` is recorded as their start, or, in an open loop, what ``times`` gives
        for that number of calls.
        """
        if self._first_block and count > 0:
            block, self._first_block = self._first_block, b""
            issued = self._issue(1, block)
            if not issued:
                self._first_block = block
        else:
            issued = 0
        if count > issued:
            issued += self._issue(count - issued, self._block)
        if issued:
            last = self._next_stream
            streams = range(last - 2 * issued, last, 2)
            if times is None:
                self.in_flight.update(dict.fromkeys(streams, now))
            else:
                self.in_flight.update(zip(streams, times(issued), strict=True))
            self._tally.issued += issued
        return issued

    def _issue(self, count: int, block: bytes) -> int:
        first_stream = stream = self._next_stream
        budget = self.send_window
        headers_start = frames.frame_start(frames.HEADERS, frames.END_HEADERS, len(block))
        parts: list[bytes] = []
        pack = frames.pack_word
        following = self._workload.__next__
        items = self._items if self._workload.tracks else None
        held, self._held = self._held, None
        for _ in range(count):
            if held is not None:
                item, held = held, None
            else:
                try:
                    item = following()
                except StopIteration:
                    break
            shape, first, second = item
            budget -= shape.flow_bytes
            if budget < 0:
                budget += shape.flow_bytes
                self._held = item
                break
            word = pack(stream)
            parts += (
                headers_start,
                word,
                block,
                shape.data_start,
                word,
                shape.a,
                first,
                shape.b,
                second,
                shape.c,
            )
            if items is not None:
                items[stream] = item
            stream += 2
        if parts:
            self.send_window = budget
            self._next_stream = stream
            self.send(b"".join(parts))
        return (stream - first_stream) >> 1

    # ------------------------------------------------------------ receiving

    def _receive(self, data: bytes) -> None:  # noqa: PLR0915 - one loop, calls cost
        now = perf_counter()
        if not data:
            raise ConnectionLostError("closed by the peer")
        if self._rest:
            data = self._rest + data
        position = 0
        size = len(data)
        last = size - frames.FRAME_HEADER_BYTES
        unpack = frames.unpack_header
        startswith = data.startswith
        expected = self._expected
        exact = self._exact and not self._workload.tracks
        blocks = self._blocks
        started = self.in_flight.pop
        sample = self._tally.samples.append
        good_bodies = acknowledged = consumed = 0
        while position <= last:
            length_kind, flags, stream = unpack(data, position)
            end = position + 9 + (length_kind >> 8)
            if end > size:
                break
            kind = length_kind & 0xFF
            if kind == 0:
                consumed += end - position - 9
                if exact and startswith(expected, position + 9):
                    good_bodies += 1
                else:
                    good_bodies += self._data(flags, stream, data[position + 9 : end])
            elif kind == 1 and flags & 0x2C == 4:
                status = blocks.get(data[position + 9 : end])
                if status is None:
                    status = self._status(data[position + 9 : end])
                if not status[0] and not self._bad:
                    if flags & 1:
                        start = started(stream, None)
                        if start is not None:
                            sample(now - start)
                            acknowledged += 1
                            if not exact:
                                self._completed(stream)
                elif flags & 1:
                    self._ended(stream, *status)
                elif status[0]:
                    self._bad[stream] = status
            elif kind in (frames.HEADERS, frames.CONTINUATION):
                self._unusual_headers(kind, flags, stream, data[position + 9 : end])
            else:
                self._control(kind, flags, stream, data[position + 9 : end])
            position = end
        self._rest = data[position:]
        self._acknowledged += acknowledged
        self._tally.acknowledged += acknowledged
        self._tally.received_bytes += consumed
        self._good_bodies += good_bodies
        self._granted(consumed)

    def _data(self, flags: int, stream: int, payload: bytes) -> int:
        """Takes DATA that is not a short fixed reply; returns 1 if a good body began with it."""
        if flags & frames.PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if not payload:
            return 0
        if self._workload.tracks:
            self._bodies[stream] = self._bodies.get(stream, b"") + payload
        remaining = self._open_messages.pop(stream, None)
        begins = remaining is None
        if remaining is None:
            if len(payload) < frames.GRPC_PREFIX_BYTES:
                self._bad[stream] = ("protocol", "a message prefix cut in two")
                return 0
            remaining = int.from_bytes(payload[1:5], "big") + frames.GRPC_PREFIX_BYTES
        remaining -= len(payload)
        if remaining > 0:
            self._open_messages[stream] = remaining
        if not begins:
            return 0
        skipped = 0 if self._exact else frames.GRPC_PREFIX_BYTES
        if payload[0] == 0 and payload.startswith(self._expected, skipped):
            return 1
        self._bad[stream] = ("refused", repr(payload[5:200]))
        return 0

    def _completed(self, stream: int) -> None:
        item = self._items.pop(stream, None)
        if item is not None:
            self._workload.completed(item, self._bodies.pop(stream, b"")[5:])

    def _unusual_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        block = self._headers(kind, flags, payload)
        if kind == frames.HEADERS:
            self._ends_stream = bool(flags & frames.END_STREAM)
        if block is None:
            return
        status = self._status(block)
        if self._ends_stream:
            self._ended(stream, *status)
        elif status[0]:
            self._bad[stream] = status

    _ends_stream = False

    def _ended(self, stream: int, status: str, message: str) -> None:
        """The slow way out of a stream: of failed calls, and of others while there are some."""
        start = self.in_flight.pop(stream, None)
        bad = self._bad.pop(stream, None)
        if start is None:
            return
        if not status and bad is not None:
            status, message = bad
        if not status:
            self._tally.samples.append(perf_counter() - start)
            self._acknowledged += 1
            self._tally.acknowledged += 1
            self._completed(stream)
            return
        self._items.pop(stream, None)
        self._bodies.pop(stream, None)
        self._open_messages.pop(stream, None)
        self._tally.fail(status, message)

    @property
    def hollow(self) -> int:
        """Replies that said OK without a message, which is no reply: more than 0 is an error."""
        return max(0, self._acknowledged - self._good_bodies)
