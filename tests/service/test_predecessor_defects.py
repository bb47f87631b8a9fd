"""What the service before this one got wrong, one test each; named after the defect."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clients import CallError, Client, GrpcioClient, open_client, outcome_of
from tests.support.servers import ServerThread, SteppedClock
from tests.support.tasks import get, lease, ledger, schedule, wait_until
from tests.support.valkey import ValkeyServer


def state(request_id: str, name: str, agent_id: str = "a", **fields: Any) -> dict[str, Any]:
    values = {"agent_id": agent_id, "module_name": "m", "request_id": request_id, "state": name}
    return {"state": {**values, **fields}}


def events(client: Client) -> list[dict[str, Any]]:
    return [json.loads(event) for event in client.call("GetEvents", limit=10_000).events]


def test_list_module_states_answered_an_empty_list(any_client: Client) -> None:
    any_client.call("SetModuleState", **state("r", "running"))
    assert len(any_client.call("ListModuleStates", agent_id="a").states) == 1
    assert len(any_client.call("ListModuleStates", agent_id="a", module_name="m").states) == 1


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("RegisterAgent", "agent"),
        ("SetModuleState", "state"),
        ("StoreResult", "result"),
        ("ScheduleTask", "task"),
    ],
)
def test_an_unset_message_field_crashed_the_process(
    any_client: Client, method: str, field: str
) -> None:
    response = any_client.call(method)
    assert (response.success, response.error) == (False, f"{field} is required")
    assert any_client.call("RegisterAgent", agent={"id": "a"}).success  # it lives


def test_list_due_tasks_answered_an_empty_list(any_client: Client) -> None:
    schedule(any_client, "t")
    assert [one.id for one in any_client.call("ListDueTasks").tasks] == ["t"]


def test_a_leased_task_whose_worker_died_was_never_seen_again(
    client: Client, server: ServerThread
) -> None:
    schedule(client, "t", max_attempts=2)
    for retry_count in range(2):
        (leased,) = lease(client, lease_seconds=1)
        assert (leased.status, leased.retry_count) == ("inflight", retry_count)
        assert leased.visibility_time > 0
        wait_until(lambda: get(client).status != "inflight")
    assert get(client).status == "dead"


def test_acknowledging_left_ghosts_among_the_pending(client: Client, server: ServerThread) -> None:
    schedule(client, "t")
    assert client.call("AckTask", task_id="t").success
    assert not client.call("ListDueTasks").tasks
    assert ledger(server).pending == 0


def test_settling_an_unknown_task_succeeded_and_made_one(
    client: Client, server: ServerThread
) -> None:
    for method in ("NackTask", "AckTask"):
        response = client.call(method, task_id="ghost")
        assert (response.success, response.error) == (False, "unknown task ghost")
    assert not client.call("ListDueTasks").tasks
    assert ledger(server).scheduled == 0


def test_an_id_fanned_out_to_two_agents_lost_a_result(any_client: Client) -> None:
    for agent in ("one", "two"):
        result = {"id": "same", "agent_id": agent, "module_name": "m", "data": agent.encode()}
        assert any_client.call("StoreResult", result=result).success
    for agent in ("one", "two"):
        stored = any_client.call("GetResult", agent_id=agent, request_id="same")
        assert stored.result.data == agent.encode()
        assert len(any_client.call("ListResults", agent_id=agent).results) == 1


def test_an_id_fanned_out_to_two_agents_lost_a_run(client: Client) -> None:
    for agent in ("one", "two"):
        assert client.call("SetModuleState", **state("same", "running", agent)).success
    assert client.call("SetModuleState", **state("same", "completed", "one")).success
    for agent, expected in (("one", "completed"), ("two", "running")):
        found = client.call("GetModuleState", request_id="same", agent_id=agent)
        assert found.state.state == expected


def test_record_and_index_were_written_apart(client: Client, redis: ValkeyServer) -> None:
    """Everything one call writes is in one transaction: no step of it can be seen by itself."""
    client.call("RegisterAgent", agent={"id": "warm up"})
    monitored: list[str] = []
    with redis.client() as connection, connection.monitor() as monitor:  # type: ignore[no-untyped-call]
        client.call("StoreResult", result={"id": "r", "agent_id": "a", "module_name": "m"})
        client.call("SetModuleState", **state("r", "running"))
        redis.execute("ECHO", "done")
        while True:
            command = monitor.next_command()["command"]
            if command == "ECHO done":
                break
            monitored.append(command.split(" ")[0].upper())
    within: list[Any] = []
    inside = False
    for name in monitored:
        if name == "MULTI":
            inside = True
            within.append([])
        elif name == "EXEC":
            inside = False
        elif inside:
            within[-1].append(name)
        else:
            assert name in READS_AND_LEASE, f"{name} outside a transaction"
    assert ["HSETNX", "ZADD", "SADD", "SET"] in within
    assert any({"HSET", "ZADD", "SADD", "XADD", "SET"} <= set(names) for names in within)


READS_AND_LEASE = {
    *(
        "WATCH",
        "UNWATCH",
        "GET",
        "HGET",
        "SISMEMBER",
        "HMGET",
        "HLEN",
        "SMEMBERS",
        "PING",
        "INFO",
        "CONFIG",
    ),
    # The lease's renewal is a script; what it does is atomic by itself.
    *("EVAL", "SET", "CLIENT", "DEL"),
}


def test_a_redis_read_error_was_taken_for_a_new_state(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        client.call("SetModuleState", **state("r", "completed"))
    first.stop()
    # The agent's states cannot be read: another type is where they should be.
    redis.execute("RENAME", "dbos:{p0}:states:a", "away")
    redis.execute("SET", "dbos:{p0}:states:a", "not a hash")
    with GrpcioClient(start_server().address) as client:
        for method, fields in (
            ("SetModuleState", state("r", "running")),
            ("GetModuleState", {"request_id": "r"}),
            ("ListModuleStates", {"agent_id": "a"}),
        ):
            with pytest.raises(CallError) as caught:
                client.call(method, **fields)
            assert caught.value.status in ("INTERNAL", "UNAVAILABLE"), method
        redis.execute("RENAME", "away", "dbos:{p0}:states:a")
        response = client.call("SetModuleState", **state("r", "running"))
        assert response.error == "invalid transition completed -> running"


def test_first_seen_and_heartbeats_restarted_with_the_control_server(
    start_server: Callable[..., ServerThread], clock: SteppedClock
) -> None:
    first = start_server()
    with open_client("grpcio-b", first.address) as client:
        client.call(
            "RegisterAgent", agent={"id": "a", "first_seen": 1_000, "total_heartbeats": 500}
        )
    first.stop()
    clock.now_s += 3_600
    with open_client("grpcio-b", start_server().address) as client:
        # A control server that has just started, and so has this service.
        now = int(clock.now_s)
        client.call("RegisterAgent", agent={"id": "a", "first_seen": now, "total_heartbeats": 1})
        agent = client.call("GetAgent", agent_id="a").agent
        assert (agent.first_seen, agent.total_heartbeats) == (1_000, 500)


def test_listing_agents_ran_keys_and_one_get_each_in_random_order(
    client: Client, redis: ValkeyServer
) -> None:
    names = [f"agent-{number:04}" for number in range(1_000)]
    client.call_many("RegisterAgent", ({"agent": {"id": name}} for name in reversed(names)))
    redis.execute("CONFIG", "RESETSTAT")
    assert [agent.id for agent in client.call("ListAgents").agents] == names
    ran = {name.decode() for name in commands_run(redis)}
    assert not ran & {"keys", "scan", "hget", "hgetall"}
    assert commands_run(redis)[b"hmget"] < 20


def commands_run(redis: ValkeyServer) -> dict[bytes, int]:
    """How often each command was executed since the last reset."""
    with redis.client() as connection:
        statistics: Any = connection.info("commandstats")
    return {
        name.removeprefix("cmdstat_").encode(): entry["calls"] for name, entry in statistics.items()
    }


def test_a_big_list_exceeded_the_message_limit(client: Client) -> None:
    config = {"config": {"k": "v" * 60_000}}
    names = [f"agent-{number:03}" for number in range(150)]  # 9 MB
    outcomes = client.call_many(
        "RegisterAgent", ({"agent": {"id": name, **config}} for name in names), in_flight=20
    )
    assert all(outcome.success for outcome in outcomes)
    with pytest.raises(CallError, match="page_size"):
        client.call("ListAgents")
    found: list[str] = []
    token = ""
    while True:
        response = client.call("ListAgents", page_size=1_000, page_token=token)
        found += [agent.id for agent in response.agents]
        token = response.next_page_token
        if not token:
            break
    assert found == names


def test_the_event_log_grew_without_bound(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    with GrpcioClient(start_server(max_events=100).address) as client:
        client.call_many("SetModuleState", (state(f"r{n}", "completed") for n in range(1_000)))
        assert redis.execute("XLEN", "dbos:{p0}:events") < 300


def test_nothing_could_be_deleted(client: Client) -> None:
    client.call("RegisterAgent", agent={"id": "a"})
    assert client.call("DeleteAgent", agent_id="a").success
    assert not client.call("GetAgent", agent_id="a").found


@pytest.mark.parametrize("kind", ["grpcio-a", "aio-b", "sdk"])
def test_a_storm_of_159_completed_reports_is_one_change(server: ServerThread, kind: str) -> None:
    with open_client(kind, server.address) as client, GrpcioClient(server.address) as reader:
        client.call("SetModuleState", **state("r", "running"))
        # Distinct contents: as from 159 tasks that all report the same end.
        storm = [
            client.start("SetModuleState", **state("r", "completed", details={"n": str(n)}))
            for n in range(159)
        ]
        outcomes = [outcome_of(call) for call in storm]
        assert all(outcome.success and not outcome.error for outcome in outcomes)
        found = reader.call("GetModuleState", request_id="r").state
        assert (found.state, found.version) == ("completed", 2)
        assert [event["type"] for event in events(reader)] == ["run.completed", "run.running"]
        assert len(reader.call("ListModuleStates", agent_id="a").states) == 1
