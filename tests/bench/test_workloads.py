"""Request templates: every request is the message it should be, and another one than the last."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from bench.load import requests, samples, workloads
from bench.load.requests import Item, Parameters, id_of, id_prefix
from bench.load.workloads import make_workload
from dbos_actors.api import messages

PREFIX = id_prefix(0xABCDEF01, 2)


def message_of(item: Item) -> bytes:
    """The message that a request carries, its gRPC prefix checked."""
    shape, first, second = item
    data = shape.a + first + shape.b + second + shape.c
    assert len(data) == shape.flow_bytes
    assert data[0] == 0
    assert int.from_bytes(data[1:5], "big") == len(data) - 5
    return data[5:]


def parameters(kind: str, **values: Any) -> Parameters:
    return Parameters(kind=kind, prefix=PREFIX, **{"agents": 50, "known": 40} | values)


def test_results_are_the_ones_named_by_their_numbers() -> None:
    given = parameters("store_result")
    pool = requests.pool_of(given)
    for number, item in enumerate(islice(make_workload(given), 700)):
        result = messages.StoreResultRequest.FromString(message_of(item)).result
        expected = requests.result_of(given, pool, number)
        assert (result.agent_id, result.id, result.module_name, result.data) == expected


def test_all_agents_are_met_before_any_twice() -> None:
    agents = [requests.agent_of(number, 13_000) for number in range(13_000)]
    assert len(set(agents)) == 13_000
    assert requests.agent_of(13_000, 13_000) == agents[0]


def test_a_count_ends_a_workload() -> None:
    assert len(list(make_workload(parameters("store_result", count=7)))) == 7


def test_heartbeats_grow_by_one_each_time_round() -> None:
    beats: dict[str, list[int]] = {}
    for item in islice(make_workload(parameters("heartbeat")), 150):
        message = message_of(item)
        agent = messages.RegisterAgentRequest.FromString(message).agent
        beats.setdefault(agent.id, []).append(agent.total_heartbeats)
        assert 3_000 < len(message) < 3_500
    assert len(beats) == 50
    assert set(map(tuple, beats.values())) == {(128, 129, 130)}


def test_a_run_goes_on_only_when_its_last_report_was_answered() -> None:
    workload = make_workload(parameters("runs", count=2))
    first, second = next(workload), next(workload)
    with pytest.raises(StopIteration):
        next(workload)
    states = []
    item = first
    for _ in requests.RUN_STATES:
        states.append(messages.SetModuleStateRequest.FromString(message_of(item)).state)
        workload.completed(item, b"")
        item = next(workload, second)
    assert tuple(state.state for state in states) == requests.RUN_STATES
    assert {state.request_id for state in states} == {id_of(PREFIX, 0)}
    assert item is second


@pytest.mark.parametrize(
    ("kind", "request_class", "named"),
    [
        ("get_module_state", messages.GetModuleStateRequest, ["request_id"]),
        ("get_agent", messages.GetAgentRequest, ["agent_id"]),
        ("get_result", messages.GetResultRequest, ["agent_id", "request_id"]),
        ("list_results", messages.ListResultsRequest, ["agent_id"]),
    ],
)
def test_reads_ask_for_what_was_written(kind: str, request_class: Any, named: list[str]) -> None:
    known = {(requests.agent_of(number, 50), id_of(PREFIX, number)) for number in range(40)}
    possible = {"agent_id": {agent for agent, _ in known}, "request_id": {id_ for _, id_ in known}}
    seen = set()
    for item in islice(make_workload(parameters(kind)), 200):
        request = request_class.FromString(message_of(item))
        values = tuple(getattr(request, name) for name in named)
        for name, value in zip(named, values, strict=True):
            assert value in possible[name]
        if len(named) == 2:
            assert values in known
        seen.add(values)
    assert len(seen) == 40


@pytest.mark.parametrize("kind", sorted(workloads.WORKLOADS))
def test_every_workload_fits_its_requests_into_one_frame(kind: str) -> None:
    for item in islice(make_workload(parameters(kind, agents=13_000)), 600):
        assert message_of(item)


def test_results_have_the_sizes_that_probes_deliver() -> None:
    sizes = sorted(len(data) for _, data in samples.make_results("table", count=500, seed=1))
    assert 350 < sizes[0] < 500
    assert 6_000 < sizes[-1] < 9_000
    network = [len(data) for _, data in samples.make_results("network", count=500, seed=1)]
    assert 750 < sum(network) / len(network) < 850


def test_the_same_seed_makes_the_same_results() -> None:
    assert samples.make_results("table", count=50, seed=3) == samples.make_results(
        "table", count=50, seed=3
    )
