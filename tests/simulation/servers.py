"""Simulated server processes: the real supervision tree, killed and frozen from outside.

A kill takes the network from the server first, so that what its tasks do while
they are cancelled reaches nobody, as with a process that is gone. The operator
starts another one, which has to wait for the lease if nobody knows that the old
one is dead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import trio
from grpclib.const import Status

import dbos_actors.actors.agents.actor
import dbos_actors.actors.agents.deletion
import dbos_actors.actors.agents.queries
import dbos_actors.actors.agents.run_retention
import dbos_actors.actors.pages
import dbos_actors.actors.watching.log_reader
import dbos_actors.actors.watching.watchers
import dbos_actors.assembly
import dbos_actors.assembly.actors
import dbos_actors.rpc.server.server
import dbos_actors.store.opening
import dbos_actors.store.ownership
from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.api import messages
from dbos_actors.domain.tasks import id_table
from dbos_actors.errors import FencedError, OwnedElsewhereError, StoreUnreachableError
from dbos_actors.server import RunningServer, open_supervisor
from dbos_actors.service.methods import SERVICE
from dbos_actors.settings import Settings
from dbos_actors.store.ownership import OwnerProcess
from tests.simulation.determinism import SimulatedClock
from tests.simulation.direct import DirectServer, DirectStream
from tests.simulation.history import Ending, StreamEndedError
from tests.simulation.network import Conditions, Route
from tests.simulation.redis.deployment import SimulatedConnector, SimulatedRedis
from tests.simulation.wire import WireClients, WireListener, WireStream

START_AGAIN_S = 0.4
"""The operator's pause between two attempts to start a server."""

_BLOCK_IDS = 4
"""Tasks are kept in blocks; so few are enough to split them and to read on behind them."""

Answer = tuple[Ending, Any]

_current: ContextVar[SimulatedServer] = ContextVar("simulated_server")


class Life(Enum):
    """Where a server is in its life, as the operator knows it."""

    STARTING = auto()
    SERVING = auto()
    DEAD = auto()


class SimulatedServer:
    """One server process, its way to Redis and its way to the clients."""

    def __init__(
        self,
        number: int,
        *,
        settings: Settings,
        redis: SimulatedRedis,
        clock: SimulatedClock,
        random: Random,
        redis_conditions: Conditions,
        client_conditions: Conditions,
        host: str,
        take_over: bool,
        over_grpc: bool,
        nursery: trio.Nursery,
        on_started: Callable[[SimulatedServer], None],
        on_ended: Callable[[SimulatedServer, BaseException | None], None],
    ) -> None:
        self.number = number
        self.name = f"server-{number}"
        self.host = host
        self.life = Life.STARTING
        self.network_is_gone = False
        self.is_ending = False
        """It was told to end in an orderly way."""
        self.take_over = take_over
        self.route = Route(random, redis_conditions)
        self.clients = Route(random, client_conditions)
        self.rpc: DirectServer | None = None
        self.over_grpc = over_grpc
        self._nursery = nursery
        self._wire: WireClients | None = None
        self.running: RunningServer | None = None
        self._scope = trio.CancelScope()
        self._settings = settings
        self._clock = clock
        self._random = random
        self._on_started = on_started
        self._on_ended = on_ended
        self._connector = SimulatedConnector(
            redis, self.route, allowed=lambda: not self.network_is_gone
        )

    @property
    def history(self) -> Any:
        """What the server knows of the store; None until it has started."""
        return None if self.running is None else self.running.store._committer.history

    async def run(self) -> None:
        """Start, and start again while the store cannot be had; serve until ended."""
        _current.set(self)
        cause: BaseException | None = None
        try:
            with self._scope:
                cause = await self._start_and_serve()
        except BaseExceptionGroup as group:
            # Fenced while it was being cancelled.
            fenced, rest = group.split(FencedError)
            if rest is not None:
                raise
            cause = fenced
        self.life = Life.DEAD
        self.network_is_gone = True
        self.clients.thaw()
        self.clients.cut()
        self._on_ended(self, cause)

    async def _start_and_serve(self) -> BaseException | None:
        """What the server has ended of, if not in good order."""
        while self.life is Life.STARTING:
            try:
                await self._serve()
                break
            except (OwnedElsewhereError, StoreUnreachableError):
                await trio.sleep(START_AGAIN_S)
            except Exception as error:  # noqa: BLE001 - a finding, told to the world
                return error
        return None

    async def _serve(self) -> None:
        listeners = []
        if self.over_grpc:
            listener = WireListener(self.clients, self._nursery)
            listeners.append(listener)
            channel_random = Random(self._random.getrandbits(32))
            self._wire = WireClients(listener, self._clock, channel_random)
        async with open_supervisor(
            self._settings,
            connector=self._connector,
            clock=self._clock,
            random=Random(self._random.getrandbits(32)),
            listeners=listeners,
            take_over=self.take_over,
        ) as self.running:
            self.life = Life.SERVING
            if self._wire is not None:
                self._nursery.start_soon(self._wire.run)
            self._on_started(self)
            await self.running.wait_stopped()

    # ----------------------------------------------------------------- calls

    async def exchange(
        self, method: str, request: dict[str, Any], timeout_s: float | None
    ) -> Answer:
        """Send a call and wait for its answer, as a client far away does."""
        deadline_s = None if timeout_s is None else trio.current_time() + timeout_s
        message = getattr(messages, f"{method}Request")(**request)
        if self._wire is not None:
            ending, answer = await self._wire.exchange(method, message, timeout_s)
            return (Ending.UNKNOWN, "killed") if self.network_is_gone else (ending, answer)
        await self.travel()
        rpc = self.rpc
        if self.network_is_gone or rpc is None or not rpc.accepting:
            return Ending.NO_EFFECT, "connection refused"
        path = f"/{SERVICE.full_name}/{method}"
        call = rpc.begin(path, message.SerializeToString(), deadline_s)
        await call.wait()
        await self.travel()
        if self.network_is_gone:
            return Ending.UNKNOWN, "connection lost"
        if call.error is not None:
            status, text = call.error
            if status is Status.RESOURCE_EXHAUSTED:
                return Ending.NO_EFFECT, text
            return Ending.UNKNOWN, f"{status.name}: {text}"
        if call.body is None:
            return Ending.UNKNOWN, "connection lost"
        response = getattr(messages, f"{method}Response").FromString(call.body)
        return Ending.ANSWERED, response

    async def open_stream(self, method: str) -> WireStream | TravellingStream:
        """Open a stream, as a client far away does. Raises `StreamEndedError`."""
        described = SERVICE.methods_by_name[method]
        if self._wire is not None:
            types = (described.input_type.name, described.output_type.name)
            return await self._wire.open(method, *(getattr(messages, name) for name in types))
        await self.travel()
        rpc = self.rpc
        if self.network_is_gone or rpc is None or not rpc.accepting:
            raise StreamEndedError(None, "connection refused")
        return TravellingStream(self, rpc.open(f"/{SERVICE.full_name}/{method}"))

    async def travel(self) -> None:
        """A message's way, one direction; it waits while the way is frozen."""
        latency_s = self.clients.conditions.latency_s
        if latency_s:
            await trio.sleep(latency_s * self._random.uniform(0.1, 1.0))
        else:
            await trio.lowlevel.checkpoint()
        await self.clients.wait_thawed()

    # ---------------------------------------------------------------- faults

    def kill(self, *, deliver_sent: bool) -> None:
        """``kill -9``: what was sent arrives, or not (a machine that loses power)."""
        self.network_is_gone = True
        if deliver_sent:
            self.route.close()
        else:
            self.route.cut()
        self.clients.thaw()
        self.cut_clients()
        self._scope.cancel()

    def cancel(self) -> None:
        """End in an orderly hurry, as on a second SIGTERM."""
        self.is_ending = True
        self._scope.cancel()

    async def drain(self) -> None:
        """End gracefully."""
        self.is_ending = True
        if self.running is not None:
            await self.running.drain(2.0)

    def cut_clients(self) -> None:
        """Every client loses its connection."""
        self.clients.cut()
        if self.rpc is not None:
            self.rpc.abandon_all()

    def freeze(self, *, clients: bool) -> None:
        """Nothing reaches Redis, or comes from there; nor the clients, if they are meant too."""
        self.route.freeze()
        if clients:
            self.clients.freeze()

    def thaw(self) -> None:
        """What was on the way arrives."""
        self.route.thaw()
        self.clients.thaw()


class TravellingStream:
    """A client's end of a stream that is no bytes; each message takes its time on the way."""

    def __init__(self, server: SimulatedServer, stream: DirectStream) -> None:
        self._server = server
        self._stream = stream

    async def send(self, message: Any) -> None:
        """Raises `StreamEndedError`."""
        await self._server.travel()
        self._require_network()
        self._stream.send(message)

    async def end(self) -> None:
        """Send nothing more. Raises `StreamEndedError`."""
        await self._server.travel()
        self._require_network()
        self._stream.end()

    async def receive(self) -> Any:
        """The next response; None after the last. Raises `StreamEndedError` unless it ended OK."""
        try:
            return await self._stream.receive()
        finally:
            await self._server.travel()
            self._require_network()

    def abandon(self) -> None:
        """Be gone."""
        self._stream.abandon()

    def _require_network(self) -> None:
        if self._server.network_is_gone:
            raise StreamEndedError(None, "connection lost")


class SimulatedCrashError(Exception):
    """A handler's bug."""


@contextmanager
def _crashing_actors(crashes: Callable[[], bool]) -> Iterator[None]:
    """Handlers that raise when told to, before they have decided anything."""
    handle = AgentActor.handle

    def handle_or_crash(self: AgentActor, request: Any) -> Any:
        if crashes():
            raise SimulatedCrashError
        return handle(self, request)

    with patch.object(AgentActor, "handle", handle_or_crash):
        yield


@contextmanager
def _small_limits(constants: dict[str, int]) -> Iterator[None]:
    """Bounds of single steps, so that few entries take several."""
    with (
        patch.object(id_table, "BLOCK_MAX", _BLOCK_IDS),
        patch.object(id_table, "_BLOCK_MIN", 1),
        patch.object(
            dbos_actors.actors.agents.deletion, "_DELETION_STEP", constants["deletion_step"]
        ),
        patch.object(dbos_actors.actors.agents.run_retention, "_STEP", constants["deletion_step"]),
        patch.object(
            dbos_actors.actors.agents.actor, "_RUNS_LOADED_AT_ONCE", constants["runs_loaded"]
        ),
        patch.object(dbos_actors.actors.agents.queries, "STEP", constants["listing_step"]),
        patch.object(dbos_actors.actors.pages, "STEP", constants["listing_step"]),
        patch.object(dbos_actors.actors.watching.watchers, "_NOTED_MAX", constants["noted_events"]),
        patch.object(dbos_actors.actors.watching.watchers, "RING_BYTES", constants["ring_bytes"]),
        patch.object(dbos_actors.actors.watching.watchers, "_LOOKED_THROUGH", 3),
        patch.object(dbos_actors.actors.watching.log_reader, "STEP", constants["listing_step"]),
        patch.object(
            dbos_actors.assembly.actors,
            "SchedulerSettings",
            partial(SchedulerSettings, journal_entries_min=constants["journal_entries"]),
        ),
    ):
        yield


def _grpc_server(arguments: dict[str, Any], *, gathers_calls: bool) -> Any:
    """A server that reads at ticks, or does not, whatever it costs: CPU time differs by run."""
    server = dbos_actors.rpc.server.server.Server(**arguments, cpu_s=float)
    server._read_ticks.is_on = gathers_calls
    server._read_ticks.due_s = math.inf
    return server


@contextmanager
def simulated_surroundings(
    *,
    store: dict[str, Any],
    constants: dict[str, int],
    is_dead: Callable[[OwnerProcess], bool],
    crashes: Callable[[], bool],
) -> Iterator[None]:
    """Replace what a server finds out about its process, and make its limits small.

    ``store`` are `StoreSettings` that `Settings` has no way to say. ``constants`` is for
    `_small_limits`. ``is_dead`` is what a server finds out about
    another process of its machine. ``crashes`` is asked before each message of an agent's.
    """

    class Server(DirectServer):
        def __new__(cls, **arguments: Any) -> Any:
            if _current.get().over_grpc:
                return _grpc_server(arguments, gathers_calls=bool(constants["gathers_calls"]))
            return super().__new__(cls)

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            _current.get().rpc = self

    def this_process(*, address: str, random: Random) -> OwnerProcess:
        server = _current.get()
        return OwnerProcess(
            host=server.host,
            pid=1000 + server.number,
            started=1,
            boot_id="boot",
            pid_namespace="pids",
            instance=f"{random.getrandbits(64):016x}",
            address=server.name,
        )

    def is_gone(owner: OwnerProcess, *, seen_from: OwnerProcess) -> bool:
        return owner.host == seen_from.host and is_dead(owner)

    original = dbos_actors.assembly.store_settings

    def store_settings(settings: Settings, *, take_over: bool) -> Any:
        return replace(original(settings, take_over=take_over), **store)

    with (
        patch.object(dbos_actors.assembly, "Server", Server),
        patch.object(dbos_actors.assembly, "store_settings", store_settings),
        patch.object(dbos_actors.store.opening, "this_process", this_process),
        patch.object(dbos_actors.store.ownership, "is_gone", is_gone),
        _small_limits(constants),
        _crashing_actors(crashes),
    ):
        yield
