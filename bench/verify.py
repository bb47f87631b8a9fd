"""Whether what was acknowledged is really in Redis.

After each run everything in the store is counted, and a sample of the calls,
recomputed from their numbers, is read back and compared. A run passes only if
nothing acknowledged is missing; with no failed call the counts must be equal.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from bench.load import requests
from bench.load.plan import GroupOutcome
from bench.load.requests import Parameters
from dbos_actors.api import messages
from dbos_actors.store.keys import Keys, escaped

SAMPLES = 200
_PIPELINE = 2_000


class Layout(ABC):
    """Where a server keeps things."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def _all(self, command: Callable[[Any, str], Any], arguments: Iterable[str]) -> list[Any]:
        """The replies to one command for each argument, in pipelines."""
        replies: list[Any] = []
        pending: Iterator[str] = iter(arguments)
        while chunk := list(islice(pending, _PIPELINE)):
            pipe = self._client.pipeline(transaction=False)
            for argument in chunk:
                command(pipe, argument)
            replies += pipe.execute()
        return replies

    @abstractmethod
    def results(self, agents: Sequence[str]) -> int:
        """How many results the store holds of ``agents``."""

    @abstractmethod
    def result(self, agent_id: str, result_id: str) -> bytes | None:
        """One result's record."""

    @abstractmethod
    def runs(self, agents: Sequence[str]) -> int:
        """How many runs the store holds of ``agents``."""

    @abstractmethod
    def run(self, agent_id: str, request_id: str) -> bytes | None:
        """One run's record."""

    @abstractmethod
    def agents(self) -> int:
        """How many agents are registered."""


class PeerLayout(Layout):
    """Of `bench.peers.durable` and of the Go peer."""

    def results(self, agents: Sequence[str]) -> int:
        index = self._all(lambda pipe, agent: pipe.zcard(f"results-at:{agent}"), agents)
        records = self._all(lambda pipe, agent: pipe.hlen(f"results:{agent}"), agents)
        return int(min(sum(index), sum(records)))

    def result(self, agent_id: str, result_id: str) -> bytes | None:
        record: bytes | None = self._client.hget(f"results:{agent_id}", result_id)
        return record

    def runs(self, agents: Sequence[str]) -> int:
        return int(sum(self._all(lambda pipe, agent: pipe.hlen(f"states:{agent}"), agents)))

    def run(self, agent_id: str, request_id: str) -> bytes | None:
        record: bytes | None = self._client.hget(f"states:{agent_id}", request_id)
        return record

    def agents(self) -> int:
        return int(self._client.hlen("agents"))


class SeparateLayout(PeerLayout):
    """Of the Go peer with separate round trips: a key per result, an index, a mark."""

    def results(self, agents: Sequence[str]) -> int:
        index = sum(self._all(lambda pipe, agent: pipe.zcard(f"results-at:{agent}"), agents))
        counts = {b"result": 0, b"seen": 0}
        for key in self._client.scan_iter(count=10_000):
            kind = key.partition(b":")[0]
            if kind in counts:
                counts[kind] += 1
        return int(min(index, *counts.values()))

    def result(self, agent_id: str, result_id: str) -> bytes | None:
        record: bytes | None = self._client.get(f"result:{agent_id}:{result_id}")
        return record


class OurLayout(Layout):
    """Of the service."""

    _keys = Keys()

    def results(self, agents: Sequence[str]) -> int:
        keys = self._keys
        index = self._all(lambda pipe, a: pipe.zcard(keys.results_at + escaped(a)), agents)
        records = self._all(lambda pipe, a: pipe.hlen(keys.results + escaped(a)), agents)
        return int(min(sum(index), sum(records)))

    def result(self, agent_id: str, result_id: str) -> bytes | None:
        record: bytes | None = self._client.hget(self._keys.results + escaped(agent_id), result_id)
        return record

    def runs(self, agents: Sequence[str]) -> int:
        keys = self._keys
        return int(sum(self._all(lambda pipe, a: pipe.hlen(keys.states + escaped(a)), agents)))

    def run(self, agent_id: str, request_id: str) -> bytes | None:
        record: bytes | None = self._client.hget(
            self._keys.states + escaped(agent_id), "r" + request_id
        )
        return record

    def agents(self) -> int:
        return int(self._client.hlen(self._keys.agents))


LAYOUTS: dict[str, Callable[[Any], Layout]] = {
    "ours": OurLayout,
    "peer": PeerLayout,
    "peer-separate": SeparateLayout,
}


def _agents(parameters: Parameters) -> list[str]:
    return [requests.agent_of(number, parameters.agents) for number in range(parameters.agents)]


def check(
    layout: Layout,
    written: Sequence[tuple[Parameters, GroupOutcome]],
    *,
    seed: int,
    exactly: bool = True,
) -> list[str]:
    """What is wrong with the store after the loads in ``written``; empty if all is there.

    ``written`` names every load that went to this store since it was empty, unless
    ``exactly`` is false: then there may be more in it.
    """
    problems = []
    rng = random.Random(seed)
    results = [entry for entry in written if entry[0].kind == "store_result"]
    runs = [entry for entry in written if entry[0].kind == "runs"]
    heartbeats = [entry for entry in written if entry[0].kind == "heartbeat"]
    if results:
        widest = max((parameters for parameters, _ in results), key=lambda p: p.agents)
        problems += _counted("results", layout.results(_agents(widest)), results, exactly)
        for parameters, outcome in results:
            problems += _sampled_results(layout, parameters, outcome, rng)
    if runs:
        widest = max((parameters for parameters, _ in runs), key=lambda p: p.agents)
        stored = layout.runs(_agents(widest))
        # A run is there after its first report; it takes four to finish one.
        least = sum(outcome.acknowledged for _, outcome in runs) / len(requests.RUN_STATES)
        if stored < least:
            problems.append(f"runs: {stored} stored, at least {least:.0f} acknowledged")
        for parameters, outcome in runs:
            problems += _sampled_runs(layout, parameters, outcome, rng)
    if heartbeats:
        seen = max(min(p.agents, outcome.acknowledged) for p, outcome in heartbeats)
        stored = layout.agents()
        if stored < seen:
            problems.append(f"agents: {stored} stored, {seen} acknowledged")
    return problems


def _counted(
    what: str, stored: int, entries: Sequence[tuple[Parameters, GroupOutcome]], exactly: bool
) -> list[str]:
    acknowledged = sum(outcome.acknowledged for _, outcome in entries)
    issued = sum(outcome.issued for _, outcome in entries)
    if acknowledged <= stored and (stored <= issued or not exactly):
        return []
    return [f"{what}: {stored} stored, {acknowledged} acknowledged of {issued} sent"]


def _sampled_results(
    layout: Layout, parameters: Parameters, outcome: GroupOutcome, rng: random.Random
) -> list[str]:
    pool = requests.pool_of(parameters)
    missing = []
    for number in _sample(outcome, rng):
        expected = requests.result_of(parameters, pool, number)
        agent_id, result_id = expected[:2]
        record = layout.result(agent_id, result_id)
        if record is None:
            missing.append(f"result {result_id} of {agent_id} is missing")
            continue
        stored = messages.MeasurementResult.FromString(record)
        if (stored.agent_id, stored.id, stored.module_name, stored.data) != expected:
            return [f"result {result_id} of {agent_id} is not what was sent"]
    return _beyond(missing, outcome)


def _sampled_runs(
    layout: Layout, parameters: Parameters, outcome: GroupOutcome, rng: random.Random
) -> list[str]:
    missing = []
    started = outcome.issued // len(requests.RUN_STATES)
    for number in rng.sample(range(started), min(SAMPLES, started)):
        agent_id = requests.agent_of(number, parameters.agents)
        request_id = requests.id_of(parameters.prefix, number)
        record = layout.run(agent_id, request_id)
        if record is None:
            missing.append(f"run {request_id} of {agent_id} is missing")
            continue
        stored = messages.ModuleState.FromString(record)
        if stored.request_id != request_id or stored.state not in requests.RUN_STATES:
            return [f"run {request_id} of {agent_id} is not what was sent"]
    return _beyond(missing, outcome)


def _sample(outcome: GroupOutcome, rng: random.Random) -> list[int]:
    return rng.sample(range(outcome.issued), min(SAMPLES, outcome.issued))


def _beyond(missing: list[str], outcome: GroupOutcome) -> list[str]:
    """The missing records, unless calls enough failed to explain them."""
    unacknowledged = outcome.issued - outcome.acknowledged
    return missing[:5] if len(missing) > unacknowledged else []
