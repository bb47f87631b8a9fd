"""What the calls say: request templates and the order in which they are sent.

A template is a serialised message with two gaps of fixed length, so that a new
request costs no encoding: `Shape` holds the bytes around the gaps, an `Item` is
a shape and what goes into them. A workload is an iterator of items, shared by
the connections of one group; a finite one ends by itself.

Everything follows from the parameters, so whoever checks the store afterwards
can name every call by its number: `result_of`, `run_of`, `agent_of`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from bench.load.requests import (
    AGENT_GAP,
    DBOS,
    FIRST_GAP,
    FOUND,
    MODULES,
    NO_OP,
    RUN_STATES,
    Agents,
    Endless,
    Item,
    Parameters,
    Shape,
    Workload,
    by_id_and_agent,
    id_of,
    numbers,
    pool_of,
)
from bench.load.task_workloads import AckTask, Leases, LeaseTasks, ScheduleTask
from dbos_actors.api import messages


class StoreResult(Endless):
    """New results, each of another agent than the one before."""

    path = DBOS + "StoreResult"

    def __init__(self, parameters: Parameters) -> None:
        agents = Agents(parameters.agents)
        now = int(time.time())
        first = id_of(parameters.prefix, 0)[:24] + FIRST_GAP
        shapes = []
        for module, data in pool_of(parameters):
            request = messages.StoreResultRequest()
            result = request.result
            result.id = first
            result.agent_id = agents.gap.decode()
            result.module_name = module
            result.data = data
            result.timestamp = now
            result.agent_start_time = now - 86_400
            result.agent_runtime_version = "2.6.2"
            result.module_revision = "7c1d9e0"
            result.ingest_source = "nats"
            shapes.append(Shape(request.SerializeToString(), FIRST_GAP.encode(), agents.gap))
        super().__init__(by_id_and_agent(shapes, agents.ids, parameters.count))


class NoOpResult(StoreResult):
    """The same requests to a method that does nothing."""

    path = NO_OP


class NoOp(Endless):
    """Small requests to a method that does nothing."""

    path = NO_OP

    def __init__(self, parameters: Parameters) -> None:
        agents = Agents(parameters.agents)
        request = messages.StoreResultRequest()
        request.result.id = id_of(parameters.prefix, 0)[:24] + FIRST_GAP
        request.result.agent_id = agents.gap.decode()
        shape = Shape(request.SerializeToString(), FIRST_GAP.encode(), agents.gap)
        super().__init__(by_id_and_agent([shape], agents.ids, parameters.count))


class Heartbeat(Endless):
    """RegisterAgent of all agents in turn, with a configuration map of 3.2 KB."""

    path = DBOS + "RegisterAgent"

    _FIRST_BEAT = 128  # beats 128 to 16,383 are encoded in two bytes, so that a shape fits all

    def __init__(self, parameters: Parameters) -> None:
        agents = Agents(parameters.agents)
        super().__init__(self._generate(agents, parameters.count))

    @classmethod
    def _shape(cls, agents: Agents, beat: int, started: int) -> Shape:
        request = messages.RegisterAgentRequest()
        agent = request.agent
        agent.id = agents.gap.decode()
        agent.hostname = "probe.example.net"
        agent.alive = True
        agent.last_seen = started + 10 * beat
        agent.first_seen = started
        agent.total_heartbeats = cls._FIRST_BEAT + beat % 16_000
        for number in range(40):
            agent.config[f"module.{MODULES[number % 4]}.option-{number}"] = f"{number:02x}" * 25
        return Shape(request.SerializeToString(), agents.gap)

    @classmethod
    def _generate(cls, agents: Agents, count: int | None) -> Iterator[Item]:
        started = int(time.time())
        population = len(agents.ids)
        for number in numbers(count):
            beat, index = divmod(number, population)
            if index == 0:
                shape = cls._shape(agents, beat, started)
            yield shape, agents.ids[index], b""


class Runs(Endless):
    """Whole runs: created, started, running, completed, each sent once the one before is answered.

    Many runs are under way at once; a run that can go on comes before a new one.
    ``count`` is in runs.
    """

    path = DBOS + "SetModuleState"
    tracks = True

    def __init__(self, parameters: Parameters) -> None:
        agents = Agents(parameters.agents)
        self._shapes = [
            [self._shape(agents, parameters.prefix, module, state) for state in RUN_STATES]
            for module in MODULES
        ]
        self._next_shape = {
            id(shape): following for steps in self._shapes for shape, following in pairwise(steps)
        }
        self._ready: deque[Item] = deque()
        self._unfinished = 0
        self._new = self._generate(agents.ids, parameters.count)
        super().__init__(self._new)
        self._next = self._ready_or_new

    @staticmethod
    def _shape(agents: Agents, prefix: str, module: str, state: str) -> Shape:
        request = messages.SetModuleStateRequest()
        request.state.agent_id = agents.gap.decode()
        request.state.module_name = module
        request.state.state = state
        request.state.details["target"] = "192.0.2.1"
        request.state.details["progress"] = state
        request.state.timestamp = int(time.time())
        request.state.request_id = prefix + FIRST_GAP
        return Shape(request.SerializeToString(), agents.gap, FIRST_GAP.encode())

    def _generate(self, agents: list[bytes], count: int | None) -> Iterator[Item]:
        population = len(agents)
        for number in numbers(count):
            steps = self._shapes[number % len(MODULES)]
            yield steps[0], agents[number % population], b"%012x" % number

    def _ready_or_new(self) -> Item:
        if self._ready:
            return self._ready.popleft()
        return next(self._new)

    def completed(self, item: Item, body: bytes) -> None:  # noqa: ARG002 - of Workload
        following = self._next_shape.get(id(item[0]))
        if following is not None:
            self._ready.append((following, item[1], item[2]))


class _Read(Endless):
    """Reads of what an earlier load with the same prefix has stored, in another order."""

    expected = FOUND
    _STRIDE = 104_729

    def __init__(
        self, parameters: Parameters, request: Any, *, by_agent: bool, by_id: bool
    ) -> None:
        agents = Agents(parameters.agents)
        gaps = [agents.gap] * by_agent + [FIRST_GAP.encode()] * by_id
        shape = Shape(request.SerializeToString(), *gaps)
        super().__init__(self._generate(shape, agents.ids, parameters, by_agent, by_id))

    @classmethod
    def _generate(
        cls,
        shape: Shape,
        agents: list[bytes],
        parameters: Parameters,
        by_agent: bool,
        by_id: bool,
    ) -> Iterator[Item]:
        known, population = max(1, parameters.known), len(agents)
        for number in numbers(parameters.count):
            target = number * cls._STRIDE % known
            if not by_agent:
                yield shape, b"%012x" % target, b""
            elif by_id:
                yield shape, agents[target % population], b"%012x" % target
            else:
                yield shape, agents[target % population], b""


class GetModuleState(_Read):
    """Reads of runs by their request id."""

    path = DBOS + "GetModuleState"

    def __init__(self, parameters: Parameters) -> None:
        request = messages.GetModuleStateRequest(request_id=parameters.prefix + FIRST_GAP)
        super().__init__(parameters, request, by_agent=False, by_id=True)


class GetAgent(_Read):
    """Reads of agents."""

    path = DBOS + "GetAgent"

    def __init__(self, parameters: Parameters) -> None:
        request = messages.GetAgentRequest(agent_id=AGENT_GAP)
        super().__init__(parameters, request, by_agent=True, by_id=False)


class GetResult(_Read):
    """Reads of single results."""

    path = DBOS + "GetResult"

    def __init__(self, parameters: Parameters) -> None:
        request = messages.GetResultRequest(
            agent_id=AGENT_GAP, request_id=parameters.prefix + FIRST_GAP
        )
        super().__init__(parameters, request, by_agent=True, by_id=True)


class ListResults(_Read):
    """First pages of agents' results."""

    path = DBOS + "ListResults"
    expected = b"\x0a"  # at least one result

    def __init__(self, parameters: Parameters) -> None:
        request = messages.ListResultsRequest(agent_id=AGENT_GAP, page_size=parameters.page_size)
        super().__init__(parameters, request, by_agent=True, by_id=False)


WORKLOADS: Final[Mapping[str, Callable[[Parameters], Any]]] = {
    "no_op": NoOp,
    "no_op_result": NoOpResult,
    "store_result": StoreResult,
    "heartbeat": Heartbeat,
    "runs": Runs,
    "get_module_state": GetModuleState,
    "get_agent": GetAgent,
    "get_result": GetResult,
    "list_results": ListResults,
    "schedule_task": ScheduleTask,
}


DRAINING: Final[Mapping[str, Callable[[Parameters, Leases], Any]]] = {
    "lease_tasks": LeaseTasks,
    "ack_task": AckTask,
}
"""Workloads that hand each other tasks."""


def make_workload(parameters: Parameters, leases: Leases | None = None) -> Workload:
    """The workload that ``parameters`` describe.

    ``leases`` is common to the workloads of one load.
    """
    workload: Workload
    if parameters.kind in DRAINING:
        workload = DRAINING[parameters.kind](parameters, leases or Leases())
    else:
        workload = WORKLOADS[parameters.kind](parameters)
    return workload
