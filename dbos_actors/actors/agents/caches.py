"""What the agents hold in memory together, with a bound on the whole.

Redis has all of it; leaving memory costs a read later and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

RUN_OVERHEAD_BYTES = 400
"""What a run in memory takes beside its record and its name: the headers of both, their entry in
the actor's dict, and the cache's own entry with its key. 280 for an agent with many runs, 460 for
one with two."""


class RunHolder(Protocol):
    """An actor with finished runs in memory."""

    def evict(self, part: str, /) -> None:
        """Drop a finished run from memory."""
        ...


class RunCache:
    """What finished runs may hold of memory, over all agents, least recently used first out.

    Only runs that are in Redis as they are in memory are counted here, so each can leave at any
    time. A run whose change is not committed yet is part of what may wait for its commit.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[tuple[RunHolder, str], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, actor: RunHolder, part: str, record_bytes: int) -> None:
        """Count a run as just used; makes the oldest ones leave while over the budget."""
        entries = self._entries
        key = (actor, part)
        size_bytes = record_bytes + len(part) + RUN_OVERHEAD_BYTES
        self.size_bytes += size_bytes - entries.get(key, 0)
        entries[key] = size_bytes
        entries.move_to_end(key)
        while self.size_bytes > self.budget_bytes:
            (holder, oldest), size = entries.popitem(last=False)
            self.size_bytes -= size
            holder.evict(oldest)

    def used(self, actor: RunHolder, part: str) -> None:
        """Count a run as just used, if it is counted at all."""
        key = (actor, part)
        if key in self._entries:
            self._entries.move_to_end(key)

    def forget(self, actor: RunHolder, part: str) -> None:
        """The run is no longer a finished one in memory."""
        self.size_bytes -= self._entries.pop((actor, part), 0)


class RunDirectory:
    """Which agent's run last changed under a request id, for the recent ones.

    Written as commits land, in their order; Redis knows the others.
    """

    def __init__(self, entries_max: int) -> None:
        self.entries_max = entries_max
        self._agents: OrderedDict[str, str] = OrderedDict()

    def changed(self, request_id: str, agent_id: str) -> None:
        agents = self._agents
        agents[request_id] = agent_id
        agents.move_to_end(request_id)
        if len(agents) > self.entries_max:
            agents.popitem(last=False)

    def agent_of(self, request_id: str) -> str | None:
        return self._agents.get(request_id)

    def forget_run(self, request_id: str, agent_id: str) -> None:
        """Drop a deleted run; if another agent's changed later under the id, that one stays."""
        if self._agents.get(request_id) == agent_id:
            del self._agents[request_id]

    def forget_agent(self, agent_id: str) -> None:
        """Drop what a deleted agent has here. Visits every entry."""
        for request_id in [r for r, a in self._agents.items() if a == agent_id]:
            del self._agents[request_id]

    def clear(self) -> None:
        self._agents.clear()
