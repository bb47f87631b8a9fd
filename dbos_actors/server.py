"""The composition root: the whole supervision tree of one server.

    open_supervisor
    |-- store            connection, committer, lease, readers
    |-- tasks            the scheduler: its actor, its clock, snapshots, audits
    |-- agents           one task per resident agent
    |-- deletions        those that were interrupted, finished before the server serves
    |-- liveness         one timer over all agents, if there is a heartbeat timeout
    |-- retention        sweeps, if anything is to be deleted by age or bytes
    |-- service          listings under way
    |-- rpc server       listeners, one task per connection
    `-- pages            metrics over HTTP, if there is a port for them

Started in this order and stopped in the other. Nothing below knows what is
above; each part is handed what it needs. A part that fails takes all of it
down, since none can do without another; what may fail alone (an actor, a
connection, the link to Redis) is supervised inside its part.
"""

from __future__ import annotations

import random as random_module
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from trio_util import compose_values

from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.actors.agents.caches import RunCache, RunDirectory
from dbos_actors.actors.agents.change_clock import ChangeClock
from dbos_actors.actors.agents.context import AgentContext
from dbos_actors.actors.agents.deletion import Deletions
from dbos_actors.actors.agents.liveness import Liveness
from dbos_actors.actors.agents.queries import Queries
from dbos_actors.actors.agents.retention import Retention, RetentionPolicy
from dbos_actors.actors.event_log import EventLog
from dbos_actors.actors.listings import ListingBudget
from dbos_actors.actors.tasks.scheduler import Scheduler, SchedulerSettings
from dbos_actors.api.messages import DESCRIPTOR
from dbos_actors.clock import Clock, SystemClock
from dbos_actors.domain.limits import Limits
from dbos_actors.errors import ConfigurationError, raise_sole_cause
from dbos_actors.log_limits import LIMITS
from dbos_actors.rpc.server.descriptors import connections_that_fit
from dbos_actors.rpc.server.health import FILE as HEALTH_FILE
from dbos_actors.rpc.server.health import OVERALL, Health
from dbos_actors.rpc.server.interceptors import Interceptor
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import Listener, bound_address, open_listeners
from dbos_actors.rpc.server.reflection import reflection_services
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.wire.tls import ReloadingContext
from dbos_actors.runtime import ActorCell, Supervisor, SupervisorLimits, until_available
from dbos_actors.service.auth import BearerAuth
from dbos_actors.service.http_pages import serve_pages
from dbos_actors.service.methods import SERVICE, DbosService, status_of
from dbos_actors.service.metrics import CallMetrics, gauges_of, metrics_page
from dbos_actors.settings import Settings, load_settings
from dbos_actors.store import (
    Connector,
    Store,
    StoreSettings,
    StoreState,
    connector_for,
    open_store,
)

logger = structlog.get_logger(__name__)

TASKS_HEALTH = "dbos.DBOS.tasks"
"""What the health service says about the tasks alone."""

_DIRECTORY_ENTRIES = 200_000
"""Recently changed runs found by request id without asking Redis; about 40 MB when full."""

_CLOSE_SHARE = 0.2
"""Of the grace, for the last commits and the release of the lease; the command line leaves it."""

_RECORD_BYTES = 256 << 10
"""Of a record in Redis besides its data and its map: texts, ids and names, at their limits."""

_DELAY_S_MAX = 0.3
"""What waits longer for the store, of thousands that do, is a queue that does not get shorter."""


_STREAMS_SHARE = 0.8
"""Of a drain's grace, after which streams give up what they wait for."""


class RunningServer:
    """A server that serves; see `open_supervisor`."""

    def __init__(
        self,
        *,
        store: Store,
        agents: Supervisor,
        tasks: Scheduler,
        service: DbosService,
        health: Health,
        rpc: Server,
        addresses: Sequence[str],
        metrics_port: int | None,
    ) -> None:
        self.store = store
        self.agents = agents
        self.tasks = tasks
        self.rpc = rpc
        self.addresses = tuple(addresses)
        """Where it listens: ``host:port`` or ``unix:path``."""
        self.metrics_port = metrics_port
        """Where the metrics page is, if anywhere."""
        self._service = service
        self._health = health
        self._stopped = trio.Event()

    @property
    def address(self) -> str:
        """The first of `addresses`."""
        return self.addresses[0]

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish and commit for up to ``grace_s``, then stop.

        Streams that may last for ever settle what they have taken, and end; a little before the
        grace does, so that they are told why, and that what was leased to them and not sent is
        returned. If cancelled, the server stops at once.
        """
        deadline = trio.current_time() + grace_s
        self._health.close()
        self._service.drain()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_streams, grace_s * _STREAMS_SHARE)
                await self.rpc.drain(grace_s)
                nursery.cancel_scope.cancel()
            with trio.move_on_at(deadline):
                await self.tasks.wait_released()
        finally:
            self._stopped.set()

    async def _end_streams(self, after_s: float) -> None:
        await trio.sleep(after_s)
        self._service.drain(overdue=True)

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

    Raises `ConfigurationError`, `StoreUnreachableError`, `OwnedElsewhereError`,
    `UnsafeStoreError`, `UnusableStoreError` or `OSError` (an address in use) at start, and
    `FencedError` out of the block when another server has taken the store over. Tasks
    that cannot be read back are refused, and all else is served.
    """
    settings = settings or load_settings()
    clock = clock or SystemClock()
    random = random or random_module.Random()  # noqa: S311 - jitter
    interceptors, calls, auth = _interceptors(settings)
    tls = _tls(settings)
    try:
        async with (
            open_store(
                connector or connector_for(settings.redis_addr),
                settings=_store_settings(settings, take_over=take_over),
                clock=clock,
                random=random,
            ) as store,
            trio.open_nursery() as nursery,
        ):
            for warning in store.warnings:
                logger.warning("unsafe_redis", name=warning.name, text=warning.text)
            limits = _limits(settings)
            directory = RunDirectory(_DIRECTORY_ENTRIES)
            tasks = _tasks(settings, store, clock, random)
            deletions = Deletions(store)
            changes = ChangeClock(store, clock)
            agents = _agents(
                settings,
                store,
                clock,
                directory,
                changes=changes,
                tasks=tasks,
                deletions=deletions,
            )
            for forget in (directory.clear, changes.lost, agents.reload_all, tasks.reload):
                store.on_reload(forget)
            queries = Queries(store, limit_bytes=limits.message_bytes, id_bytes=limits.id_bytes)
            liveness = _liveness(settings, store, agents, clock)
            retention = _retention(settings, store, agents, clock)
            listings = ListingBudget(settings.listing_bytes, message_bytes=limits.message_bytes)
            service = DbosService(
                agents=agents,
                tasks=tasks,
                queries=queries,
                directory=directory,
                limits=limits,
                listing_budget=listings,
                heard=None if liveness is None else liveness.heard,
            )
            health = Health([SERVICE.full_name, TASKS_HEALTH])
            rpc = Server(
                unary=service.methods(),
                services=[service, *reflection_services([_contract(), HEALTH_FILE])],
                open_services=[health],
                status_of=status_of,
                authenticator=auth,
                overloaded=lambda: store.delay_s > _DELAY_S_MAX,
                limits=_rpc_limits(settings),
                interceptors=interceptors,
                clock=clock,
                random=random,
            )
            store.on_batch(rpc.flush)

            await nursery.start(tasks.run)
            await until_available(changes.load)
            await nursery.start(agents.run)
            await nursery.start(deletions.run, agents)
            if liveness is not None:
                nursery.start_soon(liveness.run)
            if retention is not None:
                nursery.start_soon(retention.run)
            if auth is not None:
                nursery.start_soon(auth.watch, rpc.reauthenticate)
            await nursery.start(service.run)
            if listeners is None:
                listeners = await _listen(settings, tls)
            await nursery.start(rpc.serve, listeners)
            nursery.start_soon(_tell_health, store, tasks, health)
            metrics_port = None
            if calls is not None:
                page = metrics_page(
                    calls=calls,
                    gauges=lambda: {
                        **gauges_of("store", store.statistics()),
                        **gauges_of("agents", agents.statistics()),
                        **gauges_of("tasks", tasks.statistics()),
                        **gauges_of("listings", listings.statistics()),
                        **gauges_of("rpc", rpc.statistics()),
                        "dbos_log_lines_left_out": (
                            "Log lines of clients' doing that were not written.",
                            float(LIMITS.left_out_total),
                        ),
                    },
                )
                metrics_port = await nursery.start(
                    serve_pages, settings.host, settings.metrics_port or 0, {"/metrics": page}
                )
            try:
                yield RunningServer(
                    store=store,
                    agents=agents,
                    tasks=tasks,
                    service=service,
                    health=health,
                    rpc=rpc,
                    addresses=list(map(bound_address, listeners)),
                    metrics_port=metrics_port,
                )
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_sole_cause(group)


def _tasks(
    settings: Settings, store: Store, clock: Clock, random: random_module.Random
) -> Scheduler:
    return Scheduler(
        store=store,
        clock=clock,
        random=random,
        settings=SchedulerSettings(
            max_attempts=settings.max_attempts,
            retention_s=settings.tasks_max_age_s,
            dead_retention_s=settings.dead_tasks_max_age_s,
            tasks_max=settings.tasks_max,
            completed_max=settings.completed_tasks_max,
            dead_max=settings.dead_tasks_max,
            due_lease_s=settings.due_tasks_lease_s,
            events_max=settings.max_events,
            message_bytes_max=settings.max_message_bytes,
        ),
        size_of=_size_of,
    )


def _agents(
    settings: Settings,
    store: Store,
    clock: Clock,
    directory: RunDirectory,
    *,
    changes: ChangeClock,
    tasks: Scheduler,
    deletions: Deletions,
) -> Supervisor:
    context = AgentContext(
        store=store,
        clock=clock,
        server_id=settings.server_id,
        changes=changes,
        runs=RunCache(settings.run_cache_bytes),
        directory=directory,
        log=EventLog(store, events_max=settings.max_events),
        event_results=settings.event_results,
        forget_tasks=tasks.forget_agent,
        deletion_interrupted=deletions.interrupted,
    )

    def make(agent_id: str, cell: ActorCell) -> AgentActor:
        return AgentActor(agent_id, cell, context)

    return Supervisor(
        make=make,
        log=store,
        clock=clock,
        limits=SupervisorLimits(
            max_resident=settings.max_resident_agents, idle_s=settings.idle_passivation_s
        ),
        size_of=_size_of,
    )


def _size_of(request: Any) -> int:
    """What a request holds: the contract's are as large as their bytes, our own are nothing."""
    return request.ByteSize() if isinstance(request, Message) else 0


def _liveness(
    settings: Settings, store: Store, agents: Supervisor, clock: Clock
) -> Liveness | None:
    timeout_s = settings.heartbeat_timeout_s
    if not timeout_s:
        return None
    return Liveness(store=store, agents=agents, clock=clock, timeout_s=timeout_s)


def _retention(
    settings: Settings, store: Store, agents: Supervisor, clock: Clock
) -> Retention | None:
    policy = RetentionPolicy(
        results_age_s=settings.results_max_age_s,
        results_bytes=settings.results_max_bytes,
        runs_age_s=settings.runs_max_age_s,
        runs_bytes=settings.runs_max_bytes,
    )
    if not policy:
        return None
    return Retention(store=store, agents=agents, clock=clock, policy=policy)


def _interceptors(
    settings: Settings,
) -> tuple[list[Interceptor], CallMetrics | None, BearerAuth | None]:
    calls = None if settings.metrics_port is None else CallMetrics()
    auth = None if settings.auth_token_file is None else BearerAuth(settings.auth_token_file)
    return [] if calls is None else [calls], calls, auth


def _tls(settings: Settings) -> ReloadingContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        return ReloadingContext(
            settings.tls_cert, settings.tls_key, client_authorities=settings.tls_client_ca
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(f"DBOS_TLS_CERT={settings.tls_cert}: {error}") from error


async def _listen(settings: Settings, tls: ReloadingContext | None) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for address in settings.listen_addresses:
            is_tcp = not address.startswith("unix:")
            listeners += await open_listeners(address, tls=tls if is_tcp else None)
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    return listeners


def _contract() -> FileDescriptorProto:
    file = FileDescriptorProto()
    DESCRIPTOR.CopyToProto(file)
    return file


async def _tell_health(store: Store, tasks: Scheduler, health: Health) -> None:
    """The service serves while its store does, writes included; its tasks if they are readable."""
    with compose_values(
        state=store.state, forbidden=store.forbidden, readable=tasks.readable
    ) as values:
        async for now in values.eventual_values():
            serving = now.state is StoreState.CONNECTED and now.forbidden is None
            health.set(serving, OVERALL, SERVICE.full_name)
            health.set(serving and now.readable, TASKS_HEALTH)


def _limits(settings: Settings) -> Limits:
    return Limits(
        id_bytes=settings.max_id_bytes,
        name_bytes=settings.max_id_bytes,
        data_bytes=settings.max_data_bytes,
        map_entries=settings.max_map_entries,
        map_bytes=settings.max_map_bytes,
        message_bytes=settings.max_message_bytes,
    )


def _rpc_limits(settings: Settings) -> ServerLimits:
    wanted = ServerLimits().connections_max
    fit = connections_that_fit(wanted)
    if fit < wanted:
        logger.warning("connections_limited", connections_max=fit, wanted=wanted, by="open files")
    return ServerLimits(message_bytes_max=settings.max_message_bytes, connections_max=fit)


def _store_settings(settings: Settings, *, take_over: bool) -> StoreSettings:
    return StoreSettings(
        server_address=",".join(settings.listen_addresses),
        take_over=take_over,
        durability=settings.durability,
        require_safe=settings.require_safe_redis,
        refuse_loss=settings.refuse_lost_commits,
        argument_bytes=settings.max_data_bytes + settings.max_map_bytes + _RECORD_BYTES,
        argument_setting=f"DBOS_MAX_DATA_BYTES={settings.max_data_bytes}",
        queue_bytes=settings.commit_queue_bytes,
        kept_bytes=settings.replay_bytes,
        close_timeout_s=min(StoreSettings().close_timeout_s, settings.drain_grace_s * _CLOSE_SHARE),
    )
