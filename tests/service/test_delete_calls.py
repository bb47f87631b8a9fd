"""DeleteAgent through a real client: everything of the agent goes, and nothing else."""

from __future__ import annotations

import json

from tests.support.clients import Client
from tests.support.valkey import ValkeyServer


def fill(client: Client, agent: str, runs: int = 3) -> None:
    assert client.call("RegisterAgent", agent={"id": agent}).success
    outcomes = client.call_many(
        "SetModuleState",
        (
            {
                "state": {
                    "agent_id": agent,
                    "module_name": f"m:{number % 2}",
                    "request_id": f"r{number}",
                    "state": ("running", "completed")[number % 2],
                }
            }
            for number in range(runs)
        ),
    )
    outcomes += client.call_many(
        "StoreResult",
        (
            {"result": {"id": f"r{number}", "agent_id": agent, "module_name": "m"}}
            for number in range(runs)
        ),
    )
    assert all(outcome.success for outcome in outcomes)
    state = {"agent_id": agent, "module_name": "m:0", "state": "stopped"}
    assert client.call("SetModuleState", state=state).success


def keys_naming(redis: ValkeyServer, text: bytes) -> list[bytes]:
    return [key for key in redis.execute("KEYS", "*") if text in key]


def test_a_deleted_agent_is_gone_with_its_states_and_results(
    client: Client, redis: ValkeyServer
) -> None:
    fill(client, "doomed")
    fill(client, "other")
    response = client.call("DeleteAgent", agent_id="doomed")
    assert (response.success, response.error) == (True, "")

    assert not client.call("GetAgent", agent_id="doomed").found
    assert [agent.id for agent in client.call("ListAgents").agents] == ["other"]
    assert not client.call("ListModuleStates", agent_id="doomed").states
    assert not client.call("ListModuleStates", agent_id="doomed", module_name="m:0").states
    assert not client.call("ListResults", agent_id="doomed").results
    assert not client.call("GetResult", agent_id="doomed", request_id="r0").found
    assert not client.call("GetModuleState", request_id="r0", agent_id="doomed").found
    assert keys_naming(redis, b"doomed") == []

    assert len(client.call("ListModuleStates", agent_id="other").states) == 4
    assert len(client.call("ListResults", agent_id="other").results) == 3
    # The request id they shared now means the other one's run.
    assert client.call("GetModuleState", request_id="r0").state.agent_id == "other"


def test_a_deletion_is_an_event(client: Client) -> None:
    fill(client, "doomed")
    client.call("DeleteAgent", agent_id="doomed")
    event = json.loads(client.call("GetEvents", limit=1).events[0])
    assert event["type"] == "agent.deleted"
    assert event["metadata"]["agent_id"] == "doomed"


def test_a_deleted_agent_that_comes_back_starts_from_nothing(client: Client) -> None:
    client.call("RegisterAgent", agent={"id": "a", "first_seen": 5, "total_heartbeats": 99})
    fill(client, "a")
    client.call("DeleteAgent", agent_id="a")
    client.call("RegisterAgent", agent={"id": "a", "first_seen": 7, "total_heartbeats": 1})
    agent = client.call("GetAgent", agent_id="a").agent
    assert (agent.first_seen, agent.total_heartbeats) == (7, 1)
    state = {"agent_id": "a", "module_name": "m", "request_id": "r1", "state": "created"}
    assert client.call("SetModuleState", state=state).success
    assert client.call("GetModuleState", request_id="r1").state.version == 1
    response = client.call("StoreResult", result={"id": "r1", "agent_id": "a", "module_name": "m"})
    assert not response.duplicate


def test_deleting_an_agent_nobody_knows_succeeds_without_an_event(client: Client) -> None:
    assert client.call("DeleteAgent", agent_id="nobody").success
    assert not client.call("GetEvents").events
    response = client.call("DeleteAgent")
    assert (response.success, response.error) == (False, "agent_id is required")


def test_an_agent_with_thousands_of_runs_is_deleted_completely(
    client: Client, redis: ValkeyServer
) -> None:
    fill(client, "doomed", runs=2_500)
    assert client.call("DeleteAgent", agent_id="doomed").success
    left = {key.removeprefix(b"dbos:{p0}:") for key in redis.execute("KEYS", "*")}
    assert left == {b"commit", b"owner", b"layout", b"changes", b"events"}


def test_calls_during_a_deletion_wait_and_see_all_of_it(client: Client) -> None:
    fill(client, "a", runs=1_500)
    deletion = client.start("DeleteAgent", agent_id="a")
    reads = [client.start("GetAgent", agent_id="a") for _ in range(20)]
    states = [client.start("GetModuleState", request_id="r1", agent_id="a") for _ in range(20)]
    assert deletion.result().success
    # Each came before the deletion or after it, never in between.
    for read in [*reads, *states]:
        response = read.result()
        assert response.found or response.error
    assert not client.call("GetAgent", agent_id="a").found
