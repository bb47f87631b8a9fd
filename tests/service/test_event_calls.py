"""GetEvents through real clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dbos_actors.store.keys import Keys
from tests.support.clients import CallError, Client, GrpcioClient, open_client
from tests.support.runs import start_runs
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

STREAM = "dbos:{p0}:events"


def run(client: Client, request_id: str, state: str = "running", agent_id: str = "a") -> None:
    fields = {"agent_id": agent_id, "module_name": "m", "request_id": request_id, "state": state}
    assert client.call("SetModuleState", state=fields).success


def events(client: Client, **fields: Any) -> list[dict[str, Any]]:
    response = client.call("GetEvents", **fields)
    assert not response.error
    return [json.loads(event) for event in response.events]


def test_events_come_newest_first_as_json_of_four_members(
    server: ServerThread, clock: SteppedClock
) -> None:
    for kind in ("grpcio-b", "grpcio-today", "sdk"):
        with open_client(kind, server.address) as client:
            client.call("RegisterAgent", agent={"id": kind, "hostname": "ü"})
            clock.now_s += 1
            run(client, "r", agent_id=kind)
            first, second, *_ = events(client, limit=10)
            assert (first["type"], second["type"]) == ("run.running", "agent.registered")
            assert first["timestamp"] == second["timestamp"] + 1
            assert set(first) == set(second) == {"type", "message", "metadata", "timestamp"}
            assert second["metadata"]["hostname"] == "ü"
            assert kind in first["message"]


def test_a_limit_of_nothing_means_a_hundred(client: Client) -> None:
    start_runs(client, 150)
    for limit in (0, -1, -(2**40)):
        assert len(events(client, limit=limit)) == 100
    assert len(events(client, limit=1)) == 1
    assert len(events(client, limit=149)) == 149
    assert len(events(client, limit=2**40)) == 150


def test_events_are_filtered_by_type_and_agent_and_paged_through(client: Client) -> None:
    for number in range(30):
        run(client, f"r{number}", agent_id=f"a{number % 3}")
        if number % 2:
            run(client, f"r{number}", "completed", agent_id=f"a{number % 3}")
    completed = events(client, types=["run.completed"])
    assert len(completed) == 15
    assert all(event["type"] == "run.completed" for event in completed)
    assert len(events(client, agent_id="a1")) == 15
    assert len(events(client, agent_id="a1", types=["run.completed", "agent.registered"])) == 5

    found: list[dict[str, Any]] = []
    token = ""
    while True:
        response = client.call("GetEvents", limit=4, page_token=token, types=["run.completed"])
        assert not response.error
        found += [json.loads(event) for event in response.events]
        token = response.next_page_token
        if not token:
            break
        run(client, f"between {token}")  # newer than the first page: not in the next ones
    assert found == completed


def test_the_event_log_is_bounded(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    with GrpcioClient(start_server(max_events=200).address) as client:
        start_runs(client, 1_000)
        assert redis.execute("XLEN", STREAM) <= 200 + 100  # whole nodes are trimmed
        newest = events(client, limit=1)[0]["metadata"]["request_id"]
        assert newest == "r999"


def test_polling_writes_no_events(client: Client, redis: ValkeyServer) -> None:
    client.call("RegisterAgent", agent={"id": "a"})
    run(client, "r")
    client.call("StoreResult", result={"id": "r", "agent_id": "a", "module_name": "m"})
    before = redis.execute("XLEN", STREAM)
    for _ in range(3):
        client.call("GetAgent", agent_id="a")
        client.call("ListAgents")
        client.call("GetModuleState", request_id="r")
        client.call("GetModuleState", request_id="unknown")
        client.call("ListModuleStates", agent_id="a")
        client.call("GetResult", agent_id="a", request_id="r")
        client.call("ListResults", agent_id="a")
        client.call("GetEvents")
    assert redis.execute("XLEN", STREAM) == before == 2


def test_refused_requests_write_no_events(client: Client, redis: ValkeyServer) -> None:
    run(client, "r", "completed")
    for state in ("running", "nonsense", "failed"):
        fields = {"agent_id": "a", "module_name": "m", "request_id": "r", "state": state}
        assert not client.call("SetModuleState", state=fields).success
    assert redis.execute("XLEN", STREAM) == 1


def test_results_are_events_only_where_the_operator_asked(
    start_server: Callable[..., ServerThread],
) -> None:
    with GrpcioClient(start_server(event_results=True).address) as client:
        client.call("StoreResult", result={"id": "r", "agent_id": "a", "module_name": "m"})
        (event,) = events(client)
        assert event["type"] == "result.stored"
        assert event["metadata"]["result_id"] == "r"


def test_a_repeated_result_is_no_event_and_a_conflict_is_one(
    start_server: Callable[..., ServerThread],
) -> None:
    with GrpcioClient(start_server(event_results=True).address) as client:
        first = {"id": "r", "agent_id": "a", "module_name": "m", "data": b"1"}
        outcomes = client.call_many("StoreResult", [{"result": first}] * 5, in_flight=5)
        assert sorted(outcome.duplicate for outcome in outcomes) == [False, True, True, True, True]
        assert client.call("StoreResult", result={**first, "data": b"2"}).duplicate
        client.call("StoreResult", result={**first, "agent_id": "b"})
        shown = [(event["type"], event["metadata"]["agent_id"]) for event in events(client)]
    assert shown[::-1] == [("result.stored", "a"), ("result.conflict", "a"), ("result.stored", "b")]


@pytest.mark.parametrize("key", ["results", "events"])
def test_a_key_that_keeps_a_result_or_its_event_from_being_written_is_named(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, key: str
) -> None:
    name = STREAM if key == "events" else f"{Keys().results}a"
    redis.execute("SET", name, "of another type")
    with (
        GrpcioClient(start_server(event_results=True).address) as client,
        pytest.raises(CallError, match=f"DATA_LOSS.*{name}"),
    ):
        client.call("StoreResult", result={"id": "r", "agent_id": "a", "module_name": "m"})
