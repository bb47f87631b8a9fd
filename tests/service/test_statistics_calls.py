"""Statistics through real clients: what it counts, and that it looks for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbos_actors.actors.agents import retention
from tests.support.clients import Client, GrpcioClient, open_client
from tests.support.servers import ServerThread, SteppedClock
from tests.support.tasks import NOW_S, lease, schedule, wait_until
from tests.support.valkey import ValkeyServer


@pytest.fixture(params=["grpcio-today", "aio-today", "sdk"])
def client(server: ServerThread, request: pytest.FixtureRequest) -> Iterator[Client]:
    with open_client(request.param, server.address) as client:
        yield client


def statistics(client: Client) -> Any:
    return client.call("Statistics")


def register(client: Client, agent_id: str, **fields: Any) -> None:
    agent = {"id": agent_id, "alive": True, **fields}
    assert client.call("RegisterAgent", agent=agent).success


def presence(client: Client) -> tuple[int, int, int]:
    agents = statistics(client).agents
    return agents.known, agents.alive, agents.silent


def store(client: Client, result_id: str, agent_id: str = "a", data: bytes = b"x") -> None:
    result = {"id": result_id, "agent_id": agent_id, "module_name": "m", "data": data}
    assert client.call("StoreResult", result=result).success


def test_the_server_and_its_store_are_described(client: Client, redis: ValkeyServer) -> None:
    store(client, "r")
    found = statistics(client)
    assert found.error == ""
    assert found.server.server_id == "server-under-test"
    assert found.server.version
    assert found.server.time == NOW_S
    assert 0 <= found.server.uptime_seconds < 60
    assert found.server.memory_bytes > 10 << 20
    assert (found.store.state, found.store.durability) == ("connected", "replay")
    commit = redis.execute("GET", "dbos:{p0}:commit").decode()
    assert found.store.epoch == int(commit.partition(":")[0])
    assert found.store.sequence >= 1
    assert 0 < found.store.commit_seconds_p50 <= found.store.commit_seconds_p99 < 5
    assert 0 < found.store.replay_bytes < found.store.replay_limit_bytes
    assert found.store.memory_bytes > 100_000
    assert any("appendonly" in warning for warning in found.store.warnings) is (
        redis.execute("CONFIG", "GET", "appendonly")[1] == b"no"
    )


def test_agents_are_counted_as_they_come_fall_silent_and_go(client: Client) -> None:
    wait_until(lambda: not statistics(client).agents.counting)
    for number in range(5):
        register(client, f"a{number}")
    register(client, "a0", alive=False)
    register(client, "a0", alive=False)
    store(client, "r", agent_id="never registered")
    assert presence(client) == (6, 4, 1)
    assert client.call("Heartbeat", agent_id="a0", last_seen=NOW_S - 5).success
    assert presence(client) == (6, 4, 1)  # not later than what is known
    assert client.call("DeleteAgent", agent_id="a1").success
    assert client.call("DeleteAgent", agent_id="never registered").success
    assert presence(client) == (4, 3, 1)


def test_agents_of_an_earlier_server_are_counted_in_the_background(
    start_server: Callable[..., ServerThread], clock: SteppedClock
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        outcomes = client.call_many(
            "RegisterAgent", ({"agent": {"id": f"a{n}", "alive": n % 4 > 0}} for n in range(3_000))
        )
        assert all(outcome.success for outcome in outcomes)
        store(client, "r", agent_id="never registered")
    first.stop()
    second = start_server(heartbeat_timeout_s=0.5)
    with GrpcioClient(second.address) as client:
        wait_until(lambda: not statistics(client).agents.counting)
        assert statistics(client).agents.known == 3_001
        wait_until(lambda: presence(client) == (3_001, 0, 3_000), timeout_s=20.0)
        clock.now_s += 10
        assert client.call("Heartbeat", agent_id="a0").success
        assert presence(client) == (3_001, 1, 2_999)


def test_results_are_counted_and_their_rate_is_told(client: Client) -> None:
    for number in range(20):
        store(client, f"r{number}")
    store(client, "r0")
    store(client, "r1", data=b"other")
    results = statistics(client).results
    assert (results.stored, results.duplicates, results.conflicts) == (20, 2, 1)
    wait_until(lambda: statistics(client).results.stored_per_second > 0)
    found = statistics(client)
    assert found.server.calls_per_second > 0
    assert found.store.written_bytes_per_second > 0


def test_tasks_are_counted_by_status_and_lateness(client: Client, clock: SteppedClock) -> None:
    schedule(client, "t1", "t2", "t3", "t4", "t5", "t6", max_attempts=1)
    schedule(client, "later", scheduled_at=NOW_S + 1_000)
    (leased,) = lease(client, limit=1)
    assert client.call("AckTask", task_id="t2").success
    assert client.call("NackTask", task_id="t3").success
    assert client.call("CancelTask", task_id="t4").success
    clock.now_s += 61
    schedule(client, "now")
    tasks = statistics(client).tasks
    assert leased.id == "t1"
    assert (tasks.scheduled, tasks.pending, tasks.inflight) == (8, 4, 1)
    assert (tasks.completed, tasks.dead, tasks.cancelled) == (1, 1, 1)
    assert (tasks.due, tasks.late, tasks.oldest_due_seconds) == (3, 2, 61)
    assert tasks.unreadable == ""


def test_retention_tells_what_it_has_deleted(
    start_server: Callable[..., ServerThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_SWEEP_S_MIN", 0.05)
    monkeypatch.setattr(retention, "_SWEEP_S_MAX", 0.05)
    server = start_server(results_max_age_s=3600.0)
    with GrpcioClient(server.address) as client:
        for number in range(10):
            result = {
                "id": f"r{number}",
                "agent_id": "a",
                "module_name": "m",
                "received_at": NOW_S - 7200 + number,
            }
            assert client.call("StoreResult", result=result).success
        wait_until(lambda: statistics(client).results.deleted == 10)
        assert statistics(client).results.horizon == NOW_S - 3600


@pytest.mark.parametrize("count", [10, 3_000])
def test_the_call_asks_redis_nothing_however_much_there_is(
    client: Client, redis: ValkeyServer, count: int
) -> None:
    requests = ({"agent": {"id": f"a{n}", "alive": True}} for n in range(count))
    assert all(one.success for one in client.call_many("RegisterAgent", requests))
    wait_until(lambda: not statistics(client).agents.counting)

    def commands() -> int:
        with redis.client() as connection:
            calls: dict[str, Any] = connection.info("commandstats")
        return sum(
            one["calls"]
            for name, one in calls.items()
            if name.startswith(
                ("cmdstat_h", "cmdstat_ss", "cmdstat_z", "cmdstat_x", "cmdstat_exec")
            )
        )

    before = commands()
    for _ in range(50):
        assert statistics(client).agents.alive == count
    assert commands() == before
