"""What the parts of a server are made with: each one's share of the settings, and who knows whom.

`dbos_actors.server` says which parts there are and in which order they start.
"""

from __future__ import annotations

import random as random_module
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from dbos_actors.access.authentication import TokenFile
from dbos_actors.access.quotas import AgentQuotas, Rates
from dbos_actors.actors.agents.known_agents import KnownAgents
from dbos_actors.actors.agents.liveness import Liveness
from dbos_actors.actors.agents.queries import Queries
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.api.messages import DESCRIPTOR
from dbos_actors.assembly.actors import Actors
from dbos_actors.clock import Clock
from dbos_actors.domain.limits import Limits
from dbos_actors.errors import CannotListenError, ConfigurationError
from dbos_actors.log_limits import LIMITS
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.descriptors import connections_that_fit
from dbos_actors.rpc.server.health import FILE as HEALTH_FILE
from dbos_actors.rpc.server.health import Health
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import Listener, bound_address, open_listeners
from dbos_actors.rpc.server.reflection import reflection_services
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.wire.addresses import TcpAddress
from dbos_actors.rpc.wire.tls import ReloadingContext
from dbos_actors.service.http_pages import Page, serve_pages
from dbos_actors.service.methods import SERVICE, DbosService, status_of
from dbos_actors.service.metrics import CallMetrics, gauges_of, metrics_page
from dbos_actors.service.statistics import ServerReport
from dbos_actors.service.web import web_options
from dbos_actors.settings import Settings, split_list
from dbos_actors.store import (
    Connector,
    Store,
    StoreSettings,
    StoreState,
    connector_for,
    open_store,
)

logger = get_logger(__name__)

_CLOSE_SHARE = 0.2
"""Of the grace, for the last commits and the release of the lease; the command line leaves it."""

_RECORD_BYTES = 256 << 10
"""Of a record in Redis besides its data and its map: texts, ids and names, at their limits."""

_DELAY_S_MAX = 0.3
"""What waits longer for the store, of thousands that do, is a queue that does not get shorter."""

LIVENESS = "liveness"
"""The health service's name for the process: it serves as long as the server runs.

All other names are about readiness, which a Redis that is away ends. Whoever restarts servers
must ask for this one: a restart does not bring Redis back.
"""

TASKS_HEALTH = "dbos.DBOS.tasks"
"""What the health service says about the tasks alone."""


# ----------------------------------------------------------------------- store


@asynccontextmanager
async def store_of(
    settings: Settings,
    connector: Connector | None,
    clock: Clock,
    random: random_module.Random,
    *,
    take_over: bool,
) -> AsyncIterator[Store]:
    """Open the store that the settings name, or the one behind ``connector``; warn if unsafe."""
    async with open_store(
        connector or connector_for(settings.redis_addr),
        settings=store_settings(settings, take_over=take_over),
        clock=clock,
        random=random,
    ) as store:
        for warning in store.warnings:
            logger.warning("unsafe_redis", name=warning.name, text=warning.text)
        yield store


# --------------------------------------------------------------- service, rpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """What operators add to every call: each is None unless a setting asks for it."""

    calls: CallMetrics | None
    auth: TokenFile | None
    tls: ReloadingContext | None

    def reload(self) -> None:
        """Read tokens and certificates again now."""
        if self.auth is not None:
            self.auth.look_now()
        if self.tls is not None:
            self.tls()


def make_operators(settings: Settings, clock: Clock) -> Operators:
    return Operators(
        calls=None if settings.metrics_port is None else CallMetrics(),
        auth=_auth(settings, clock),
        tls=_tls(settings),
    )


def _auth(settings: Settings, clock: Clock) -> TokenFile | None:
    if settings.auth_token_file is None:
        return None
    rates = Rates(settings.principal_calls_per_s, settings.principal_bytes_per_s)
    return TokenFile(settings.auth_token_file, clock, rates)


def _tls(settings: Settings) -> ReloadingContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        return ReloadingContext(
            settings.tls_cert, settings.tls_key, client_authorities=settings.tls_client_ca
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(f"DBOS_TLS_CERT={settings.tls_cert}: {error}") from error


def _hears(liveness: Liveness, known: KnownAgents) -> Callable[[str], None]:
    """What notes that an agent was heard of, unless it is about to be refused for there being
    too many: nothing is to grow by made-up ids.
    """

    def heard(agent_id: str) -> None:
        if not known.is_full or agent_id in known:
            liveness.heard(agent_id)

    return heard


def _service(settings: Settings, store: Store, actors: Actors, clock: Clock) -> DbosService:
    limits = _limits(settings)
    report = ServerReport(
        store=store,
        clock=clock,
        agents=actors.agents,
        known=actors.known,
        results=actors.results,
        tasks=actors.tasks,
        retention=actors.retention,
        server_id=settings.server_id,
        durability=settings.durability,
        replay_bytes=settings.replay_bytes,
    )
    rates = Rates(settings.agent_calls_per_s, settings.agent_bytes_per_s)
    return DbosService(
        agents=actors.agents,
        tasks=actors.tasks,
        queries=Queries(
            store, actors.known, limit_bytes=limits.message_bytes, id_bytes=limits.id_bytes
        ),
        directory=actors.directory,
        limits=limits,
        listing_budget=actors.listings,
        report=report,
        watchers=actors.watchers,
        quotas=AgentQuotas(rates, clock.monotonic_s) if rates else None,
        heard=None if actors.liveness is None else _hears(actors.liveness, actors.known),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What clients meet."""

    service: DbosService
    health: Health
    rpc: Server


def make_front(
    settings: Settings,
    store: Store,
    actors: Actors,
    *,
    operators: Operators,
    clock: Clock,
    random: random_module.Random,
) -> Front:
    service = _service(settings, store, actors, clock)
    health = Health([SERVICE.full_name, TASKS_HEALTH], always_serving=[LIVENESS])
    rpc = Server(
        unary=service.methods(),
        services=[service, *reflection_services([_contract(), HEALTH_FILE])],
        open_services=[health],
        status_of=status_of,
        authenticator=operators.auth,
        overloaded=lambda: store.delay_s > _DELAY_S_MAX,
        web=web_options(
            hosts=split_list(settings.web_hosts), origins=split_list(settings.web_origins)
        ),
        limits=_rpc_limits(settings),
        interceptors=[] if operators.calls is None else [operators.calls],
        clock=clock,
        random=random,
    )
    store.tell_within(rpc.answer_round)
    return Front(service=service, health=health, rpc=rpc)


async def start_rpc(
    rpc: Server,
    listeners: Sequence[Listener],
    operators: Operators,
    store: Store,
    nursery: trio.Nursery,
) -> list[str]:
    """Serve on the listeners, and end the calls of who may make them no longer; the addresses."""
    addresses = list(map(bound_address, listeners))
    store.serving_at(addresses)
    if operators.auth is not None:
        nursery.start_soon(operators.auth.watch, rpc.reauthenticate)
    await nursery.start(rpc.serve, listeners)
    return addresses


async def start_pages(
    settings: Settings,
    nursery: trio.Nursery,
    *,
    operators: Operators,
    store: Store,
    actors: Actors,
    front: Front,
) -> str | None:
    """Serve the metrics page, if it is asked for; its ``host:port``."""
    if operators.calls is None:
        return None
    parts: dict[str, Callable[[], Any]] = {
        "store": store.statistics,
        "agents": actors.agents.statistics,
        "tasks": actors.tasks.statistics,
        "listings": actors.listings.statistics,
        "watches": actors.watchers.statistics,
        "rpc": front.rpc.statistics,
    }

    def gauges() -> dict[str, tuple[str, float]]:
        found = {}
        for name, statistics in parts.items():
            found.update(gauges_of(name, statistics()))
        found["dbos_log_lines_left_out"] = (
            "Log lines of clients' doing that were not written.",
            float(LIMITS.left_out_total),
        )
        return found

    pages = {
        "/metrics": metrics_page(calls=operators.calls, gauges=gauges),
        "/healthz": lambda: Page(b"alive\n"),
        "/readyz": lambda: _readiness(store, actors.tasks, front.health),
    }
    port = settings.metrics_port or 0
    try:
        port = await nursery.start(serve_pages, settings.host, port, pages)
    except OSError as error:
        raise CannotListenError(f"{TcpAddress(settings.host, port)} (metrics)", error) from error
    return str(TcpAddress(settings.host, port))


def _readiness(store: Store, tasks: Scheduler, health: Health) -> Page:
    """Whether calls can be served now, and why not."""
    if store.state.value is not StoreState.CONNECTED:
        reason = f"Redis is away: {store.state.value.value}"
    elif store.forbidden.value is not None:
        reason = str(store.forbidden.value)
    elif not health.is_serving():
        reason = "the server is stopping"
    else:
        tasks_too = (
            "" if tasks.readable.value else "; tasks are not, since their journal is damaged"
        )
        return Page(f"ready{tasks_too}\n".encode())
    return Page(f"{reason}\n".encode(), status="503 Service Unavailable")


async def listen(settings: Settings, tls: ReloadingContext | None) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for address in settings.listen_addresses:
            is_tcp = not address.startswith("unix:")
            try:
                listeners += await open_listeners(address, tls=tls if is_tcp else None)
            except OSError as error:
                raise CannotListenError(address, error) from error
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    return listeners


def _contract() -> FileDescriptorProto:
    file = FileDescriptorProto()
    DESCRIPTOR.CopyToProto(file)
    return file


# ---------------------------------------------------------------------- limits


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


def store_settings(settings: Settings, *, take_over: bool) -> StoreSettings:
    return StoreSettings(
        server_address=",".join(settings.listen_addresses),
        take_over=take_over,
        durability=settings.durability,
        require_safe=settings.require_safe_redis,
        refuse_loss=settings.refuse_lost_commits,
        argument_bytes=settings.max_data_bytes + settings.max_map_bytes + _RECORD_BYTES,
        argument_setting=f"DBOS_MAX_DATA_BYTES={settings.max_data_bytes}",
        queue_bytes=settings.commit_queue_bytes,
        replay_bytes=settings.replay_bytes,
        close_timeout_s=min(StoreSettings().close_timeout_s, settings.drain_grace_s * _CLOSE_SHARE),
    )
