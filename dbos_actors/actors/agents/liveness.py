"""Liveness: agents that fall silent are marked, and their unfinished runs fail.

One task watches an index of when each agent was last heard from. When an agent has been silent for
too long, the task sends a message to the agent's actor, which changes the record in a turn. Turns
are in order with the agent's own messages, so a report that was heard before counts before.
"""

from __future__ import annotations

from typing import Any

import trio

from dbos_actors.actors.agents.context import readable
from dbos_actors.actors.agents.silence import Lapse
from dbos_actors.api.messages import Agent
from dbos_actors.clock import Clock
from dbos_actors.domain.heartbeat_timeout import SilenceIndex
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.runtime import Supervisor, until_available
from dbos_actors.store import Store, StoreState, escaped, pack

logger = get_logger(__name__)

_LAPSES_AT_ONCE = 500
"""Agents marked before others get a turn: about as many as one commit should carry."""

_ABSENCE_S = 2.0
"""Waking up so much too late means that this process stood still, and heard nobody."""

_RETRY_S = 1.0
"""Before an agent that could not be marked, for a full queue or an absent store, is tried again."""

_SCAN_STEP = 1_000


class Liveness:
    """Watches for silence. Make one only if there is a timeout."""

    def __init__(self, *, store: Store, agents: Supervisor, clock: Clock, timeout_s: float) -> None:
        self._store = store
        self._agents = agents
        self._clock = clock
        self._index = SilenceIndex(timeout_s)
        self._retries: list[str] = []
        self.lapsed_total = 0

    def heard(self, agent_id: str) -> None:
        """A message of the agent has arrived."""
        self._index.heard(agent_id, self._clock.monotonic_s())

    async def run(self) -> None:
        """Mark agents as they lapse, until cancelled."""
        await until_available(self._expect_the_living)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_store)
            await self._watch_silence()

    async def _expect_the_living(self) -> None:
        """Whoever was alive when an earlier server stopped, or has runs that are not finished,
        has the whole timeout from now. An agent may report runs without ever having registered.
        """
        cursor = b"0"
        while True:
            ((cursor, flat),) = await self._store.read(
                pack("HSCAN", self._store.keys.agents, cursor, "COUNT", _SCAN_STEP)
            )
            records = zip(flat[::2], flat[1::2], strict=True)
            alive: list[str] = []
            for agent_id, value in records:
                record = readable(Agent, value)
                if record is None:
                    log_limited(logger.warning, "unreadable_agent", agent=agent_id.decode())
                elif record.alive:
                    alive.append(agent_id.decode())
            self._index.add(alive, self._clock.monotonic_s())
            if cursor == b"0":
                break
        await self._expect_the_busy()
        self._index.restart(self._clock.monotonic_s())

    async def _expect_the_busy(self) -> None:
        keys = self._store.keys
        cursor = b"0"
        while True:
            ((cursor, members),) = await self._store.read(
                pack("SSCAN", keys.agents_known, cursor, "COUNT", _SCAN_STEP)
            )
            names = [member.decode() for member in members]
            if names:
                found = await self._store.read(
                    *(pack("EXISTS", keys.unfinished + escaped(name)) for name in names)
                )
                busy = [name for name, exists in zip(names, found, strict=True) if exists]
                self._index.add(busy, self._clock.monotonic_s())
            if cursor == b"0":
                return

    async def _watch_store(self) -> None:
        """While the store is away nobody can report; then all deadlines start again."""
        async for _ in self._store.state.transitions():
            self._index.restart(self._clock.monotonic_s())

    async def _watch_silence(self) -> None:
        index = self._index
        while True:
            now_s = self._clock.monotonic_s()
            planned_s = min(max(index.next_s, now_s), now_s + _RETRY_S)
            await trio.sleep_until(planned_s)
            now_s = self._clock.monotonic_s()
            if now_s > planned_s + _ABSENCE_S:
                logger.warning("deadlines_restarted", absent_s=round(now_s - planned_s, 1))
                index.restart(now_s)
            if self._store.state.value is not StoreState.CONNECTED:
                index.restart(now_s)
            elif index.next_s <= now_s or self._retries:
                retries, self._retries = self._retries, []
                silent = [agent_id for agent_id in retries if agent_id not in index]
                for agent_id in [*silent, *index.lapsed(now_s, _LAPSES_AT_ONCE)]:
                    self._agents.deliver(agent_id, _LapseCall(self, agent_id))
                await trio.lowlevel.checkpoint()

    def succeeded(self) -> None:
        """An agent has been marked."""
        self.lapsed_total += 1

    def failed(self, agent_id: str, error: Exception) -> None:
        """An agent could not be marked: try again, unless it is heard from first."""
        log_limited(logger.warning, "lapse_failed", agent=agent_id, error=str(error))
        self._retries.append(agent_id)


class _LapseCall:
    """Tells an agent's actor that the agent has lapsed."""

    __slots__ = ("_agent_id", "_liveness", "answered", "deadline", "request")

    def __init__(self, liveness: Liveness, agent_id: str) -> None:
        self._liveness = liveness
        self._agent_id = agent_id
        self.request = Lapse()
        self.deadline: float | None = None
        self.answered = False

    def reply(self, message: Any) -> None:  # noqa: ARG002
        if not self.answered:
            self.answered = True
            self._liveness.succeeded()

    def fail(self, error: Exception) -> None:
        if not self.answered:
            self.answered = True
            self._liveness.failed(self._agent_id, error)
