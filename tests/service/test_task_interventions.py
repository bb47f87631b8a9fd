"""CancelTask and RequeueTask through real clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.clients import Client, GrpcioClient, open_client
from tests.support.servers import ServerThread
from tests.support.subscribers import HandSubscriber
from tests.support.tasks import NOW_S, events, get, kept, lease, ledger, schedule, task
from tests.support.valkey import ValkeyServer


@pytest.fixture(params=["grpcio-today", "aio-today", "sdk"])
def client(server: ServerThread, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of every kind that knows the methods."""
    with open_client(request.param, server.address) as client:
        yield client


def cancel(client: Client, task_id: str = "t", reason: str = "") -> str:
    response = client.call("CancelTask", task_id=task_id, reason=reason)
    assert response.success is not bool(response.error)
    return str(response.error)


def requeue(client: Client, task_id: str = "t", scheduled_at: int = 0) -> str:
    response = client.call("RequeueTask", task_id=task_id, scheduled_at=scheduled_at)
    assert response.success is not bool(response.error)
    return str(response.error)


def test_a_cancelled_task_is_handed_to_nobody_and_the_ledger_knows_it(
    client: Client, server: ServerThread
) -> None:
    schedule(client, "t", "u")
    assert cancel(client, "t", "not needed") == ""
    assert cancel(client, "t", "again") == ""
    assert [one.id for one in lease(client)] == ["u"]
    assert (get(client).status, get(client).last_error) == ("cancelled", "not needed")
    assert [one.id for one in client.call("ListTasks", status="cancelled").tasks] == ["t"]
    statistics = ledger(server)
    assert (statistics.scheduled, statistics.inflight, statistics.cancelled) == (2, 1, 1)
    (event,) = events(client)
    assert event["type"] == "task.cancelled"
    assert event["message"] == "task t of agent a is cancelled"
    assert event["metadata"]["error"] == "not needed"


def test_cancelling_an_inflight_task_fences_its_workers_token(client: Client) -> None:
    schedule(client, "t")
    (leased,) = lease(client, worker_id="w")
    assert cancel(client) == ""
    delivery = {"task_id": "t", "lease_token": leased.lease_token}
    for method in ("AckTask", "NackTask", "ExtendLease"):
        response = client.call(method, **delivery)
        assert response.error == (
            "stale lease_token for task t: the delivery was cancelled, the task is cancelled"
        )
    assert client.call("AckTask", task_id="t").error == "invalid transition cancelled -> completed"


def test_a_task_that_was_pushed_makes_room_for_another_when_it_is_cancelled(
    client: Client, server: ServerThread
) -> None:
    schedule(client, "t")
    with HandSubscriber(server.address, max_in_flight=1, worker_id="w") as worker:
        worker.wait_tasks(1)
        schedule(client, "u")
        assert cancel(client, "t") == ""
        assert [one.id for one in worker.wait_tasks(2)] == ["t", "u"]


def test_what_has_ended_is_not_cancelled_and_what_is_completed_is_not_requeued(
    client: Client,
) -> None:
    schedule(client, "done", "dead", max_attempts=1)
    assert client.call("AckTask", task_id="done").success
    assert client.call("NackTask", task_id="dead").success
    assert cancel(client, "done") == "invalid transition completed -> cancelled"
    assert cancel(client, "dead") == "invalid transition dead -> cancelled"
    assert requeue(client, "done") == "invalid transition completed -> pending"
    assert cancel(client, "x") == requeue(client, "x") == "unknown task x"
    assert cancel(client, "") == requeue(client, "") == "task_id is required"
    assert requeue(client, "dead", -1).startswith("scheduled_at must be Unix seconds")
    assert get(client, "dead").status == "dead"
    too_long = client.call("CancelTask", task_id="t", reason="r" * 65537).error
    assert too_long == "reason has 65537 bytes, the limit is 65536"


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_a_requeued_task_starts_anew_with_its_payload_and_survives_a_restart(
    redis: ValkeyServer, start_server: Callable[..., ServerThread], size: int
) -> None:
    payload = b"x" * size
    first = start_server()
    with GrpcioClient(first.address) as client:
        schedule(client, "t", max_attempts=1, payload=payload, created_at=NOW_S - 50)
        (leased,) = lease(client)
        assert client.call("NackTask", task_id="t", lease_token=leased.lease_token).success
        assert requeue(client) == ""
        assert requeue(client) == ""
        found = get(client)
        assert (found.status, found.retry_count, found.last_error) == ("pending", 0, "")
        assert (found.created_at, found.payload) == (NOW_S - 50, payload)
        assert ledger(first).requeued == 1
        assert [event["type"] for event in events(client)] == ["task.requeued", "task.dead"]
    first.stop()
    assert kept(redis).counters().pending == 1
    second = start_server()
    with GrpcioClient(second.address) as client:
        (leased,) = lease(client)
        assert (leased.payload, leased.retry_count) == (payload, 0)
        assert client.call("AckTask", task_id="t", lease_token=leased.lease_token).success


def test_a_cancelled_task_is_requeued_for_a_time_and_only_by_a_requeue(
    client: Client,
) -> None:
    schedule(client, "t")
    assert cancel(client) == ""
    copy = client.call("ScheduleTask", **task("t"), revive=True)
    assert copy.success
    assert get(client).status == "cancelled"
    other = client.call("ScheduleTask", **task("t", payload=b"other"), revive=True)
    assert other.error.startswith("task t is cancelled: RequeueTask makes it pending again")
    assert requeue(client, "t", NOW_S + 1_000_000_000) == ""
    assert (get(client).status, get(client).scheduled_at) == ("pending", NOW_S + 1_000_000_000)
    assert lease(client) == []
    assert cancel(client) == ""
    assert requeue(client) == ""
    assert [one.id for one in lease(client)] == ["t"]


def test_a_task_whose_payload_is_damaged_is_not_requeued(
    redis: ValkeyServer, client: Client
) -> None:
    schedule(client, "t")
    assert cancel(client) == ""
    redis.execute("HSET", "dbos:{p0}:tasks", "t", b"\xff\xff")
    assert requeue(client).startswith("task t is damaged")
    (listed,) = client.call("ListTasks").tasks
    assert listed.status == "cancelled"
