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
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

from bench.load import frames
from bench.load.samples import load_results, make_results
from dbos_actors.api import messages

DBOS = "/dbos.DBOS/"
NO_OP = "/dbos.Bench/NoOp"

MAX_DATA_BYTES: Final = 16_384
"""The frame size every HTTP/2 peer accepts (RFC 9113, 4.2); requests here fit in one frame."""

POOL_RESULTS = 500
"""Different results in the pool; ids make every request different from every other."""

RUN_STATES = ("created", "started", "running", "completed")
MODULES = ("ping", "traceroute", "dns", "sslcert")

_FIRST_GAP = "0" * 11 + "@"  # as long as what replaces it: 12 hexadecimal digits
_AGENT_GAP = "probe-" + "0" * 7 + "@"
_AGENT_STRIDE = 7_919  # a prime: calls visit all agents once before any twice, in no order


class Shape:
    """A request but for its gaps: ``a`` first ``b`` second ``c``; ``a`` has the gRPC prefix."""

    __slots__ = ("a", "b", "c", "data_start", "flow_bytes", "stream_start")

    def __init__(self, message: bytes, first: bytes = b"", second: bytes = b"") -> None:
        a, found, rest = message.partition(first) if first else (message, b"", b"")
        if first and not found:
            raise ValueError("the template lacks its first gap")
        b, found, c = rest.partition(second) if second else (rest, b"", b"")
        if second and not found:
            raise ValueError("the template lacks its second gap")
        self.a = bytes(1) + len(message).to_bytes(4, "big") + a
        self.b = b
        self.c = c
        self.flow_bytes = frames.GRPC_PREFIX_BYTES + len(message)
        if self.flow_bytes > MAX_DATA_BYTES:
            raise ValueError(f"a request of {self.flow_bytes} bytes does not fit into one frame")
        self.data_start = frames.frame_start(frames.DATA, frames.END_STREAM, self.flow_bytes)
        self.stream_start = frames.frame_start(frames.DATA, 0, self.flow_bytes)


Item = tuple[Shape, bytes, bytes]


class Workload(Protocol):
    """An endless or finite stream of requests to one method."""

    path: str
    expected: bytes
    """What the body of a good reply begins with, gRPC prefix included where its length is known."""
    tracks: bool
    """Whether `completed` wants to know of each reply, and new requests may come of it."""

    def __iter__(self) -> Iterator[Item]: ...

    def __next__(self) -> Item: ...

    def completed(self, item: Item, body: bytes) -> None:
        """The call of ``item`` was answered well; ``body`` is its message."""
        ...


SUCCESS: Final = b"\x00\x00\x00\x00\x02\x08\x01"
"""A reply of ``success = true`` and nothing else."""

FOUND: Final = b"\x08\x01"
"""How a message begins whose first field is true."""

ANY: Final = b""


def agent_of(number: int, agents: int) -> str:
    """The agent of the ``number``-th call."""
    return f"probe-{number * _AGENT_STRIDE % agents:08d}"


def id_of(prefix: str, number: int) -> str:
    """The id of the ``number``-th result, run or task: shaped like a UUID, sortable by number."""
    return f"{prefix}{number:012x}"


def id_prefix(run: int, worker: int) -> str:
    """What the ids of one worker in one measured run have in common: 24 characters."""
    return f"{run & 0xFFFFFFFF:08x}-{worker:04x}-4000-8000-"


class _Agents:
    """Agent ids by call number, as bytes."""

    def __init__(self, agents: int) -> None:
        # In the order of the calls, so that a running index suffices.
        if agents % _AGENT_STRIDE == 0 and agents:
            raise ValueError(f"{agents} agents share a factor with the stride")
        self.ids = [agent_of(number, agents).encode() for number in range(agents)]
        self.gap = _AGENT_GAP.encode()


class _Endless:
    """Base of the workloads: iterates what `items` generates."""

    path = ""
    expected = SUCCESS
    tracks = False

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._next = items.__next__

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        return self._next()

    def completed(self, item: Item, body: bytes) -> None:
        """Nothing depends on the reply."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of every workload; each uses what it needs."""

    kind: str
    prefix: str
    """The ids' common part, see `id_prefix`."""
    agents: int = 1
    mix: str = "table"
    samples: str | None = None
    """A file of results to use instead of made ones."""
    seed: int = 1
    count: int | None = None
    """Requests in all; None is without end."""
    known: int = 0
    """How many results, runs or tasks with this prefix the store holds already (for reads)."""
    page_size: int = 100


def pool_of(parameters: Parameters) -> list[tuple[str, bytes]]:
    """The (module name, data) pairs that results carry in turn."""
    if parameters.samples is not None:
        return load_results(Path(parameters.samples))
    return make_results(parameters.mix, count=POOL_RESULTS, seed=parameters.seed)


def result_of(
    parameters: Parameters, pool: list[tuple[str, bytes]], number: int
) -> tuple[str, str, str, bytes]:
    """(agent id, result id, module name, data) of the ``number``-th stored result.

    ``pool`` is what `pool_of` made of the parameters.
    """
    agent_id = agent_of(number, parameters.agents)
    return agent_id, id_of(parameters.prefix, number), *pool[number % len(pool)]


def _numbers(count: int | None) -> Iterator[int]:
    number = 0
    while count is None or number < count:
        yield number
        number += 1


def _by_id_and_agent(shapes: list[Shape], agents: list[bytes], count: int | None) -> Iterator[Item]:
    """Items of the id first and the agent second, every shape in turn."""
    kinds, population = len(shapes), len(agents)
    for number in _numbers(count):
        yield shapes[number % kinds], b"%012x" % number, agents[number % population]


class StoreResult(_Endless):
    """New results, each of another agent than the one before."""

    path = DBOS + "StoreResult"

    def __init__(self, parameters: Parameters) -> None:
        agents = _Agents(parameters.agents)
        now = int(time.time())
        first = id_of(parameters.prefix, 0)[:24] + _FIRST_GAP
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
            shapes.append(Shape(request.SerializeToString(), _FIRST_GAP.encode(), agents.gap))
        super().__init__(_by_id_and_agent(shapes, agents.ids, parameters.count))


class NoOpResult(StoreResult):
    """The same requests to a method that does nothing."""

    path = NO_OP


class NoOp(_Endless):
    """Small requests to a method that does nothing."""

    path = NO_OP

    def __init__(self, parameters: Parameters) -> None:
        agents = _Agents(parameters.agents)
        request = messages.StoreResultRequest()
        request.result.id = id_of(parameters.prefix, 0)[:24] + _FIRST_GAP
        request.result.agent_id = agents.gap.decode()
        shape = Shape(request.SerializeToString(), _FIRST_GAP.encode(), agents.gap)
        super().__init__(_by_id_and_agent([shape], agents.ids, parameters.count))


class Heartbeat(_Endless):
    """RegisterAgent of all agents in turn, with a configuration map of 3.2 KB."""

    path = DBOS + "RegisterAgent"

    _FIRST_BEAT = 128  # beats 128 to 16,383 are encoded in two bytes, so that a shape fits all

    def __init__(self, parameters: Parameters) -> None:
        agents = _Agents(parameters.agents)
        super().__init__(self._generate(agents, parameters.count))

    @classmethod
    def _shape(cls, agents: _Agents, beat: int, started: int) -> Shape:
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
    def _generate(cls, agents: _Agents, count: int | None) -> Iterator[Item]:
        started = int(time.time())
        population = len(agents.ids)
        for number in _numbers(count):
            beat, index = divmod(number, population)
            if index == 0:
                shape = cls._shape(agents, beat, started)
            yield shape, agents.ids[index], b""


class Runs(_Endless):
    """Whole runs: created, started, running, completed, each sent once the one before is answered.

    Many runs are under way at once; a run that can go on comes before a new one.
    ``count`` is in runs.
    """

    path = DBOS + "SetModuleState"
    tracks = True

    def __init__(self, parameters: Parameters) -> None:
        agents = _Agents(parameters.agents)
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
    def _shape(agents: _Agents, prefix: str, module: str, state: str) -> Shape:
        request = messages.SetModuleStateRequest()
        request.state.agent_id = agents.gap.decode()
        request.state.module_name = module
        request.state.state = state
        request.state.details["target"] = "192.0.2.1"
        request.state.details["progress"] = state
        request.state.timestamp = int(time.time())
        request.state.request_id = prefix + _FIRST_GAP
        return Shape(request.SerializeToString(), agents.gap, _FIRST_GAP.encode())

    def _generate(self, agents: list[bytes], count: int | None) -> Iterator[Item]:
        population = len(agents)
        for number in _numbers(count):
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


class _Read(_Endless):
    """Reads of what an earlier load with the same prefix has stored, in another order."""

    expected = FOUND
    _STRIDE = 104_729

    def __init__(
        self, parameters: Parameters, request: Any, *, by_agent: bool, by_id: bool
    ) -> None:
        agents = _Agents(parameters.agents)
        gaps = [agents.gap] * by_agent + [_FIRST_GAP.encode()] * by_id
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
        for number in _numbers(parameters.count):
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
        request = messages.GetModuleStateRequest(request_id=parameters.prefix + _FIRST_GAP)
        super().__init__(parameters, request, by_agent=False, by_id=True)


class GetAgent(_Read):
    """Reads of agents."""

    path = DBOS + "GetAgent"

    def __init__(self, parameters: Parameters) -> None:
        request = messages.GetAgentRequest(agent_id=_AGENT_GAP)
        super().__init__(parameters, request, by_agent=True, by_id=False)


class GetResult(_Read):
    """Reads of single results."""

    path = DBOS + "GetResult"

    def __init__(self, parameters: Parameters) -> None:
        request = messages.GetResultRequest(
            agent_id=_AGENT_GAP, request_id=parameters.prefix + _FIRST_GAP
        )
        super().__init__(parameters, request, by_agent=True, by_id=True)


class ListResults(_Read):
    """First pages of agents' results."""

    path = DBOS + "ListResults"
    expected = b"\x0a"  # at least one result

    def __init__(self, parameters: Parameters) -> None:
        request = messages.ListResultsRequest(agent_id=_AGENT_GAP, page_size=parameters.page_size)
        super().__init__(parameters, request, by_agent=True, by_id=False)


class ScheduleTask(_Endless):
    """New tasks, due at once."""

    path = DBOS + "ScheduleTask"

    def __init__(self, parameters: Parameters) -> None:
        agents = _Agents(parameters.agents)
        request = messages.ScheduleTaskRequest()
        task = request.task
        task.id = parameters.prefix + _FIRST_GAP
        task.agent_id = agents.gap.decode()
        task.module_name = MODULES[0]
        task.payload = b'{"target":"192.0.2.1","packets":3,"size":64,"interval":1000}' * 3
        task.scheduled_at = int(time.time()) - 1
        task.created_at = task.scheduled_at
        shape = Shape(request.SerializeToString(), _FIRST_GAP.encode(), agents.gap)
        super().__init__(_by_id_and_agent([shape], agents.ids, parameters.count))


class Leases:
    """Tasks on their way from the leases of a load to its acknowledgements."""

    def __init__(self) -> None:
        self.ready: deque[tuple[str, str]] = deque()
        """Task ids and lease tokens, not acknowledged yet."""
        self.leased = 0


class LeaseTasks(_Endless):
    """Leases due tasks of any agent, by the hundred, until ``known`` were leased."""

    path = DBOS + "LeaseTasks"
    expected = ANY
    tracks = True

    _LIMIT = 100
    _READY_MAX = 1_000
    """No more are leased while so many wait for their acknowledgement."""

    def __init__(self, parameters: Parameters, leases: Leases) -> None:
        super().__init__(iter(()))
        request = messages.LeaseTasksRequest(limit=self._LIMIT, lease_seconds=60, worker_id="bench")
        self._item = (Shape(request.SerializeToString()), b"", b"")
        self._leases = leases
        self._known = parameters.known
        self._next = self._more

    def _more(self) -> Item:
        leases = self._leases
        if leases.leased >= self._known or len(leases.ready) >= self._READY_MAX:
            raise StopIteration
        return self._item

    def completed(self, item: Item, body: bytes) -> None:  # noqa: ARG002 - of Workload
        tasks = messages.LeaseTasksResponse.FromString(body).tasks
        self._leases.leased += len(tasks)
        self._leases.ready.extend((task.id, task.lease_token) for task in tasks)


class AckTask(_Endless):
    """Acknowledges what `LeaseTasks` of the same load has leased."""

    path = DBOS + "AckTask"
    tracks = True

    def __init__(self, parameters: Parameters, leases: Leases) -> None:  # noqa: ARG002 - alike
        super().__init__(iter(()))
        self._ready = leases.ready
        self._next = self._more

    def _more(self) -> Item:
        if not self._ready:
            raise StopIteration
        task_id, token = self._ready.popleft()
        request = messages.AckTaskRequest(task_id=task_id, lease_token=token)
        return Shape(request.SerializeToString()), b"", b""


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
