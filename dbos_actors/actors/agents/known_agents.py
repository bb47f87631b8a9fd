"""The ids of all agents that have anything stored, in order, in memory.

Redis has them as a set without an order (``agents:known``), and an index of the registered ones
alone. A listing of all of them has to go on behind an id, so the server keeps the ids in order,
in some 100 bytes an agent.

What is here is a superset: an id is added when its agent's first write is submitted, and taken out
when the agent is deleted. A reader asks Redis which of the ids have something stored.
"""

from __future__ import annotations

from typing import Final

import trio

from dbos_actors.domain.tasks.id_table import IdTable
from dbos_actors.runtime import until_available
from dbos_actors.store import Store, pack

_STEP: Final = 1_000
"""Ids that one read brings; it takes Redis less than a millisecond."""


class KnownAgents:
    """Ids of agents, in order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids: IdTable[None] = IdTable()
        self._is_loaded = trio.Event()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def is_loaded(self) -> bool:
        """Whether every agent of the store is here."""
        return self._is_loaded.is_set()

    def add(self, agent_id: str) -> None:
        """The agent is about to have something stored."""
        self._ids.put(agent_id, None)

    def discard(self, agent_id: str) -> None:
        """Nothing of the agent is stored any more."""
        self._ids.pop(agent_id)

    async def load(self) -> None:
        """Read the ids that the store has, in steps."""
        await until_available(self._read)
        self._is_loaded.set()

    async def following(self, agent_id: str, limit: int) -> list[str]:
        """Up to ``limit`` ids behind one, in order; none only at the end. Waits for `load`."""
        await self._is_loaded.wait()
        return [name for name, _ in self._ids.following(agent_id, limit)]

    async def _read(self) -> None:
        cursor = b"0"
        while True:
            ((cursor, members),) = await self._store.read(
                pack("SSCAN", self._store.keys.agents_known, cursor, "COUNT", _STEP)
            )
            for member in members:
                self.add(member.decode())
            if cursor == b"0":
                return
