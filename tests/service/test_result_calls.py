"""StoreResult, GetResult and ListResults through real clients."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.clients import CallError, Client, GrpcioClient
from tests.support.servers import SteppedClock
from tests.support.valkey import ValkeyServer

NOW = 1_700_000_000
EVERY_BYTE = bytes(range(256)) * 3


def store(client: Client, result_id: str, **fields: Any) -> Any:
    values = {"id": result_id, "agent_id": "a", "module_name": "ping"}
    return client.call("StoreResult", result={**values, **fields})


def get(client: Client, result_id: str, agent_id: str = "a") -> Any:
    response = client.call("GetResult", agent_id=agent_id, request_id=result_id)
    assert response.found, response.error
    return response.result


def ids(client: Client, **fields: Any) -> list[str]:
    response = client.call("ListResults", **{"agent_id": "a", **fields})
    assert not response.error
    return [result.id for result in response.results]


def event_types(client: Client) -> list[str]:
    return [json.loads(event)["type"] for event in client.call("GetEvents").events]


def test_a_result_is_stored_and_read_back_by_every_client(any_client: Client) -> None:
    response = store(any_client, "r:1", data=EVERY_BYTE, timestamp=123)
    assert (response.success, response.error) == (True, "")
    result = get(any_client, "r:1")
    assert (result.id, result.agent_id, result.module_name) == ("r:1", "a", "ping")
    assert (result.data, result.timestamp) == (EVERY_BYTE, 123)
    assert ids(any_client) == ["r:1"]
    assert any_client.call("ListResults", agent_id="a").results[0] == result


def test_the_fields_of_the_second_generation_are_kept(client: Client) -> None:
    store(
        client,
        "r",
        received_at=1_600_000_000,
        agent_start_time=5,
        agent_runtime_version="v1",
        module_revision="rev",
        dbos_server_id="relay",
        ingest_source="nats",
    )
    result = get(client, "r")
    assert (result.received_at, result.agent_start_time) == (1_600_000_000, 5)
    assert (result.agent_runtime_version, result.module_revision) == ("v1", "rev")
    assert (result.dbos_server_id, result.ingest_source) == ("relay", "nats")


def test_when_and_where_it_was_received_is_set_when_empty(client: Client) -> None:
    store(client, "r")
    result = get(client, "r")
    assert (result.received_at, result.dbos_server_id) == (NOW, "server-under-test")
    assert result.timestamp == 0  # the agent's to say


def test_an_unknown_result_is_not_found_and_the_error_names_it(any_client: Client) -> None:
    response = any_client.call("GetResult", agent_id="a", request_id="nothing")
    assert not response.found
    assert "nothing" in response.error
    assert ids(any_client) == []


@pytest.mark.parametrize("missing", ["id", "agent_id", "module_name"])
def test_an_empty_required_field_of_a_result_is_refused_in_band(
    any_client: Client, missing: str
) -> None:
    response = store(any_client, **{"result_id": "r", missing: ""})
    assert (response.success, response.error) == (False, f"result.{missing} is required")


def test_result_reads_without_their_ids_are_refused_in_band(any_client: Client) -> None:
    response = any_client.call("GetResult", agent_id="a")
    assert (response.found, response.error) == (False, "request_id is required")
    response = any_client.call("GetResult", request_id="r")
    assert (response.found, response.error) == (False, "agent_id is required")
    assert any_client.call("ListResults").error == "agent_id is required"


@pytest.mark.parametrize("received_at", [-1, 2**53 + 1])
def test_a_received_at_that_cannot_order_a_listing_is_refused(
    client: Client, received_at: int
) -> None:
    response = store(client, "r", received_at=received_at)
    assert not response.success
    assert "result.received_at" in response.error


# ------------------------------------------------------------------- repeats


def test_the_first_write_wins_and_a_repeat_succeeds(any_client: Client) -> None:
    store(any_client, "r", data=b"first", timestamp=1)
    response = store(any_client, "r", data=b"first", timestamp=2)
    assert (response.success, response.error) == (True, "")
    assert get(any_client, "r").timestamp == 1
    assert ids(any_client) == ["r"]


def test_a_repeat_says_so_to_clients_that_know_the_field(client: Client) -> None:
    assert not store(client, "r", data=b"x").duplicate
    assert store(client, "r", data=b"x").duplicate


def test_a_repeat_does_not_move_the_result_in_the_list(client: Client) -> None:
    store(client, "r", received_at=100)
    store(client, "s", received_at=200)
    store(client, "r", received_at=300)
    assert ids(client) == ["r", "s"]
    assert get(client, "r").received_at == 100


def test_a_repeat_with_other_data_keeps_the_first_and_records_the_conflict(
    client: Client,
) -> None:
    store(client, "r", data=b"first")
    assert store(client, "r", data=b"second").success
    assert get(client, "r").data == b"first"
    (event,) = [json.loads(event) for event in client.call("GetEvents").events]
    assert event["type"] == "result.conflict"
    assert event["metadata"]["agent_id"] == "a"
    assert event["metadata"]["result_id"] == "r"


def test_a_repeat_on_another_way_is_no_conflict(client: Client) -> None:
    store(client, "r", data=b"same", ingest_source="nats", timestamp=1)
    store(client, "r", data=b"same", ingest_source="file", timestamp=2, received_at=3)
    assert event_types(client) == []


def test_concurrent_repeats_store_one_result(client: Client) -> None:
    outcomes = client.call_many(
        "StoreResult",
        (
            {"result": {"id": "r", "agent_id": "a", "module_name": "m", "data": b"same"}}
            for _ in range(200)
        ),
    )
    assert all(outcome.success for outcome in outcomes)
    assert sum(not outcome.duplicate for outcome in outcomes) == 1
    assert ids(client) == ["r"]


def test_results_make_no_events_unless_asked_for(client: Client) -> None:
    store(client, "r")
    assert event_types(client) == []


# ------------------------------------------------------------------- listing


def test_results_are_listed_by_time_received(client: Client, clock: SteppedClock) -> None:
    for result_id in ("c", "a", "b"):
        store(client, result_id)
        clock.now_s += 1
    store(client, "late", received_at=NOW - 10)
    assert ids(client) == ["late", "c", "a", "b"]
    assert ids(client, newest_first=True) == ["b", "a", "c", "late"]


def test_since_is_inclusive_and_until_is_exclusive(client: Client) -> None:
    for second in range(100, 106):
        store(client, f"r{second}", received_at=second)
    assert ids(client, since=102) == ["r102", "r103", "r104", "r105"]
    assert ids(client, until=102) == ["r100", "r101"]
    assert ids(client, since=101, until=103) == ["r101", "r102"]
    assert ids(client, since=101, until=103, newest_first=True) == ["r102", "r101"]
    assert ids(client, since=103, until=103) == []
    assert ids(client, since=105, until=101) == []
    assert ids(client, since=0, until=0) == [f"r{second}" for second in range(100, 106)]


def test_results_are_filtered_by_module(client: Client) -> None:
    for number in range(6):
        store(client, f"r{number}", module_name=("ping", "dns")[number % 2], received_at=number + 1)
    assert ids(client, module_name="dns") == ["r1", "r3", "r5"]
    assert ids(client, module_name="dns", newest_first=True, since=3) == ["r5", "r3"]
    assert ids(client, module_name="tcp") == []


def test_results_of_another_agent_are_not_listed(client: Client) -> None:
    store(client, "r", agent_id="a")
    store(client, "s", agent_id="b")
    assert ids(client, agent_id="b") == ["s"]


def test_a_result_that_cannot_be_indexed_is_not_acknowledged(
    client: GrpcioClient, redis: ValkeyServer
) -> None:
    """Catches an error inside EXEC that is answered with success."""
    assert store(client, "r1").success
    key = "dbos:{p0}:results-at:a"
    redis.execute("SET", key, "not a sorted set")
    with pytest.raises(CallError, match=f"DATA_LOSS: .*{re.escape(key)}"):
        store(client, "r2")
    assert store(client, "r1", agent_id="b").success
    assert redis.execute("HEXISTS", "dbos:{p0}:to-check", key)
    redis.execute("DEL", key)
    assert store(client, "r2").success
    assert ids(client) == ["r2"]
