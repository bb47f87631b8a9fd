"""How tasks end, through real clients: one event each, retention, deletion."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.clients import Client, GrpcioClient
from tests.support.servers import ServerThread, SteppedClock
from tests.support.tasks import NOW_S, events, get, kept, lease, ledger, schedule, task, wait_until
from tests.support.valkey import ValkeyServer

# ------------------------------------------------------- events, retention, deletion


def test_every_task_ends_in_one_event_written_with_its_end(
    client: Client, server: ServerThread
) -> None:
    schedule(client, "done")
    schedule(client, "failed", max_attempts=1)
    for leased in lease(client):
        fields = {"task_id": leased.id, "lease_token": leased.lease_token}
        method = "AckTask" if leased.id == "done" else "NackTask"
        for _ in range(2):
            assert client.call(method, **fields).success
    written = {event["metadata"]["task_id"]: event for event in events(client)}
    assert len(events(client)) == 2
    assert written["done"]["type"] == "task.completed"
    assert written["done"]["metadata"]["deliveries"] == "1"
    assert written["failed"]["type"] == "task.dead"


def test_an_event_is_json_whatever_a_task_is_called(client: Client) -> None:
    name = 'quote " back \\ line \n tab \t null \x00 \x7f é \u2028 \U0001f4a5'
    schedule(client, name, agent_id=name, module_name=name, max_attempts=1)
    assert client.call("NackTask", task_id=name, reason=name).success
    (written,) = events(client)
    assert written == {
        "type": "task.dead",
        "message": f"task {name} of agent {name} is dead",
        "metadata": {
            "task_id": name,
            "agent_id": name,
            "module_name": name,
            "lateness_ms": "0",
            "deliveries": "1",
            "error": name,
        },
        "timestamp": NOW_S,
    }


def test_completed_tasks_are_dropped_after_their_retention(
    start_server: Callable[..., ServerThread], clock: SteppedClock, redis: ValkeyServer
) -> None:
    first = start_server(tasks_max_age_s=3600)
    with GrpcioClient(first.address) as client:
        schedule(client, "t", "u")
        assert client.call("AckTask", task_id="t").success
        clock.now_s += 3700
        # The clock has jumped, and nothing else has aged. Enough turns for it to be noticed.
        client.call_many("ScheduleTask", (task(f"v{n}", "doomed") for n in range(50)))
        schedule(client, "t")
        assert get(client).status == "completed"
        assert client.call("DeleteAgent", agent_id="doomed").success
    first.stop()
    server = start_server(tasks_max_age_s=3600)
    with GrpcioClient(server.address) as client:
        wait_until(lambda: not client.call("GetTask", task_id="t").found)
        assert get(client, "u").status == "pending"
        statistics = ledger(server)
        assert (statistics.completed, statistics.completed_kept) == (1, 0)
        wait_until(lambda: redis.execute("HKEYS", "dbos:{p0}:tasks") == [b"u"])


def test_dead_and_completed_tasks_never_stand_in_the_way_of_new_ones(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    server = start_server(tasks_max=50, completed_tasks_max=10, dead_tasks_max=20)
    with GrpcioClient(server.address) as client:
        for number in range(200):
            name = f"t{number}"
            schedule(client, name, max_attempts=1)
            method = "NackTask" if number % 2 else "AckTask"
            assert client.call(method, task_id=name).success
            if number % 10 == 9:  # it is dropped in the background
                wait_until(lambda: ledger(server).retired_early >= number - 40)  # noqa: B023
        wait_until(lambda: ledger(server).dead == 20)
        statistics = ledger(server)
        assert (statistics.retired, statistics.retired_dead) == (90, 80)
        assert (statistics.completed, statistics.completed_kept) == (100, 10)
        assert statistics.retired_early == 170
        assert {one.id for one in client.call("ListTasks", status="dead").tasks} == {
            f"t{number}" for number in range(161, 200, 2)
        }
    wait_until(lambda: redis.execute("HLEN", "dbos:{p0}:tasks") == 30)
    server.stop()
    assert len(kept(redis)) == 30


def test_a_deleted_agents_tasks_go_with_it_but_for_what_was_completed(
    client: Client, server: ServerThread, redis: ValkeyServer
) -> None:
    client.call_many("ScheduleTask", (task(f"t{n}", "doomed") for n in range(1_500)))
    schedule(client, "other", agent_id="stays")
    leased = lease(client, agent_id="doomed", limit=2)
    assert client.call("AckTask", task_id=leased[0].id).success
    assert client.call("DeleteAgent", agent_id="doomed").success
    stale = client.call("AckTask", task_id=leased[1].id, lease_token=leased[1].lease_token)
    assert stale.error == f"unknown task {leased[1].id}"
    statistics = ledger(server)
    assert (statistics.scheduled, statistics.deleted, statistics.completed) == (2, 1_499, 1)
    assert [one.id for one in client.call("ListDueTasks").tasks] == ["other"]
    assert redis.execute("HLEN", "dbos:{p0}:tasks") == 2
