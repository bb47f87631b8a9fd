"""What the agents hold in memory together, with a bound on the whole.

Redis has all of it; leaving memory costs a read later and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

# Runs looked at for one to evict at each addition: those of actors with uncommitted turns
# have to stay, and a cache that is over its budget by them gets smaller as they settle.
_EVICTION_PROBES = 8


class RunHolder(Protocol):
    """An actor with finished runs in memory."""

    def evict(self, part: str, /) -> bool:
        """Drop a finished run from memory; False while it is not in Redis yet."""
        ...


class RunCache:
    """What finished runs may hold of memory, over all agents, least recently used first out."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[tuple[RunHolder, str], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, actor: RunHolder, part: str, size_bytes: int) -> None:
        """Count a run as just used; makes the oldest ones leave while over the budget."""
        entries = self._entries
        key = (actor, part)
        self.size_bytes += size_bytes - entries.get(key, 0)
        entries[key] = size_bytes
        entries.move_to_end(key)
        # Runs whose actor has uncommitted turns stay: Redis does not have them yet.
        for _ in range(
            min(len(entries), _EVICTION_PROBES) if self.size_bytes > self.budget_bytes else 0
        ):
            oldest, size = entries.popitem(last=False)
            if oldest[0].evict(oldest[1]):
                self.size_bytes -= size
                if self.size_bytes <= self.budget_bytes:
                    break
            else:
                entries[oldest] = size

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
