"""Statistics: the state of the whole server in one answer, from counters alone.

Nothing is looked for when the call comes: every number is one that a part of the server keeps
anyway, so that the call costs the same with one agent and with a hundred thousand.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from dbos_actors.actors.agents.context import AgentStatistics
from dbos_actors.actors.agents.known_agents import KnownAgents
from dbos_actors.actors.agents.retention import Retention
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.api.messages import StatisticsResponse
from dbos_actors.clock import Clock
from dbos_actors.runtime import Supervisor
from dbos_actors.service.process_memory import limit_bytes, resident_bytes
from dbos_actors.service.rates import Rates, Totals
from dbos_actors.store import Store

_PACKAGE: Final = "dbos-actors"


class ServerReport:
    """Makes the answers."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        agents: Supervisor,
        known: KnownAgents,
        results: AgentStatistics,
        tasks: Scheduler,
        retention: Retention | None,
        server_id: str,
        durability: str,
        replay_bytes: int,
    ) -> None:
        """``replay_bytes`` is what may be kept to be sent again."""
        self._store = store
        self._clock = clock
        self._agents = agents
        self._known = known
        self._results = results
        self._tasks = tasks
        self._retention = retention
        self._server_id = server_id
        self._durability = durability
        self._replay_bytes = replay_bytes
        self._started_s = clock.monotonic_s()
        self._version = _version()
        self._memory_limit_bytes = limit_bytes()
        self._rates = Rates(self._totals)

    async def run(self) -> None:
        """Keep the rates, until cancelled."""
        await self._rates.run()

    def _totals(self) -> Totals:
        store = self._store.statistics()
        return Totals(
            self._results.results_stored, store.submissions_committed, store.committed_bytes
        )

    def response(self) -> StatisticsResponse:
        """What is so now."""
        response = StatisticsResponse()
        self._add_server(response.server)
        self._add_store(response.store)
        self._add_agents(response.agents)
        self._add_results(response.results)
        self._add_tasks(response.tasks)
        return response

    def _add_server(self, server: StatisticsResponse.Server) -> None:
        server.version = self._version
        server.server_id = self._server_id
        server.uptime_seconds = int(self._clock.monotonic_s() - self._started_s)
        server.time = int(self._clock.wall_s())
        server.memory_bytes = resident_bytes()
        server.memory_limit_bytes = self._memory_limit_bytes
        server.calls_per_second = self._rates.per_second().calls

    def _add_store(self, store: StatisticsResponse.Store) -> None:
        found = self._store.statistics()
        store.state = found.state.value
        store.epoch = found.epoch
        store.sequence = found.sequence
        store.durability = self._durability
        store.warnings.extend(warning.text for warning in self._store.warnings)
        forbidden = self._store.forbidden.value
        store.writes_refused = "" if forbidden is None else str(forbidden)
        store.commit_seconds_p50, store.commit_seconds_p99 = self._store.commit_percentiles(
            0.5, 0.99
        )
        store.queued_bytes = found.queued_bytes
        store.replay_bytes = found.replayable_bytes
        store.replay_limit_bytes = self._replay_bytes
        store.written_bytes_per_second = self._rates.per_second().written_bytes
        store.memory_bytes, store.memory_limit_bytes = self._store.memory_bytes
        store.commits_lost = found.batches_lost

    def _add_agents(self, agents: StatisticsResponse.Agents) -> None:
        known = self._known
        agents.known = len(known)
        agents.alive, agents.silent = known.alive, known.silent
        agents.counting = not known.is_counted
        agents.resident = self._agents.statistics().resident

    def _add_results(self, results: StatisticsResponse.Results) -> None:
        counts = self._results
        results.stored = counts.results_stored
        results.duplicates = counts.results_duplicate
        results.conflicts = counts.results_conflicting
        results.stored_per_second = self._rates.per_second().results
        if self._retention is not None:
            results.deleted = self._retention.results_deleted
            results.horizon = self._retention.horizon_s()

    def _add_tasks(self, tasks: StatisticsResponse.Tasks) -> None:
        found = self._tasks.statistics()
        tasks.scheduled = found.scheduled
        tasks.pending = found.pending
        tasks.inflight = found.inflight
        tasks.completed = found.completed
        tasks.dead = found.dead
        tasks.cancelled = found.cancelled
        tasks.deleted = found.deleted
        tasks.due = found.due
        tasks.late = found.late
        tasks.oldest_due_seconds = found.oldest_due_s
        tasks.subscribers = found.subscribers
        tasks.unreadable = self._tasks.refusal


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return ""
