"""One client connection with one StoreResults stream: results up, "so many are durable" down."""

from __future__ import annotations

from collections import deque
from time import perf_counter

from bench.load import frames
from bench.load.requests import DBOS, Item, Workload
from bench.load.wire import ConnectionLostError, Tally, Times, Wire
from dbos_actors.api import messages

_STREAM = 1
_REGRANT_BYTES = frames.STREAM_WINDOW_BYTES // 2


class StreamConnection(Wire):
    """Messages of one workload on one stream, at most ``limit`` unsettled at a time."""

    def __init__(self, address: str, workload: Workload, tally: Tally, limit: int) -> None:
        super().__init__(address)
        self.limit = limit
        self.in_flight: deque[float] = deque()
        """When each message that is not settled yet was (to be) sent, oldest first."""
        self._workload = workload
        self._tally = tally
        self._settled = 0
        self._duplicates = 0
        self._ended_already = False
        self._own_window = 0
        self._held: Item | None = None
        self._body = b""
        self._unacknowledged = 0
        self._data_header = frames.pack_word(_STREAM)

    def connect(self) -> None:
        """Opens the stream as well."""
        super().connect()
        path = DBOS + "StoreResults"
        block = frames.RequestHeaders(path, self.address, self.peer_table_bytes).first
        self._own_window += self.stream_window
        self.send(frames.frame(frames.HEADERS, frames.END_HEADERS, _STREAM, block))

    def close(self) -> None:
        """Ends the stream, then the connection."""
        if not self._ended_already and not self.unsent:
            self.send(frames.frame(frames.DATA, frames.END_STREAM, _STREAM))
        super().close()

    @property
    def room(self) -> int:
        """How many messages may be sent now."""
        if self.unsent or self._ended_already:
            return 0
        return self.limit - len(self.in_flight)

    @property
    def hollow(self) -> int:
        """A message cannot be acknowledged without one."""
        return 0

    def issue(self, count: int, now: float, times: Times | None) -> int:
        """Sends up to ``count`` messages (at most `room`); returns how many."""
        budget = window = min(self.send_window, self._own_window)
        parts: list[bytes] = []
        word = self._data_header
        issued = 0
        while issued < count:
            item, self._held = self._held, None
            if item is None:
                try:
                    item = next(self._workload)
                except StopIteration:
                    break
            shape, first, second = item
            if shape.flow_bytes > budget:
                self._held = item
                break
            budget -= shape.flow_bytes
            parts += (shape.stream_start, word, shape.a, first, shape.b, second, shape.c)
            issued += 1
        if issued:
            self.send_window -= window - budget
            self._own_window -= window - budget
            self.in_flight.extend([now] * issued if times is None else times(issued))
            self._tally.issued += issued
            self.send(b"".join(parts))
        return issued

    # ------------------------------------------------------------ receiving

    def _receive(self, data: bytes) -> None:
        if not data:
            raise ConnectionLostError("closed by the peer")
        data = self._rest + data
        position = 0
        last = len(data) - frames.FRAME_HEADER_BYTES
        while position <= last:
            length_kind, flags, stream = frames.unpack_header(data, position)
            end = position + 9 + (length_kind >> 8)
            if end > len(data):
                break
            payload = data[position + 9 : end]
            kind = length_kind & 0xFF
            if kind == frames.DATA:
                self._data(flags, payload)
            elif kind in (frames.HEADERS, frames.CONTINUATION):
                block = self._headers(kind, flags, payload)
                status = ("", "") if block is None else self._status(block)
                if flags & frames.END_STREAM or status[0]:
                    self._ended(stream, *status)
            else:
                self._control(kind, flags, stream, payload)
            position = end
        self._rest = data[position:]

    def _data(self, flags: int, payload: bytes) -> None:
        self._granted(len(payload))
        self._unacknowledged += len(payload)
        if self._unacknowledged >= _REGRANT_BYTES:
            self.send(frames.window_update(_STREAM, self._unacknowledged))
            self._unacknowledged = 0
        if flags & frames.PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        self._body += payload
        while len(self._body) >= frames.GRPC_PREFIX_BYTES:
            end = frames.GRPC_PREFIX_BYTES + int.from_bytes(self._body[1:5], "big")
            if len(self._body) < end:
                break
            message, self._body = self._body[frames.GRPC_PREFIX_BYTES : end], self._body[end:]
            self._progress(messages.StoreResultsResponse.FromString(message))

    def _progress(self, response: messages.StoreResultsResponse) -> None:
        now = perf_counter()
        news = response.durable - self._settled
        if news < 0 or news > len(self.in_flight):
            raise ConnectionLostError(f"{response.durable} durable of {self._tally.issued} sent")
        self._settled = response.durable
        sample = self._tally.samples.append
        for _ in range(news):
            sample(now - self.in_flight.popleft())
        for rejected in response.rejected:
            self._tally.fail("refused", rejected.error)
        # Every id is new: a duplicate would mean that something was stored twice.
        for _ in range(response.duplicates - self._duplicates):
            self._tally.fail("duplicate")
        self._duplicates = response.duplicates
        self._tally.acknowledged += news - len(response.rejected)
        self._tally.received_bytes += response.ByteSize()

    def _window_update(self, stream_id: int, increment: int) -> None:
        super()._window_update(stream_id, increment)
        if stream_id == _STREAM:
            self._own_window += increment

    def _stream_windows_moved(self, difference: int) -> None:
        if self._own_window:
            self._own_window += difference

    def _ended(self, stream_id: int, status: str, message: str) -> None:
        if stream_id != _STREAM or self._ended_already:
            return
        self._ended_already = True
        for _ in range(len(self.in_flight)):
            self._tally.fail(status or "ended early", message)
        self.in_flight.clear()
