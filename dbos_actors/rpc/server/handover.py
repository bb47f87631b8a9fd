"""Which response messages of a connection's streams the socket has taken.

A message is *handed over* when the system's socket has accepted all its bytes. A server cannot know
more: only an answer of the client tells whether they have reached it. Before that, the bytes wait
in the engine until the client's windows let them go, and then in the connection for the socket.

After a flush, the bytes of a stream that the engine does not hold any more are framed. If nothing
waits for the socket, the socket has all of them. If something waits, the socket has at least those
that were framed at the look before.

As in `senders`, a stream that is held back by its own window is *stuck*, and is not looked at
before that window opens. So the cost of a look is in proportion to what was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from dbos_actors.rpc.wire.engine import Engine

_CONNECTION: Final = 0
"""The stream id of the connection's own window."""


class Handover:
    """Of one stream: how many of its messages are handed over."""

    __slots__ = ("_ends", "_framed_bytes", "_queued_bytes", "is_awaited", "messages")

    def __init__(self) -> None:
        self.messages = 0
        """Handed over so far; they are the first ones of the stream."""
        self.is_awaited = False
        """Whether ``on_change`` is to be called when all are."""
        self._queued_bytes = 0
        self._framed_bytes = 0
        # Where, in the stream's bytes, each message ends that is not handed over.
        self._ends: list[int] = []  # an empty deque would be 700 bytes

    @property
    def is_complete(self) -> bool:
        """Whether every message so far is handed over."""
        return not self._ends

    def queued(self, size_bytes: int) -> None:
        """Another message waits."""
        self._queued_bytes += size_bytes
        self._ends.append(self._queued_bytes)

    def looked(self, waiting_bytes: int, *, socket_is_free: bool) -> None:
        """So many bytes wait in the engine; everything framed was offered to the socket."""
        framed_bytes = self._queued_bytes - waiting_bytes
        handed_bytes = framed_bytes if socket_is_free else self._framed_bytes
        self._framed_bytes = framed_bytes
        ends = self._ends
        while ends and ends[0] <= handed_bytes:
            ends.pop(0)
            self.messages += 1


class Sender(Protocol):
    """A call that sends messages."""

    stream_id: int
    handover: Handover
    on_change: Callable[[], None]
    """To be called when all its messages are handed over, if that is awaited."""


class Handovers:
    """The streams of one connection that have messages which are not handed over."""

    moving: dict[int, Sender]
    """Those that a flush may have moved; if there are any, `flushed` is to be called."""

    __slots__ = ("_engine", "_is_shut", "_stuck", "moving")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.moving = {}
        self._stuck: dict[int, Sender] = {}
        # Whether at the last look the connection's window was shut and the socket had everything.
        self._is_shut = False

    def queued(self, call: Sender, size_bytes: int) -> None:
        """A message of a call waits to be sent."""
        call.handover.queued(size_bytes)
        if call.stream_id not in self._stuck:
            self.moving[call.stream_id] = call

    def discard(self, call: Sender) -> None:
        """The call is over: what is handed over by now is what counts."""
        self.moving.pop(call.stream_id, None)
        self._stuck.pop(call.stream_id, None)

    def window_opened(self, stream_id: int) -> None:
        """The client takes more of a stream."""
        call = self._stuck.pop(stream_id, None)
        if call is not None:
            self.moving[stream_id] = call

    def windows_changed(self) -> None:
        """SETTINGS may have opened every stream's window."""
        self.moving |= self._stuck
        self._stuck.clear()

    def flushed(self, unsent_bytes: int) -> None:
        """All output that could be taken was; ``unsent_bytes`` of it wait for the socket."""
        engine = self._engine
        is_shut = engine.remote_window_bytes(_CONNECTION) <= 0
        if is_shut and self._is_shut:
            return
        self._is_shut = is_shut and not unsent_bytes
        for stream_id, call in list(self.moving.items()):
            handover = call.handover
            handover.looked(engine.queued_bytes(stream_id), socket_is_free=not unsent_bytes)
            if handover.is_complete:
                del self.moving[stream_id]
                if handover.is_awaited:
                    call.on_change()
            elif not unsent_bytes and engine.remote_window_bytes(stream_id) <= 0:
                del self.moving[stream_id]
                self._stuck[stream_id] = call
