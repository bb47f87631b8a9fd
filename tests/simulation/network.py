"""A simulated network: in-memory byte streams that delay, split, freeze and break.

A `Route` is the way between two programs and carries any number of streams. Its
conditions may change at any time: frozen, nothing arrives on either side, and
what was sent arrives after it thaws, also if its sender has gone meanwhile, as
in a real network; broken, every stream on it is reset and what was on the way
may or may not arrive.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

import trio


@dataclass(slots=True)
class Conditions:
    """How bytes travel."""

    latency_s: float = 0.0
    """The longest delay of a piece; the shortest is a tenth of it."""
    split_chance: float = 0.0
    """That what is sent at once arrives in several pieces, each with a delay of its own."""


class Route:
    """The way between two programs."""

    def __init__(self, random: Random, conditions: Conditions) -> None:
        self.random = random
        self.conditions = conditions
        self._thawed = trio.Event()
        self._thawed.set()
        self._pipes: set[Pipe] = set()  # only ever visited in the order of their making
        self._made = 0

    @property
    def is_frozen(self) -> bool:
        return not self._thawed.is_set()

    async def wait_thawed(self) -> None:
        """Wait until bytes travel again."""
        await self._thawed.wait()

    def open(self) -> tuple[SimulatedStream, SimulatedStream]:
        """Both ends of a new stream."""
        there, back = self.pipe(), self.pipe()
        return SimulatedStream(back, there), SimulatedStream(there, back)

    def freeze(self) -> None:
        """Nothing arrives until `thaw`."""
        if not self.is_frozen:
            self._thawed = trio.Event()

    def thaw(self) -> None:
        """What was on the way arrives now."""
        self._thawed.set()
        for pipe in self._in_order():
            pipe.wake()

    def cut(self) -> None:
        """Reset every stream."""
        for pipe in self._in_order():
            pipe.reset()

    def close(self) -> None:
        """End every direction in good order: what is on the way still arrives."""
        for pipe in self._in_order():
            pipe.end()

    def half_close(self) -> None:
        """End one direction of every stream, in good order."""
        for pipe in self._in_order():
            if self.random.random() < 0.5:
                pipe.end()

    def forget(self, pipe: Pipe) -> None:
        self._pipes.discard(pipe)

    def pipe(self) -> Pipe:
        """One direction of a new stream."""
        self._made += 1
        pipe = Pipe(self, self._made)
        self._pipes.add(pipe)
        return pipe

    def _in_order(self) -> list[Pipe]:
        return sorted(self._pipes, key=lambda pipe: pipe.number)


class Pipe:
    """One direction of a stream. One task receives at a time."""

    __slots__ = ("_arrived_s", "_chunks", "_ended", "_reset", "_route", "_waiting", "number")

    def __init__(self, route: Route, number: int) -> None:
        self.number = number
        self._route = route
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._arrived_s = 0.0
        self._ended = False
        self._reset = False
        self._waiting: trio.Event | None = None

    @property
    def is_open(self) -> bool:
        return not self._ended and not self._reset

    def send(self, data: bytes) -> None:
        """Put bytes on the way. Raises `trio.BrokenResourceError` if the pipe is."""
        if not self.is_open:
            raise trio.BrokenResourceError("reset by the network")
        if not data:
            return
        route = self._route
        conditions, random = route.conditions, route.random
        pieces = [data]
        if len(data) > 1 and random.random() < conditions.split_chance:
            at = random.randrange(1, len(data))
            pieces = [data[:at], data[at:]]
        for piece in pieces:
            delay_s = conditions.latency_s and conditions.latency_s * random.uniform(0.1, 1.0)
            self._arrived_s = max(self._arrived_s, trio.current_time() + delay_s)
            self._chunks.append((self._arrived_s, piece))
        self.wake()

    async def receive(self, size: int) -> bytes:
        """At most so many bytes that have arrived; empty at the end of the stream."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._reset:
                raise trio.BrokenResourceError("reset by the network")
            due_s = float("inf")
            if not self._route.is_frozen:
                if self._chunks:
                    due_s = self._chunks[0][0]
                    if due_s <= trio.current_time():
                        return self._take(size)
                elif self._ended:
                    self._route.forget(self)
                    return b""
            self._waiting = trio.Event()
            with trio.CancelScope(deadline=due_s):
                await self._waiting.wait()

    def _take(self, size: int) -> bytes:
        now_s = trio.current_time()
        taken = bytearray()
        while self._chunks and self._chunks[0][0] <= now_s and len(taken) < size:
            at_s, piece = self._chunks.popleft()
            room = size - len(taken)
            taken += piece[:room]
            if len(piece) > room:
                self._chunks.appendleft((at_s, piece[room:]))
        return bytes(taken)

    def end(self) -> None:
        """The sender sends no more; what is on the way still arrives."""
        self._ended = True
        self.wake()

    def reset(self) -> None:
        """Nothing more arrives."""
        self._reset = True
        self._chunks.clear()
        self._route.forget(self)
        self.wake()

    def wake(self) -> None:
        if self._waiting is not None:
            self._waiting.set()


class SimulatedStream(trio.abc.Stream):
    """One end of a stream."""

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        self._outgoing.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._closed:
            raise trio.ClosedResourceError
        return await self._incoming.receive(max_bytes or 65_536)

    def close(self) -> None:
        """Close this end; what it sent before still arrives, and the other end cannot send."""
        if not self._closed:
            self._closed = True
            self._outgoing.end()
            self._incoming.reset()

    def reset(self) -> None:
        """Break both directions; what is on the way is lost."""
        self._closed = True
        self._outgoing.reset()
        self._incoming.reset()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()
