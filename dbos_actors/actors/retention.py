"""Retention: old results and finished runs are deleted, by age and by bytes.

One sweep after the other goes over all agents in small groups. Everything is
read from the agents' own indexes, so what is stored pays nothing for it. Old
results are deleted by commits of their own; old runs by their agent's actor,
whose memory may hold them. Each step is bounded, and waits for its commit
before the next: retention takes what others leave.

By bytes means memory in Redis, overhead included, as it estimates it itself
(``MEMORY USAGE``). Where all agents together exceed the limit, the oldest go,
whosever they are: a search over the indexes finds the moment before which just
enough is stored, counting an agent's records at their average size.

Ages are by the wall clock, which may jump: the time that counts is the earlier
of what it says and of what it would say had it not jumped since the start. A
jump forward deletes nothing too early.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog
import trio

from dbos_actors.actors.context import RUN
from dbos_actors.actors.run_retention import ForgetRuns
from dbos_actors.clock import AgeClock, Clock
from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.runtime import Supervisor, Waiter
from dbos_actors.store import Store, escaped, pack

logger = structlog.get_logger(__name__)

_SWEEP_S_MAX: Final = 60.0
_SWEEP_S_MIN: Final = 1.0
"""Between sweeps: a tenth of the shortest age, within these."""

_AGENTS_AT_ONCE: Final = 100
"""Looked at in one round trip."""

_RESULTS_AT_ONCE: Final = 500
"""Deleted in one commit: half a millisecond of Redis's time."""

_COUNTS_AT_ONCE: Final = 500
"""Index counts in one round trip, of the search for the moment."""

_RUNS_LOOKED_AT: Final = 50
"""Oldest states looked at to see whether an agent has an old run at all."""


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
    """Stored beyond a limit: what is old enough to go, until so many bytes have gone."""

    def __init__(self, before: int, size_bytes: float, holdings: Iterable[Holding]) -> None:
        self.before = before
        self._left_bytes = size_bytes
        self._record_bytes = {holding.name: holding.record_bytes for holding in holdings}

    def allowance(self, name: str, records: int) -> int:
        """How many of an agent's ``records`` to delete, which then count as gone."""
        record_bytes = self._record_bytes.get(name)
        if record_bytes is None or self._left_bytes <= 0:
            return 0
        allowed = min(records, math.ceil(self._left_bytes / record_bytes))
        self._left_bytes -= allowed * record_bytes
        return allowed


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
        self.runs_deleted = 0

    async def run(self) -> NoReturn:
        """Sweep until cancelled."""
        ages = [age for age in (self._policy.results_age_s, self._policy.runs_age_s) if age]
        pause_s = min(max(min(ages, default=_SWEEP_S_MAX) / 10, _SWEEP_S_MIN), _SWEEP_S_MAX)
        while True:
            try:
                await self.sweep()
            except (UnavailableError, OverloadedError) as error:
                logger.info("sweep_interrupted", error=str(error))
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
            excess = await self._excess(keys.results, keys.results_at, policy.results_bytes)
            if excess is not None:
                await self._delete_results(excess.before, excess)
        if policy.runs_age_s:
            await self._delete_runs(int((now_s - policy.runs_age_s) * 1000))
        if policy.runs_bytes:
            excess = await self._excess(keys.states, keys.states_at, policy.runs_bytes)
            if excess is not None:
                await self._delete_runs(excess.before)
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

    # ----------------------------------------------------------------- bytes

    async def _excess(self, records: str, index: str, limit_bytes: int) -> Excess | None:
        """What of a kind has to go for the rest to fit."""
        holdings = await self._holdings(records, index)
        size_bytes = sum(holding.size_bytes for holding in holdings) - limit_bytes
        if size_bytes <= 0:
            return None
        low = min(holding.oldest for holding in holdings)
        high = max(holding.newest for holding in holdings) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if await self._bytes_before(middle, holdings, index) < size_bytes:
                low = middle
            else:
                high = middle
        return Excess(high, size_bytes, holdings)

    async def _holdings(self, records: str, index: str) -> list[Holding]:
        holdings: dict[str, Holding] = {}
        async for group in self._agent_groups():
            names = [escaped(agent_id) for agent_id in group]
            sizes, counts, oldest, newest = [
                await self._store.read(*commands)
                for commands in (
                    [pack("MEMORY", "USAGE", records + name, "SAMPLES", 20) for name in names],
                    [pack("ZCARD", index + name) for name in names],
                    [pack("ZRANGE", index + name, 0, 0, "WITHSCORES") for name in names],
                    [pack("ZRANGE", index + name, -1, -1, "WITHSCORES") for name in names],
                )
            ]
            for name, size, count, first, last in zip(
                names, sizes, counts, oldest, newest, strict=True
            ):
                if size and count and first and last:
                    ends = int(float(first[1])), int(float(last[1]))
                    holdings[name] = Holding(name, size, count, *ends)
        return list(holdings.values())

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
        async for group in self._agent_groups():
            names = [escaped(agent_id) for agent_id in group]
            while names:
                names = await self._delete_results_of(names, before_s, excess)

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
            members = found if excess is None else found[: excess.allowance(name, len(found))]
            if members:
                await self._commit(
                    pack("HDEL", keys.results + name, *members),
                    pack("ZREM", keys.results_at + name, *members),
                )
                self.results_deleted += len(members)
            if len(members) == _RESULTS_AT_ONCE:
                unfinished.append(name)
        return unfinished

    async def _commit(self, *commands: bytes) -> None:
        waiter = Waiter()
        self._store.submit(_Deletion(commands, waiter))
        await waiter.wait()

    # ------------------------------------------------------------------ runs

    async def _delete_runs(self, before_ms: int) -> None:
        states_at = self._store.keys.states_at
        async for group in self._agent_groups():
            if not group:
                continue
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
                    waiter = Waiter(ForgetRuns(before_ms))
                    self._agents.deliver(agent_id, waiter)
                    self.runs_deleted += await waiter.wait()


class _Deletion:
    """A commit of retention's own; nobody's memory mirrors it. A `store.Submission`."""

    __slots__ = ("_waiter", "commands", "deadline_s", "frees_memory", "owner", "size_bytes")

    key = "retention"
    """What it is called, as an owner."""

    def __init__(self, commands: Sequence[bytes], waiter: Waiter) -> None:
        self.owner = self
        self.commands = commands
        self.size_bytes = sum(map(len, commands))
        self.deadline_s: float | None = None
        self.frees_memory = True
        self._waiter = waiter

    def committed(self, replies: Sequence[object] | None) -> None:
        self._waiter.reply(replies)

    def refused(self, error: UnavailableError) -> None:
        self._waiter.fail(error)

    def give_up(self, error: UnavailableError) -> None:
        self._waiter.fail(error)

    def store_refused(self, error: UnavailableError) -> None:
        """As an owner: there is nothing to reload."""
