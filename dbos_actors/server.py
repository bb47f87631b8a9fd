"""The composition root: the whole supervision tree of one server.

    open_supervisor
    |-- store            connection, committer, lease, readers
    |-- agents           one task per resident agent
    |-- liveness         one timer over all agents, if there is a heartbeat timeout
    |-- service          listings under way
    `-- rpc server       listeners, one task per connection

Started in this order and stopped in the other. Nothing below knows what is
above; each part is handed what it needs. A part that fails takes all of it
down, since none can do without another; what may fail alone (an actor, a
connection, the link to Redis) is supervised inside its part.
"""

from __future__ import annotations

import random as random_module
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog
import trio

from dbos_actors.actors.agent import AgentActor, AgentContext
from dbos_actors.actors.caches import RunCache, RunDirectory
from dbos_actors.actors.liveness import Liveness
from dbos_actors.actors.queries import Queries
from dbos_actors.api.messages import DeleteAgentRequest
from dbos_actors.clock import Clock, SystemClock
from dbos_actors.domain.limits import Limits
from dbos_actors.rpc.limits import ServerLimits
from dbos_actors.rpc.listeners import Listener, address_of, open_listeners
from dbos_actors.rpc.server import Server
from dbos_actors.runtime import Cell, Supervisor, SupervisorLimits, Waiter
from dbos_actors.service import DbosService, status_of
from dbos_actors.settings import Settings, load_settings
from dbos_actors.store import Connector, Store, StoreSettings, connector_for, open_store

logger = structlog.get_logger(__name__)

_DIRECTORY_ENTRIES = 200_000
"""Recently changed runs found by request id without asking Redis; about 40 MB when full."""


class RunningServer:
    """A server that serves; see `open_supervisor`."""

    def __init__(
        self, *, store: Store, agents: Supervisor, rpc: Server, addresses: Sequence[str]
    ) -> None:
        self.store = store
        self.agents = agents
        self.rpc = rpc
        self.addresses = tuple(addresses)
        """Where it listens: ``host:port`` or ``unix:path``."""
        self._stopped = trio.Event()

    @property
    def address(self) -> str:
        """The first of `addresses`."""
        return self.addresses[0]

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish and commit for up to ``grace_s``, then stop.

        If cancelled, the server stops at once.
        """
        try:
            await self.rpc.drain(grace_s)
        finally:
            self._stopped.set()

    async def wait_stopped(self) -> None:
        """Wait until the server has been drained."""
        await self._stopped.wait()


@asynccontextmanager
async def open_supervisor(
    settings: Settings | None = None,
    *,
    connector: Connector | None = None,
    clock: Clock | None = None,
    random: random_module.Random | None = None,
    listeners: Sequence[Listener] | None = None,
    take_over: bool = False,
) -> AsyncIterator[RunningServer]:
    """Start the whole supervision tree; it serves inside the ``async with`` block.

    ``settings`` default to the environment's. ``connector`` (to Redis), ``clock``,
    ``random`` and ``listeners`` replace what the settings say or the system
    provides; listeners are closed at the end. Several servers can run in one
    program, each with a Redis of its own.

    Leaving the block stops it at once: calls under way get UNAVAILABLE or a
    closed connection. Call `RunningServer.drain` before for a graceful end.

    Raises `StoreUnreachableError`, `OwnedElsewhereError`, `UnsafeStoreError` or
    `OSError` (an address in use) at start and `FencedError` out of the block when another
    server has taken the store over.
    """
    settings = settings or load_settings()
    clock = clock or SystemClock()
    async with (
        open_store(
            connector or connector_for(settings.redis_addr),
            settings=_store_settings(settings, take_over=take_over),
            clock=clock,
            random=random or random_module.Random(),  # noqa: S311 - jitter
        ) as store,
        trio.open_nursery() as nursery,
    ):
        limits = _limits(settings)
        directory = RunDirectory(_DIRECTORY_ENTRIES)
        context = AgentContext(
            store=store,
            clock=clock,
            server_id=settings.server_id,
            runs=RunCache(settings.run_cache_bytes),
            directory=directory,
            events_max=settings.max_events,
            event_results=settings.event_results,
        )

        def make_agent(agent_id: str, cell: Cell) -> AgentActor:
            return AgentActor(agent_id, cell, context)

        agents = Supervisor(
            make=make_agent,
            log=store,
            clock=clock,
            limits=SupervisorLimits(
                max_resident=settings.max_resident_agents, idle_s=settings.idle_passivation_s
            ),
        )

        def reload() -> None:
            directory.clear()
            agents.reload_all()

        store.on_reload(reload)
        queries = Queries(store, limit_bytes=limits.message_bytes)
        liveness = None
        if settings.heartbeat_timeout_s:
            liveness = Liveness(
                store=store, agents=agents, clock=clock, timeout_s=settings.heartbeat_timeout_s
            )
        service = DbosService(
            agents=agents,
            queries=queries,
            directory=directory,
            limits=limits,
            heard=None if liveness is None else liveness.heard,
        )
        rpc = Server(
            unary=service.methods(),
            services=[service],
            status_of=status_of,
            limits=ServerLimits(message_bytes_max=limits.message_bytes),
            clock=clock,
        )
        store.on_batch(rpc.flush)
        await nursery.start(agents.run)
        if liveness is not None:
            nursery.start_soon(liveness.run)
        await nursery.start(service.run)
        if listeners is None:
            listeners = await _listen(settings)
        await nursery.start(rpc.serve, listeners)
        nursery.start_soon(_finish_deletions, queries, agents)
        running = RunningServer(
            store=store, agents=agents, rpc=rpc, addresses=list(map(address_of, listeners))
        )
        try:
            yield running
        finally:
            nursery.cancel_scope.cancel()


async def _listen(settings: Settings) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for address in settings.listen_addresses:
            listeners += await open_listeners(address)
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    return listeners


async def _finish_deletions(queries: Queries, agents: Supervisor) -> None:
    """Finish the deletions of agents that an earlier server began."""
    for agent_id in await queries.agents_being_deleted():
        logger.info("deletion_resumed", agent=agent_id)
        waiter = Waiter(DeleteAgentRequest(agent_id=agent_id))
        agents.deliver(agent_id, waiter)
        await waiter.wait()


def _limits(settings: Settings) -> Limits:
    return Limits(
        id_bytes=settings.max_id_bytes,
        name_bytes=settings.max_id_bytes,
        data_bytes=settings.max_data_bytes,
        map_entries=settings.max_map_entries,
        map_bytes=settings.max_map_bytes,
        message_bytes=settings.max_message_bytes,
    )


def _store_settings(settings: Settings, *, take_over: bool) -> StoreSettings:
    return StoreSettings(
        server_address=",".join(settings.listen_addresses),
        take_over=take_over,
        durability=settings.durability,
        require_safe=settings.require_safe_redis,
        queue_bytes=settings.commit_queue_bytes,
    )
