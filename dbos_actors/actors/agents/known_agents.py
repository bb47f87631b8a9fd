"""The ids of all agents that have anything stored, in order, and which are alive; in memory.

Redis has them as a set without an order (``agents:known``), and an index of the registered ones
alone. A listing of all of them has to go on behind an id, so the server keeps the ids in order,
in some 100 bytes an agent.

With each id is kept whether the agent is registered and alive, so that they can be counted without
looking at any. A record that changes says so when it is committed. After a start the records are
read in the background; what was read is of no account for an agent that has changed meanwhile.

What is here is a superset: an id is added when its agent's first write is submitted, and taken out
when the agent is deleted. A reader asks Redis which of the ids have something stored.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio
from google.protobuf.message import DecodeError

from dbos_actors.api.messages import Agent
from dbos_actors.domain.tasks.id_table import IdTable
from dbos_actors.errors import QuotaError
from dbos_actors.runtime import until_available
from dbos_actors.store import Store, pack

_STEP: Final = 1_000
"""Ids that one read brings; it takes Redis less than a millisecond."""


_UNSEEN: Final = 0
_UNREGISTERED: Final = 1
_SILENT: Final = 2
_ALIVE: Final = 3


class KnownAgents:
    """Ids of agents, in order."""

    def __init__(self, store: Store, *, count_max: int = 0) -> None:
        """``count_max``: beyond it, `require_room` refuses new agents; 0 is no limit."""
        self._store = store
        self._count_max = count_max
        self.is_full = False
        """Whether there are so many agents that a new one is refused."""
        self._ids: IdTable[int] = IdTable()
        self._counts = [0, 0, 0, 0]
        self._is_loaded = trio.Event()
        self._is_counted = False
        self._recounted = trio.Event()

    def __contains__(self, agent_id: str) -> bool:
        return agent_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def is_loaded(self) -> bool:
        """Whether every agent of the store is here."""
        return self._is_loaded.is_set()

    @property
    def is_counted(self) -> bool:
        """Whether every record has been looked at since the start."""
        return self._is_counted

    @property
    def alive(self) -> int:
        """How many registered agents are alive."""
        return self._counts[_ALIVE]

    @property
    def silent(self) -> int:
        """How many registered agents are not."""
        return self._counts[_SILENT]

    def add(self, agent_id: str) -> None:
        """The agent is about to have something stored."""
        if agent_id not in self._ids:
            self._put(agent_id, _UNREGISTERED)

    def registered(self, agent_id: str, *, alive: bool) -> None:
        """The agent has a record, which is committed."""
        self._put(agent_id, _ALIVE if alive else _SILENT)

    def discard(self, agent_id: str) -> None:
        """Nothing of the agent is stored any more."""
        was = self._ids.pop(agent_id)
        if was is not None:
            self._counts[was] -= 1
        self.is_full = 0 < self._count_max <= len(self._ids)

    def recount(self) -> None:
        """The store has gone back in time: what is alive there is not known."""
        self._is_counted = False
        for agent_id in list(self._ids):
            self._put(agent_id, _UNSEEN)
        self._recounted.set()

    async def run(self) -> None:
        """Read what the store has, in steps; again after `recount`. Ends when cancelled."""
        while True:
            self._recounted = trio.Event()
            await until_available(self._read)
            self._is_loaded.set()
            await until_available(self._count)
            self._is_counted = not self._recounted.is_set()
            await self._recounted.wait()

    def _put(self, agent_id: str, now: int) -> None:
        was = self._ids.put(agent_id, now)
        if was is not None:
            self._counts[was] -= 1
        self._counts[now] += 1
        self.is_full = 0 < self._count_max <= len(self._ids)

    def require_room(self, agent_id: str) -> None:
        """Raise `QuotaError` if an agent would be one too many.

        While the ids are read, after a start, one that is not here yet may be refused as well; the
        store then has as many as it may.
        """
        if self.is_full and agent_id not in self._ids:
            raise QuotaError("the server", quota=f"{self._count_max} agents")

    async def following(self, agent_id: str, limit: int) -> list[str]:
        """Up to ``limit`` ids behind one, in order; none only at the end.

        Waits until all that were known at the start are here.
        """
        await self._is_loaded.wait()
        return [name for name, _ in self._ids.following(agent_id, limit)]

    async def _read(self) -> None:
        cursor = b"0"
        while True:
            ((cursor, members),) = await self._store.read(
                pack("SSCAN", self._store.keys.agents_known, cursor, "COUNT", _STEP)
            )
            for member in members:
                agent_id = member.decode()
                if agent_id not in self._ids:
                    self._put(agent_id, _UNSEEN)
            if cursor == b"0":
                return

    async def _count(self) -> None:
        cursor = b"0"
        while True:
            ((cursor, flat),) = await self._store.read(
                pack("HSCAN", self._store.keys.agents, cursor, "COUNT", _STEP)
            )
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                agent_id = name.decode()
                if self._ids.get(agent_id) == _UNSEEN:
                    with suppress(DecodeError):  # a damaged record is neither alive nor silent
                        self.registered(agent_id, alive=Agent.FromString(value).alive)
            if cursor == b"0":
                return
