"""Who has been silent for too long. Pure; times are monotonic and come in as arguments.

All agents have the same timeout, so the order in which they were last heard
from is the order in which they lapse: the index is a queue, and hearing from
an agent moves it to the end.

Silence counts only while this process could hear. After a stop of this process or
of the store, every deadline starts again in full (`restart`), because the agents may
have reported meanwhile.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable


class SilenceIndex:
    """Agents by when they were last heard from."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._heard_s: OrderedDict[str, float] = OrderedDict()
        # All that were in the index at `restart` count as heard from no earlier.
        self._not_before_s = -math.inf

    def __len__(self) -> int:
        return len(self._heard_s)

    def __contains__(self, agent_id: str) -> bool:
        return agent_id in self._heard_s

    def heard(self, agent_id: str, now_s: float) -> None:
        """The agent has said something."""
        self._heard_s[agent_id] = now_s
        self._heard_s.move_to_end(agent_id)

    def add(self, agent_ids: Iterable[str], now_s: float) -> None:
        """Expect to hear from these, unless already expected."""
        for agent_id in agent_ids:
            self._heard_s.setdefault(agent_id, now_s)

    def restart(self, now_s: float) -> None:
        """Give everyone the whole timeout again."""
        self._not_before_s = now_s

    @property
    def next_s(self) -> float:
        """When somebody may lapse next; infinity while nobody is expected."""
        for heard_s in self._heard_s.values():
            return max(heard_s, self._not_before_s) + self.timeout_s
        return math.inf

    def lapsed(self, now_s: float, limit: int) -> list[str]:
        """At most ``limit`` agents whose time is over, longest silent first; they are forgotten."""
        silent: list[str] = []
        since_s = now_s - self.timeout_s
        if self._not_before_s > since_s:
            return silent
        for agent_id, heard_s in self._heard_s.items():
            if heard_s > since_s or len(silent) == limit:
                break
            silent.append(agent_id)
        for agent_id in silent:
            del self._heard_s[agent_id]
        return silent
