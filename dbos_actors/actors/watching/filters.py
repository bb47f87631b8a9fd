"""What a watch wants, and who wants an event: found without asking those who do not.

A filter names an agent, a module, a request id and types, each or none of them. The watches of one
filter stand in a group under exactly these names. An event belongs to the groups under its own
names, with any of them left out: sixteen at most, and only the combinations that some watch uses
are looked up. So a watch that wants other events costs nothing, however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from dbos_actors.actors.watching.entries import Entry

W = TypeVar("W")

Names = tuple[str, str, str, str]
"""Agent, module, request id and type; empty: any."""


class Filter(NamedTuple):
    """What one watch wants. Empty stands for all."""

    agent_id: str = ""
    module_name: str = ""
    request_id: str = ""
    types: frozenset[str] = frozenset()

    def wants(self, entry: Entry) -> bool:
        """Whether the event passes."""
        return (
            (not self.agent_id or self.agent_id == entry.agent_id)
            and (not self.module_name or self.module_name == entry.module_name)
            and (not self.request_id or self.request_id == entry.request_id)
            and (not self.types or entry.kind in self.types)
        )

    def groups(self) -> Iterator[Names]:
        """Under which names the watch stands: one group, or one for each type."""
        for kind in self.types or ("",):
            yield self.agent_id, self.module_name, self.request_id, kind


class Groups(Generic[W]):
    """All watches, by what they want."""

    def __init__(self) -> None:
        self._groups: dict[Names, dict[W, None]] = {}
        # How many groups leave out the same names.
        self._shapes: Counter[tuple[bool, bool, bool, bool]] = Counter()
        self.looked_up = 0
        """Groups that were looked for, since the start."""

    def add(self, wanted: Filter, watch: W) -> None:
        """``watch`` is to be told of what it wants."""
        for names in wanted.groups():
            group = self._groups.get(names)
            if group is None:
                group = self._groups[names] = {}
                self._shapes[_shape(names)] += 1
            group[watch] = None

    def remove(self, wanted: Filter, watch: W) -> None:
        """It is to be told nothing more."""
        for names in wanted.groups():
            group = self._groups[names]
            del group[watch]
            if not group:
                del self._groups[names]
                shape = _shape(names)
                self._shapes[shape] -= 1
                if not self._shapes[shape]:
                    del self._shapes[shape]

    def who_want(self, entry: Entry) -> Iterator[W]:
        """Those that want this event, each once."""
        for agent, module, request, kind in self._shapes:
            self.looked_up += 1
            names = (
                entry.agent_id if agent else "",
                entry.module_name if module else "",
                entry.request_id if request else "",
                entry.kind if kind else "",
            )
            # An event without an agent is not one of the agent with an empty name.
            if _shape(names) == (agent, module, request, kind):
                yield from self._groups.get(names, ())


def _shape(names: Names) -> tuple[bool, bool, bool, bool]:
    agent, module, request, kind = names
    return bool(agent), bool(module), bool(request), bool(kind)
