"""The actors of a server, with their shares of the settings."""

from __future__ import annotations

import random as random_module
from dataclasses import dataclass
from typing import Any

import trio
from google.protobuf.message import Message

from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.actors.agents.caches import RunCache, RunDirectory
from dbos_actors.actors.agents.change_clock import ChangeClock
from dbos_actors.actors.agents.commands import AgentCommands
from dbos_actors.actors.agents.context import AgentContext, AgentStatistics
from dbos_actors.actors.agents.deletion import Deletions
from dbos_actors.actors.agents.kept import KeptLimits
from dbos_actors.actors.agents.known_agents import KnownAgents
from dbos_actors.actors.agents.liveness import Liveness
from dbos_actors.actors.agents.retention import Retention, RetentionPolicy
from dbos_actors.actors.event_log import EventLog
from dbos_actors.actors.listings import ListingBudget
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.actors.watching.watchers import Watchers
from dbos_actors.clock import Clock
from dbos_actors.runtime import ActorCell, Supervisor, SupervisorLimits, until_available
from dbos_actors.settings import Settings
from dbos_actors.store import (
    Store,
)

_DIRECTORY_ENTRIES = 200_000
"""Recently changed runs found by request id without asking Redis; about 40 MB when full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actors:
    """The actors and what works on them in the background."""

    agents: Supervisor
    tasks: Scheduler
    directory: RunDirectory
    changes: ChangeClock
    known: KnownAgents
    deletions: Deletions
    liveness: Liveness | None
    retention: Retention | None
    listings: ListingBudget
    watchers: Watchers
    results: AgentStatistics
    """What has become of results."""


def make_actors(
    settings: Settings, store: Store, clock: Clock, random: random_module.Random
) -> Actors:
    directory = RunDirectory(_DIRECTORY_ENTRIES)
    tasks = _tasks(settings, store, clock, random)
    deletions = Deletions(store)
    changes = ChangeClock(store, clock)
    known = KnownAgents(store, count_max=settings.agents_max)
    results = AgentStatistics()
    agents = _agents(
        settings,
        store,
        clock,
        directory,
        changes=changes,
        known=known,
        results=results,
        tasks=tasks,
        deletions=deletions,
    )
    for forget in (
        directory.clear,
        changes.lost,
        known.recount,
        agents.reload_all,
        tasks.reload,
    ):
        store.on_reload(forget)
    return Actors(
        agents=agents,
        tasks=tasks,
        directory=directory,
        changes=changes,
        known=known,
        deletions=deletions,
        liveness=_liveness(settings, store, agents, clock),
        retention=_retention(settings, store, agents, clock),
        listings=ListingBudget(settings.listing_bytes, message_bytes=settings.max_message_bytes),
        results=results,
        watchers=Watchers(store),
    )


async def start_actors(actors: Actors, nursery: trio.Nursery) -> None:
    """Start them in the order in which they need each other; none serves before the one before."""
    await nursery.start(actors.tasks.run)
    await until_available(actors.changes.load)
    await nursery.start(actors.agents.run)
    nursery.start_soon(actors.known.run)
    await nursery.start(actors.deletions.run, actors.agents)
    if actors.liveness is not None:
        nursery.start_soon(actors.liveness.run)
    if actors.retention is not None:
        nursery.start_soon(actors.retention.run)


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
            agent_tasks_max=settings.agent_tasks_max,
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
    known: KnownAgents,
    results: AgentStatistics,
    tasks: Scheduler,
    deletions: Deletions,
) -> Supervisor:
    context = AgentContext(
        commands=AgentCommands(store.keys),
        store=store,
        clock=clock,
        server_id=settings.server_id,
        changes=changes,
        runs=RunCache(settings.run_cache_bytes),
        directory=directory,
        known=known,
        log=EventLog(store, events_max=settings.max_events),
        limits=KeptLimits(
            results=settings.agent_results_max,
            states=settings.agent_runs_max,
            unfinished=settings.agent_unfinished_max,
            modules=settings.agent_modules_max,
        ),
        event_results=settings.event_results,
        forget_tasks=tasks.forget_agent,
        deletion_interrupted=deletions.interrupted,
        statistics=results,
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
