"""Who gets the next due task: flows and the rings that keep their turns fair.

A flow is one agent's tasks for one module. The due tasks of a flow queue in the order in which
they fell due. A ring is a list whose members are served in turn. There is one ring of all agents
with due tasks; each of these agents has a ring of its modules; and each module has a ring of the
agents with due tasks for it. A selection goes round the ring that fits its filter and takes one
task at each stop. A flow that has been served goes to the back of all its rings. So while n agents
wait, each of them gets one task of every n, however many tasks it has. One task costs O(1).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

from dbos_actors.domain.tasks.id_table import IdList

_T = TypeVar("_T")

_GAPS = 64
"""Gaps in a queue that are not worth packing it."""


class Flow:
    """One agent's tasks for one module."""

    __slots__ = ("agent_id", "due", "ids", "module_name", "number", "taken")

    def __init__(self, number: int, agent_id: str, module_name: str) -> None:
        self.number = number  # never used again for another flow, so a record may name it
        self.agent_id = agent_id
        self.module_name = module_name
        self.ids = IdList()  # of its tasks of any status
        # None instead of empty. A plain dict: unlike an ordered one, or a deque, it is
        # nothing to the garbage collector, whose pause would grow with the number of due tasks.
        self.due: dict[str, None] | None = None
        self.taken = 0  # out of `due` since it was last packed: gaps an iteration skips


class DueIndex:
    """The due tasks of all flows, by agent and by module."""

    __slots__ = ("_agents", "_modules", "_size")

    def __init__(self) -> None:
        self._agents: OrderedDict[str, OrderedDict[str, Flow]] = OrderedDict()
        self._modules: dict[str, OrderedDict[str, Flow]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, flow: Flow, task_id: str) -> None:
        """Queue a task that has fallen due; it must not be queued already."""
        if flow.due is None:
            flow.due = {}
            flow.taken = 0
            self._agents.setdefault(flow.agent_id, OrderedDict())[flow.module_name] = flow
            self._modules.setdefault(flow.module_name, OrderedDict())[flow.agent_id] = flow
        flow.due[task_id] = None
        self._size += 1

    def discard(self, flow: Flow, task_id: str) -> bool:
        """Take a task out of its queue; False if it was not there."""
        due = flow.due
        if due is None or task_id not in due:
            return False
        del due[task_id]
        self._size -= 1
        flow.taken += 1
        if flow.taken > len(due) + _GAPS:
            flow.due = due = dict.fromkeys(due)
            flow.taken = 0
        if not due:
            flow.due = None
            flows = self._agents[flow.agent_id]
            del flows[flow.module_name]
            if not flows:
                del self._agents[flow.agent_id]
            agents = self._modules[flow.module_name]
            del agents[flow.agent_id]
            if not agents:
                del self._modules[flow.module_name]
        return True

    def has(self, agent_id: str = "", module_name: str = "") -> bool:
        """Whether any task of the filter is due; an empty name stands for all."""
        if agent_id and module_name:
            return module_name in self._agents.get(agent_id, ())
        if agent_id:
            return agent_id in self._agents
        if module_name:
            return module_name in self._modules
        return bool(self._agents)

    def flows(self, agent_id: str = "", module_name: str = "") -> Collection[Flow]:
        """The flows of the filter that have due tasks; some filter is given."""
        if not agent_id:
            return self._modules.get(module_name, {}).values()
        flows: Mapping[str, Flow] = self._agents.get(agent_id, {})
        if not module_name:
            return flows.values()
        flow = flows.get(module_name)
        return () if flow is None else (flow,)

    def select(self, agent_id: str = "", module_name: str = "") -> Iterator[tuple[Flow, str]]:
        """Due tasks of the filter in the order of their turns, lazily; changes nothing."""
        if agent_id:
            flows = self._agents.get(agent_id)
            if flows is None:
                return iter(())
            if not module_name:
                return _in_turn(_queue(flow) for flow in flows.values())
            flow = flows.get(module_name)
            return iter(()) if flow is None else _queue(flow)
        if module_name:
            return _in_turn(_queue(flow) for flow in self._modules.get(module_name, {}).values())
        return _in_turn(
            _in_turn(_queue(flow) for flow in flows.values()) for flows in self._agents.values()
        )

    def served(self, flow: Flow) -> None:
        """A task of ``flow`` was handed out: it goes to the back of its rings."""
        if flow.due is not None:
            flows = self._agents[flow.agent_id]
            flows.move_to_end(flow.module_name)
            self._modules[flow.module_name].move_to_end(flow.agent_id)
        if flow.agent_id in self._agents:
            self._agents.move_to_end(flow.agent_id)


def _queue(flow: Flow) -> Iterator[tuple[Flow, str]]:
    return ((flow, task_id) for task_id in flow.due or ())


def _in_turn(queues: Iterable[Iterator[_T]]) -> Iterator[_T]:
    """One item of each queue, then the next one of each, and so on."""
    waiting: deque[Iterator[_T]] = deque()
    for queue in queues:
        for item in queue:
            yield item
            waiting.append(queue)
            break
    while waiting:
        queue = waiting.popleft()
        for item in queue:
            yield item
            waiting.append(queue)
            break
