"""Request templates: the parts of a request that stay, and the parts each call changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.load import frames
from bench.load.samples import load_results, make_results

DBOS = "/dbos.DBOS/"
NO_OP = "/dbos.Bench/NoOp"

MAX_DATA_BYTES: Final = 16_384
"""The frame size every HTTP/2 peer accepts (RFC 9113, 4.2); requests here fit in one frame."""

POOL_RESULTS = 500
"""Different results in the pool; ids make every request different from every other."""

RUN_STATES = ("created", "started", "running", "completed")
MODULES = ("ping", "traceroute", "dns", "sslcert")

FIRST_GAP = "0" * 11 + "@"  # as long as what replaces it: 12 hexadecimal digits
AGENT_GAP = "probe-" + "0" * 7 + "@"
AGENT_STRIDE = 7_919  # a prime: calls visit all agents once before any twice, in no order


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
    return f"probe-{number * AGENT_STRIDE % agents:08d}"


def id_of(prefix: str, number: int) -> str:
    """The id of the ``number``-th result, run or task: shaped like a UUID, sortable by number."""
    return f"{prefix}{number:012x}"


def id_prefix(run: int, worker: int) -> str:
    """What the ids of one worker in one measured run have in common: 24 characters."""
    return f"{run & 0xFFFFFFFF:08x}-{worker:04x}-4000-8000-"


class Agents:
    """Agent ids by call number, as bytes."""

    def __init__(self, agents: int) -> None:
        # In the order of the calls, so that a running index suffices.
        if agents % AGENT_STRIDE == 0 and agents:
            raise ValueError(f"{agents} agents share a factor with the stride")
        self.ids = [agent_of(number, agents).encode() for number in range(agents)]
        self.gap = AGENT_GAP.encode()


class Endless:
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


def numbers(count: int | None) -> Iterator[int]:
    number = 0
    while count is None or number < count:
        yield number
        number += 1


def by_id_and_agent(shapes: list[Shape], agents: list[bytes], count: int | None) -> Iterator[Item]:
    """Items of the id first and the agent second, every shape in turn."""
    kinds, population = len(shapes), len(agents)
    for number in numbers(count):
        yield shapes[number % kinds], b"%012x" % number, agents[number % population]
