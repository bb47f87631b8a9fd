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

from collections.abc import Sequence
from time import perf_counter

from bench.load import frames
from bench.load.requests import Item, Workload
from bench.load.wire import (
    ConnectionLostError,
    Tally,
    Times,
    Wire,
)


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
