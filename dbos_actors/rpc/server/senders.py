"""The handlers of one connection that wait until they may send more.

A handler waits for one of two things: that its stream's queue gets shorter, or that there is
memory for its message. Waking a handler costs a switch of tasks, and a client can keep a thousand
of them waiting. So `Senders` wakes only those that can go on.

A queue gets shorter as its bytes are sent. After a flush, a queue that is still long is held back
by its stream's window, by its connection's window, or by the socket. A stream that is held back by
its own window is *stuck*: it is not looked at again before that window opens. All other streams go
on together, as soon as the connection's window or the socket lets them. So each look finds queues
that have moved, and its cost is in proportion to what was sent.
"""

from __future__ import annotations

from typing import Final

from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.wire.engine import Engine

_CONNECTION: Final = 0
"""The stream id of the connection's own window."""


class Senders:
    """Who waits, and what for."""

    for_queue: dict[int, StreamCall]
    """Whose queues may have become shorter; if there are any, `flushed` is to be called."""

    for_room: dict[StreamCall, int]
    """Who waits for memory, and for how much; if there are any, `wake_for_room` is to be called."""

    __slots__ = ("_engine", "_queue_bytes_max", "_stuck", "for_queue", "for_room")

    def __init__(self, engine: Engine, *, queue_bytes_max: int) -> None:
        self._engine = engine
        self._queue_bytes_max = queue_bytes_max
        self.for_queue = {}
        self._stuck: dict[int, StreamCall] = {}
        self.for_room = {}

    def is_queue_full(self, call: StreamCall) -> bool:
        """Whether a stream has so much queued that its handler has to wait."""
        return self._engine.queued_bytes(call.stream_id) >= self._queue_bytes_max

    def wait_for_queue(self, call: StreamCall) -> None:
        """Have a call's ``on_change`` called when its queue is not full any more."""
        self.for_queue[call.stream_id] = call

    def wait_for_room(self, call: StreamCall, size: int) -> None:
        """Have a call's ``on_change`` called when there is memory for so many bytes."""
        self.for_room[call] = size

    def discard(self, call: StreamCall) -> None:
        """It waits no more."""
        self.for_queue.pop(call.stream_id, None)
        self._stuck.pop(call.stream_id, None)
        self.for_room.pop(call, None)

    def window_opened(self, stream_id: int) -> None:
        """The client takes more of a stream."""
        call = self._stuck.pop(stream_id, None)
        if call is not None:
            self.for_queue[stream_id] = call

    def windows_changed(self) -> None:
        """SETTINGS may have opened every stream's window."""
        self.for_queue |= self._stuck
        self._stuck.clear()

    def flushed(self) -> None:
        """All output that could be taken was: wake those whose queues it has emptied."""
        engine = self._engine
        if engine.remote_window_bytes(_CONNECTION) <= 0:
            return
        for stream_id, call in list(self.for_queue.items()):
            if not self.is_queue_full(call):
                del self.for_queue[stream_id]
                call.on_change()
            elif engine.remote_window_bytes(stream_id) <= 0:
                del self.for_queue[stream_id]
                self._stuck[stream_id] = call

    def wake_for_room(self, free_bytes: int) -> None:
        """Wake those whose messages fit into so much memory together, first come, first served."""
        if free_bytes <= 0:
            return
        for call, size in list(self.for_room.items()):
            if size <= free_bytes:
                free_bytes -= size
                del self.for_room[call]
                call.on_change()
