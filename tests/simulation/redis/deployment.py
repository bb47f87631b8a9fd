"""A deployment: the node that is primary now, and what befalls it.

It can die, lose its last second, fail over, refuse and stall. It speaks RESP2 over a simulated
network to the real store, through `SimulatedConnector`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from hiredis import Reader

from dbos_actors.clock import Clock
from dbos_actors.store.connection import ConnectionLostError
from tests.simulation.network import Route, SimulatedStream
from tests.simulation.redis.node import Mode, Node
from tests.simulation.redis.session import Session, encoded


class SimulatedRedis:
    """A primary, and what befalls it."""

    def __init__(
        self, clock: Clock, nursery: trio.Nursery, *, now: Callable[[], int] = lambda: 0
    ) -> None:
        """``now`` is for `LogEntry.tick`."""
        self.clock = clock
        self.primary = Node("node-1", clock, now=now)
        self.nodes = 1
        self._nursery = nursery
        self._connections: list[tuple[Node, SimulatedStream]] = []

    def connect(self, route: Route) -> SimulatedStream:
        """A stream to the primary. Raises `ConnectionLostError`."""
        node = self.primary
        if node.mode is Mode.DOWN:
            raise ConnectionLostError("Connection refused")
        near, far = route.open()
        self._connections.append((node, far))
        self._nursery.start_soon(self._serve, node, far)
        return near

    async def _serve(self, node: Node, stream: SimulatedStream) -> None:
        session = Session(node)
        reader = Reader()
        try:
            while data := await stream.receive_some(1 << 20):
                reader.feed(data)
                await node.resumed.wait()
                if node.mode is Mode.DOWN:
                    break
                replies = []
                while (arguments := reader.gets()) is not False:
                    replies.append(encoded(session.execute(arguments)))
                if replies:
                    await stream.send_all(b"".join(replies))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            stream.close()
            self._connections = [entry for entry in self._connections if entry[1] is not stream]

    # ---------------------------------------------------------------- faults

    def stall(self) -> None:
        """Accept everything and answer nothing, until `resume`."""
        self.primary.resumed = trio.Event()

    def resume(self) -> None:
        """Answer again."""
        self.primary.resumed.set()

    def crash(self, *, lose_s: float = 0.0, keep: int = 0) -> int | None:
        """Die at once, with the last ``lose_s`` seconds not yet on disk.

        ``keep`` is how many entries of the log are there in any case. Returns the tick of the
        first entry lost, or None.
        """
        node = self.primary
        first_lost = None
        if lose_s and node.config["appendfsync"] != "always":
            first_lost = node.lose_since(self.clock.monotonic_s() - lose_s, keep)
        node.mode = Mode.DOWN
        self._disconnect(node)
        node.resumed.set()
        return first_lost

    def start(self, *, loading: bool = False) -> None:
        """Start over what is on disk; while loading it answers, but serves nothing."""
        node = self.primary
        node.load()
        node.refusal = None
        node.mode = Mode.LOADING if loading else Mode.SERVING

    def loaded(self) -> None:
        """Loading is over."""
        self.primary.mode = Mode.SERVING

    def fail_over(self, *, lag_s: float, keep: int = 0) -> int | None:
        """Promote a replica that lacks the last ``lag_s`` seconds; the old primary is gone.

        ``keep`` is how many entries of the log it has in any case. Returns the tick of the first
        entry it lacks, or None.
        """
        old = self.primary
        self.nodes += 1
        node = Node(f"node-{self.nodes}", self.clock, list(old.log), now=old.now)
        first_lost = node.lose_since(self.clock.monotonic_s() - lag_s, keep)
        node.password, node.config = old.password, old.config
        self.primary = node
        old.mode = Mode.DOWN
        old.resumed.set()
        self._disconnect(old)
        return first_lost

    def _disconnect(self, node: Node) -> None:
        for connected_to, stream in self._connections:
            if connected_to is node:
                stream.reset()


@dataclass(frozen=True, slots=True)
class SimulatedConnector:
    """A `dbos_actors.store.Connector` to a simulated deployment."""

    redis: SimulatedRedis
    route: Route
    address: str = "redis://simulated:6379"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    allowed: Callable[[], bool] = lambda: True
    """Whether the network lets this server through at all."""

    async def connect(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if not self.allowed():
            raise ConnectionLostError("No route to host")
        delay_s = self.route.conditions.latency_s
        if delay_s:
            await trio.sleep(delay_s * self.route.random.uniform(0.1, 1.0))
        await self.route.wait_thawed()
        return self.redis.connect(self.route)
