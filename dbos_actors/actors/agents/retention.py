"""Retention: old results and finished runs are deleted, by age and by bytes.

One sweep after the other goes over all agents in small groups. A sweep reads the
agents' own indexes, so storing a result or a run costs nothing for it. It deletes
old results by commits of its own. Old runs are deleted by their agent's actor,
which may have them in memory. Each step is bounded, and waits for its commit
before the next one begins, so that clients' calls go first.

A limit in bytes is about memory in Redis, overhead and indexes included, as Redis
itself estimates it (``MEMORY USAGE``). If all agents together exceed the limit, the
oldest records are deleted, whichever agents they belong to. A search over the
indexes finds the moment before which just enough is stored; it counts each record
of an agent at the average size of that agent's records.

Unfinished runs and the modules' own states are not deleted, so they are not
counted either. What the finished ones need is estimated from some of each agent's.
The indexes do not say which runs are finished. So the deletions before a moment may
turn out too small; then the search goes on to a later moment.

Ages follow `AgeClock`, so a jump of the wall clock forward deletes nothing too
early.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from dbos_actors.actors.agents.context import RUN
from dbos_actors.actors.agents.run_retention import ForgetRuns
from dbos_actors.clock import AgeClock, Clock
from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.runtime import Supervisor, Waiter
from dbos_actors.store import Store, StoreState, escaped, pack

logger = get_logger(__name__)

_SWEEP_S_MAX: Final = 60.0
_SWEEP_S_MIN: Final = 1.0
"""Between sweeps: a tenth of the shortest age, within these."""

_AGENTS_AT_ONCE: Final = 100
"""Looked at in one round trip."""

_FAILURES_IN_A_ROW: Final = 100
"""Agents for which a sweep fails before it ends: then it is not the agents."""

_RESULTS_AT_ONCE: Final = 500
"""Deleted in one commit: half a millisecond of Redis's time."""

_COUNTS_AT_ONCE: Final = 500
"""Index counts in one round trip, of the search for the moment."""

_RUNS_LOOKED_AT: Final = 50
"""Oldest states looked at to see whether an agent has an old run at all."""


_SAMPLES: Final = 20
"""Of an agent's records whose sizes stand for all of them."""

_RUN_OVERHEAD_BYTES: Final = 250
"""What Redis needs for a finished run beside its record and four times its name: the entries of
the hash and of two indexes, and the key of its request id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What may stay; 0 is no limit."""

    results_age_s: float = 0
    results_bytes: int = 0
    runs_age_s: float = 0
    runs_bytes: int = 0

    def __bool__(self) -> bool:
        return any((self.results_age_s, self.results_bytes, self.runs_age_s, self.runs_bytes))


@dataclass(frozen=True, slots=True)
class Holding:
    """What one agent has stored of one kind."""

    name: str
    """The agent's id, escaped."""
    size_bytes: int
    records: int
    oldest: int
    newest: int
    """Of the index's scores."""

    @property
    def record_bytes(self) -> float:
        """The average size of a record."""
        return self.size_bytes / self.records


class Excess:
    """Stored beyond a limit: so many bytes have to go."""

    def __init__(self, size_bytes: float, holdings: Iterable[Holding]) -> None:
        self.left_bytes = size_bytes
        self._record_bytes = {holding.name: holding.record_bytes for holding in holdings}

    def allowance(self, name: str) -> int:
        """How many of an agent's records may be deleted."""
        record_bytes = self._record_bytes.get(name)
        if record_bytes is None or self.left_bytes <= 0:
            return 0
        return math.ceil(self.left_bytes / record_bytes)

    def deleted(self, name: str, records: int) -> None:
        """So many of the agent's have gone."""
        self.left_bytes -= records * self._record_bytes[name]


class Retention:
    """Sweeps. Make one only if there is a policy."""

    def __init__(
        self, *, store: Store, agents: Supervisor, clock: Clock, policy: RetentionPolicy
    ) -> None:
        self._store = store
        self._agents = agents
        self._clock = clock
        self._policy = policy
        self._age_clock = AgeClock(clock)
        self.results_deleted = 0
        self._horizon_s = 0
        self.runs_deleted = 0

    def horizon_s(self) -> int:
        """Results that were received before this second have been deleted; 0: none were."""
        return self._horizon_s

    async def run(self) -> NoReturn:
        """Sweep until cancelled."""
        ages = [age for age in (self._policy.results_age_s, self._policy.runs_age_s) if age]
        pause_s = min(max(min(ages, default=_SWEEP_S_MAX) / 10, _SWEEP_S_MIN), _SWEEP_S_MAX)
        while True:
            try:
                await self.sweep()
            except (UnavailableError, OverloadedError) as error:
                logger.info("sweep_interrupted", error=str(error))
            except Exception:  # the next one may go better; the service does without
                logger.exception("sweep_failed")
            await trio.sleep(pause_s)

    async def sweep(self) -> None:
        """Delete what is over the limits now. Raises `UnavailableError`, `OverloadedError`."""
        policy = self._policy
        now_s = self._age_clock.wall_s()
        keys = self._store.keys
        before = (self.results_deleted, self.runs_deleted)
        if policy.results_age_s:
            await self._delete_results(int(now_s - policy.results_age_s), None)
        if policy.results_bytes:
            holdings = await self._holdings(keys.results, keys.results_at)
            await self._delete_excess(
                holdings, keys.results_at, policy.results_bytes, self._delete_results
            )
        if policy.runs_age_s:
            await self._delete_runs(int((now_s - policy.runs_age_s) * 1000), None)
        if policy.runs_bytes:
            holdings = await self._finished_runs()
            await self._delete_excess(
                holdings, keys.states_at, policy.runs_bytes, self._delete_runs
            )
        results, runs = self.results_deleted - before[0], self.runs_deleted - before[1]
        if results or runs:
            logger.info("swept", results=results, runs=runs)

    async def _agent_groups(self) -> AsyncIterator[list[str]]:
        """All agents, in groups; one may come twice."""
        cursor = b"0"
        while True:
            ((cursor, members),) = await self._store.read(
                pack("SSCAN", self._store.keys.agents_known, cursor, "COUNT", _AGENTS_AT_ONCE)
            )
            if members:
                yield [member.decode() for member in members]
            if cursor == b"0":
                return

    async def _for_agents(self, work: Callable[[list[str]], Awaitable[None]]) -> None:
        """Have ``work`` done for all agents, in groups; where a group fails, one by one.

        So what is wrong with one agent's keys, or with its actor, keeps retention from no other.
        Raises what ``work`` does while the store is away, or if it fails for too many in a row.
        """
        failures = 0
        async for group in self._agent_groups():
            try:
                await work(group)
            except Exception:  # noqa: BLE001 - raised again below, unless it is one agent's
                for agent_id in group:
                    try:
                        await work([agent_id])
                    except Exception as error:
                        failures += 1
                        away = self._store.state.value is not StoreState.CONNECTED
                        if away or failures > _FAILURES_IN_A_ROW:
                            raise
                        log_limited(
                            logger.warning, "retention_failed", agent=agent_id, error=str(error)
                        )
                    else:
                        failures = 0
            else:
                failures = 0

    # ----------------------------------------------------------------- bytes

    async def _delete_excess(
        self,
        holdings: list[Holding],
        index: str,
        limit_bytes: int,
        delete: Callable[[int, Excess | None], Awaitable[None]],
    ) -> None:
        """Have the oldest of a kind deleted until the rest fits."""
        excess = Excess(sum(holding.size_bytes for holding in holdings) - limit_bytes, holdings)
        if excess.left_bytes <= 0:
            return
        newest = max(holding.newest for holding in holdings)
        before, size_bytes = 0, excess.left_bytes
        while excess.left_bytes > 0 and before <= newest:
            before = await self._moment(holdings, index, size_bytes)
            await delete(before, excess)
            size_bytes *= 2

    async def _moment(self, holdings: list[Holding], index: str, size_bytes: float) -> int:
        """The moment before which so much is stored, or the one after everything."""
        low = min(holding.oldest for holding in holdings)
        high = max(holding.newest for holding in holdings) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if await self._bytes_before(middle, holdings, index) < size_bytes:
                low = middle
            else:
                high = middle
        return high

    async def _holdings(self, records: str, index: str) -> list[Holding]:
        holdings: dict[str, Holding] = {}

        async def look(group: list[str]) -> None:
            names = [escaped(agent_id) for agent_id in group]
            sizes, index_sizes, counts, oldest, newest = [
                await self._store.read(*commands)
                for commands in (
                    [
                        pack("MEMORY", "USAGE", records + name, "SAMPLES", _SAMPLES)
                        for name in names
                    ],
                    [pack("MEMORY", "USAGE", index + name, "SAMPLES", _SAMPLES) for name in names],
                    [pack("ZCARD", index + name) for name in names],
                    [pack("ZRANGE", index + name, 0, 0, "WITHSCORES") for name in names],
                    [pack("ZRANGE", index + name, -1, -1, "WITHSCORES") for name in names],
                )
            ]
            for name, size, index_size, count, first, last in zip(
                names, sizes, index_sizes, counts, oldest, newest, strict=True
            ):
                if size and count and first and last:
                    ends = int(float(first[1])), int(float(last[1]))
                    holdings[name] = Holding(name, size + (index_size or 0), count, *ends)

        await self._for_agents(look)
        return list(holdings.values())

    async def _finished_runs(self) -> list[Holding]:
        """What agents have stored of finished runs, by a sample of each agent's states."""
        keys = self._store.keys
        found: dict[str, Holding] = {}

        async def look(group: list[str]) -> None:
            names = [escaped(agent_id) for agent_id in group]
            counts, oldest, newest, samples = [
                await self._store.read(*commands)
                for commands in (
                    [pack("ZCARD", keys.states_at + name) for name in names],
                    [pack("ZRANGE", keys.states_at + name, 0, 0, "WITHSCORES") for name in names],
                    [pack("ZRANGE", keys.states_at + name, -1, -1, "WITHSCORES") for name in names],
                    [pack("ZRANDMEMBER", keys.states_at + name, _SAMPLES) for name in names],
                )
            ]
            sizes = await self._finished_sizes(names, samples)
            for name, count, first, last, sample in zip(
                names, counts, oldest, newest, samples, strict=True
            ):
                records = round(count * len(sizes[name]) / len(sample)) if sample else 0
                if records and first and last:
                    size_bytes = round(records * sum(sizes[name]) / len(sizes[name]))
                    ends = int(float(first[1])), int(float(last[1]))
                    found[name] = Holding(name, size_bytes, records, *ends)

        await self._for_agents(look)
        return list(found.values())

    async def _finished_sizes(
        self, names: Sequence[str], samples: Sequence[Sequence[bytes]]
    ) -> dict[str, list[int]]:
        """What Redis needs for each of the finished runs among some states of each agent."""
        keys = self._store.keys
        parts = [
            (name, part)
            for name, sample in zip(names, samples, strict=True)
            for part in sample
            if part[:1] == RUN.encode()
        ]
        commands = (
            command
            for name, part in parts
            for command in (
                pack("SISMEMBER", keys.unfinished + name, part[1:]),
                pack("HSTRLEN", keys.states + name, part),
            )
        )
        replies = await self._store.read(*commands) if parts else []
        found: dict[str, list[int]] = {name: [] for name in names}
        for (name, part), unfinished, length in zip(
            parts, replies[::2], replies[1::2], strict=True
        ):
            if not unfinished:
                found[name].append(length + 4 * len(part) + _RUN_OVERHEAD_BYTES)
        return found

    async def _bytes_before(self, moment: int, holdings: Sequence[Holding], index: str) -> float:
        total = 0.0
        undecided: list[Holding] = []
        for holding in holdings:
            if holding.newest < moment:
                total += holding.size_bytes
            elif holding.oldest < moment:
                undecided.append(holding)
        for start in range(0, len(undecided), _COUNTS_AT_ONCE):
            group = undecided[start : start + _COUNTS_AT_ONCE]
            counts = await self._store.read(
                *(pack("ZCOUNT", index + h.name, "-inf", f"({moment}") for h in group)
            )
            total += sum(h.record_bytes * n for h, n in zip(group, counts, strict=True))
        return total

    # --------------------------------------------------------------- results

    async def _delete_results(self, before_s: int, excess: Excess | None) -> None:
        async def delete(group: list[str]) -> None:
            names = [escaped(agent_id) for agent_id in group]
            while names:
                names = await self._delete_results_of(names, before_s, excess)

        await self._for_agents(delete)

    async def _delete_results_of(
        self, names: list[str], before_s: int, excess: Excess | None
    ) -> list[str]:
        """Delete one step of each agent's old results; returns the agents that have more."""
        keys = self._store.keys
        old = await self._store.read(
            *(
                pack(
                    *("ZRANGE", keys.results_at + name, "-inf", f"({before_s}", "BYSCORE"),
                    *("LIMIT", 0, _RESULTS_AT_ONCE),
                )
                for name in names
            )
        )
        unfinished: list[str] = []
        for name, found in zip(names, old, strict=True):
            members = found if excess is None else found[: excess.allowance(name)]
            if members:
                await self._store.commit(
                    pack("HDEL", keys.results + name, *members),
                    pack("ZREM", keys.results_at + name, *members),
                    name="retention",
                    frees_memory=True,
                )
                self.results_deleted += len(members)
                self._horizon_s = max(self._horizon_s, before_s)
                if excess is not None:
                    excess.deleted(name, len(members))
            if len(members) == _RESULTS_AT_ONCE:
                unfinished.append(name)
        return unfinished

    # ------------------------------------------------------------------ runs

    async def _delete_runs(self, before_ms: int, excess: Excess | None) -> None:
        states_at = self._store.keys.states_at

        async def delete(group: list[str]) -> None:
            old = await self._store.read(
                *(
                    pack(
                        *("ZRANGE", states_at + escaped(agent_id), "-inf", f"({before_ms}"),
                        *("BYSCORE", "LIMIT", 0, _RUNS_LOOKED_AT),
                    )
                    for agent_id in group
                )
            )
            for agent_id, parts in zip(group, old, strict=True):
                if len(parts) == _RUNS_LOOKED_AT or any(part[:1] == RUN.encode() for part in parts):
                    await self._delete_runs_of(agent_id, before_ms, excess)

        await self._for_agents(delete)

    async def _delete_runs_of(self, agent_id: str, before_ms: int, excess: Excess | None) -> None:
        name = escaped(agent_id)
        limit = sys.maxsize if excess is None else excess.allowance(name)
        if not limit:
            return
        waiter = Waiter(ForgetRuns(before_ms, limit))
        self._agents.deliver(agent_id, waiter)
        deleted = await waiter.wait()
        self.runs_deleted += deleted
        if excess is not None:
            excess.deleted(name, deleted)


def _usage(key: str) -> bytes:
    return pack("MEMORY", "USAGE", key, "SAMPLES", _SAMPLES)
