"""Tasks through real clients: scheduled, due, leased, acknowledged, retried, dead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clients import Client, GrpcioClient
from tests.support.contracts import contract
from tests.support.servers import ServerThread, SteppedClock
from tests.support.tasks import NOW_S, events, get, lease, ledger, schedule, task, wait_until

# ----------------------------------------------------- the calls of the first generations


def knows(client: Client, method: str) -> bool:
    """The first generation could not acknowledge anything."""
    return method in contract(client.generation).methods


def test_a_task_is_scheduled_listed_and_acknowledged_by_every_client(any_client: Client) -> None:
    schedule(any_client, "t", scheduled_at=NOW_S - 5, created_at=NOW_S - 9)
    (listed,) = any_client.call("ListDueTasks").tasks
    found = get(any_client)
    for one in (listed, found):
        assert (one.id, one.agent_id, one.module_name, one.payload) == ("t", "a", "ping", b"p")
        assert (one.scheduled_at, one.created_at) == (NOW_S - 5, NOW_S - 9)
        assert one.status == "pending"
    if not knows(any_client, "AckTask"):
        return
    assert any_client.call("AckTask", task_id="t").success
    assert not any_client.call("ListDueTasks").tasks
    assert get(any_client).status == "completed"


def test_a_task_given_back_without_a_token_is_due_again(any_client: Client) -> None:
    if not knows(any_client, "NackTask"):
        return
    schedule(any_client, "t")
    assert any_client.call("NackTask", task_id="t").success
    assert [one.id for one in any_client.call("ListDueTasks").tasks] == ["t"]
    assert get(any_client).status == "pending"


@pytest.mark.parametrize(
    ("method", "fields", "error"),
    [
        ("ScheduleTask", {}, "task is required"),
        ("ScheduleTask", {"task": {"agent_id": "a"}}, "task.id is required"),
        ("ScheduleTask", {"task": {"id": "t"}}, "task.agent_id is required"),
        ("ScheduleTask", {"task": {"id": "t", "agent_id": "a"}}, "task.module_name is required"),
        ("GetTask", {}, "task_id is required"),
        ("GetTask", {"task_id": "x"}, "unknown task x"),
        ("AckTask", {}, "task_id is required"),
        ("AckTask", {"task_id": "x"}, "unknown task x"),
        ("NackTask", {}, "task_id is required"),
        ("NackTask", {"task_id": "x"}, "unknown task x"),
        (
            "NackTask",
            {"task_id": "x", "retry_delay_seconds": -1},
            "retry_delay_seconds must be between 0 and 2592000",
        ),
    ],
)
def test_what_cannot_be_granted_is_refused_in_band(
    any_client: Client, method: str, fields: dict[str, Any], error: str
) -> None:
    if knows(any_client, method):
        assert any_client.call(method, **fields).error == error


def test_a_timestamp_lists_what_will_be_due_by_then_oldest_first(client: Client) -> None:
    schedule(client, "later", scheduled_at=NOW_S + 100)
    schedule(client, "old", scheduled_at=NOW_S - 100)
    schedule(client, "now", "also now")

    def listed(**fields: Any) -> list[str]:
        return [one.id for one in client.call("ListDueTasks", **fields).tasks]

    assert listed() == ["old", "also now", "now"]  # of the same second in order of their ids
    assert listed(timestamp=NOW_S - 1) == ["old"]
    assert listed(timestamp=NOW_S - 101) == []
    assert listed(timestamp=NOW_S + 100) == ["old", "also now", "now", "later"]
    assert listed(limit=2) == ["old", "also now"]
    assert listed(agent_id="b") == []
    assert listed(agent_id="a", module_name="ping", limit=1) == ["old"]
    assert listed(module_name="dns") == []
    assert client.call("ListDueTasks", limit=-1).error == "limit must not be negative"


def test_listing_changes_nothing_unless_the_server_is_told_to_lease(
    start_server: Callable[..., ServerThread],
) -> None:
    with GrpcioClient(start_server().address, "b") as client:
        schedule(client, "t")
        assert client.call("ListDueTasks").tasks == client.call("ListDueTasks").tasks != []


def test_a_server_told_to_lease_what_it_lists_gives_each_task_to_one_poller(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(due_tasks_lease_s=300)
    with GrpcioClient(server.address, "b") as client:
        schedule(client, "new")
        schedule(client, "old", scheduled_at=NOW_S - 100)
        schedule(client, "future", scheduled_at=NOW_S + 100)
        (first,) = client.call("ListDueTasks", timestamp=NOW_S - 1).tasks
        assert (first.id, first.status, first.visibility_time) == ("old", "inflight", NOW_S + 300)
        (second,) = client.call("ListDueTasks", timestamp=NOW_S + 500).tasks
        assert second.id == "new"
        assert not client.call("ListDueTasks").tasks
        assert client.call("AckTask", task_id="old").success
        assert client.call("NackTask", task_id="new").success
        assert [one.id for one in client.call("ListDueTasks").tasks] == ["new"]


# ----------------------------------------------------------------- scheduling


def test_a_pending_task_may_be_changed_and_is_read_as_changed(client: Client) -> None:
    schedule(client, "t", payload=b"one", scheduled_at=NOW_S + 100)
    schedule(client, "t", payload=b"two", agent_id="b")
    found = get(client)
    assert (found.payload, found.agent_id, found.scheduled_at) == (b"two", "b", NOW_S)
    assert lease(client, agent_id="a") == []
    assert [one.payload for one in lease(client, agent_id="b")] == [b"two"]


def test_an_inflight_or_completed_task_may_be_repeated_but_not_changed(client: Client) -> None:
    schedule(client, "t")
    (leased,) = lease(client)
    schedule(client, "t")
    refused = client.call("ScheduleTask", **task(payload=b"other"))
    assert refused.error == "invalid transition inflight -> pending"
    assert client.call("AckTask", task_id="t", lease_token=leased.lease_token).success
    schedule(client, "t")
    refused = client.call("ScheduleTask", **task(payload=b"other"))
    assert refused.error == "invalid transition completed -> pending"
    assert get(client).payload == b"p"


def test_what_the_client_says_of_a_tasks_state_is_ignored(client: Client) -> None:
    schedule(client, "t", status="completed", retry_count=7, visibility_time=9, lease_token="x")
    found = get(client)
    assert (found.status, found.retry_count, found.lease_token) == ("pending", 0, "")
    assert found.visibility_time == 0


def test_a_large_payload_is_kept_out_of_memory_and_handed_out_whole(
    client: Client, server: ServerThread
) -> None:
    payload = bytes(range(256)) * 4096
    schedule(client, "t", payload=payload)
    assert lease(client)[0].payload == payload
    assert get(client).payload == payload
    refused = client.call("ScheduleTask", **task("u", payload=payload + b"x"))
    assert refused.error == "task.payload has 1048577 bytes, the limit is 1048576"


def test_a_lease_takes_no_more_than_fits_into_a_message(client: Client) -> None:
    payload = b"x" * (1 << 20)
    schedule(client, *(f"t{number}" for number in range(5)), payload=payload)
    taken = [len(lease(client, limit=100)) for _ in range(3)]
    assert taken == [3, 2, 0]
    assert len(client.call("ListDueTasks").tasks) == 0


# -------------------------------------------------------------------- leasing


def test_a_lease_is_fenced_by_its_token(client: Client, clock: SteppedClock) -> None:
    schedule(client, "t")
    (leased,) = lease(client, lease_seconds=30, worker_id="w")
    assert (leased.status, leased.visibility_time) == ("inflight", NOW_S + 30)
    assert (leased.retry_count, leased.max_attempts, len(leased.lease_token)) == (0, 5, 16)
    stale = client.call("AckTask", task_id="t", lease_token="f" * 16)
    assert "stale lease_token for task t" in stale.error
    assert client.call("ExtendLease", task_id="t", lease_token=leased.lease_token).success
    assert get(client).visibility_time == NOW_S + 60
    for _ in range(3):
        assert client.call("AckTask", task_id="t", lease_token=leased.lease_token).success
    late = client.call("NackTask", task_id="t", lease_token=leased.lease_token)
    assert late.error.startswith("stale lease_token for task t: the delivery was acknowledged")


def test_a_nack_waits_out_its_delay_and_keeps_its_reason(client: Client) -> None:
    schedule(client, "t")
    (leased,) = lease(client)
    fields = {"task_id": "t", "lease_token": leased.lease_token, "reason": "no route"}
    assert client.call("NackTask", retry_delay_seconds=1, **fields).success
    found = get(client)
    assert (found.status, found.last_error) == ("pending", "no route")
    assert found.visibility_time == NOW_S + 1
    assert lease(client) == []
    began = time.monotonic()
    wait_until(lambda: bool(lease(client)))
    assert time.monotonic() - began > 0.8
    assert get(client).retry_count == 1


def test_a_lease_that_runs_out_returns_the_task_by_itself(
    client: Client, server: ServerThread
) -> None:
    schedule(client, "t", max_attempts=2)
    (first,) = lease(client, lease_seconds=1, worker_id="w")
    wait_until(lambda: get(client).status == "pending")
    assert get(client).last_error == "lease of w expired after 1 s"
    stale = client.call("AckTask", task_id="t", lease_token=first.lease_token)
    assert "the lease has expired" in stale.error
    (second,) = lease(client, lease_seconds=1)
    assert (second.retry_count, second.lease_token == first.lease_token) == (1, False)
    wait_until(lambda: get(client).status == "dead")
    assert ledger(server).dead == 1
    (died,) = events(client)
    assert died["type"] == "task.dead"
    assert died["metadata"]["error"] == "lease of an unnamed worker expired after 1 s"


def test_a_dead_task_is_listed_and_starts_anew_when_it_is_revived(
    client: Client, server: ServerThread
) -> None:
    schedule(client, "t", "u", max_attempts=1)
    for leased in lease(client):
        fields = {"task_id": leased.id, "lease_token": leased.lease_token, "reason": "broken"}
        assert client.call("NackTask", **fields).success
    dead = client.call("ListTasks", status="dead").tasks
    assert [(one.id, one.last_error, one.payload) for one in dead] == [
        ("t", "broken", b"p"),
        ("u", "broken", b"p"),
    ]
    assert lease(client) == []
    # A copy of the first request that comes late, and another task of that id.
    schedule(client, "t", max_attempts=1)
    refused = client.call("ScheduleTask", **task("t", payload=b"better"))
    assert refused.error == "task t is dead: set revive to schedule it anew"
    assert get(client).status == "dead"
    assert client.call("ScheduleTask", **task("t", payload=b"better"), revive=True).success
    (leased,) = lease(client)
    assert (leased.payload, leased.retry_count, leased.last_error) == (b"better", 0, "")
    statistics = ledger(server)
    assert (statistics.scheduled, statistics.inflight, statistics.dead) == (2, 1, 1)


def test_a_lease_whose_answer_was_lost_is_asked_for_again_by_its_key(
    start_server: Callable[..., ServerThread],
) -> None:
    first = start_server()
    request = {"limit": 2, "worker_id": "w", "request_key": "k1"}
    with GrpcioClient(first.address) as client:
        assert lease(client, **request) == []  # an empty answer is none that could be lost
        schedule(client, "t", "u", "v")
        leased = lease(client, **request)
        assert [one.id for one in leased] == ["t", "u"]
        assert lease(client, **request) == leased
        assert [one.id for one in lease(client, **{**request, "worker_id": "x"})] == ["v"]
        token = leased[0].lease_token
        assert client.call("AckTask", task_id="t", lease_token=token).success
    first.stop()
    second = start_server()
    with GrpcioClient(second.address) as client:
        assert lease(client, **request) == leased[1:]
        assert ledger(second).inflight == 2
        too_long = client.call("LeaseTasks", request_key="k" * 257)
        assert too_long.error == "request_key has 257 bytes, the limit is 256"


def test_an_unfenced_return_sent_again_uses_up_one_delivery(client: Client) -> None:
    schedule(client, "t", max_attempts=2)
    for _ in range(5):
        assert client.call("NackTask", task_id="t", retry_delay_seconds=60).success
    assert (get(client).status, get(client).retry_count) == ("pending", 0)


def test_one_agents_backlog_never_starves_another(client: Client) -> None:
    outcomes = client.call_many("ScheduleTask", (task(f"big{n:03}", "big") for n in range(300)))
    assert all(outcome.success for outcome in outcomes)
    schedule(client, "small", agent_id="small")
    assert "small" in [one.id for one in lease(client, limit=2)]


def test_lists_of_tasks_are_paged_by_id_and_filtered(client: Client) -> None:
    client.call_many("ScheduleTask", (task(f"t{n:03}", f"a{n % 3}") for n in range(100)))
    assert len(client.call("ListTasks").tasks) == 100
    found: list[str] = []
    token = ""
    while True:
        page = client.call("ListTasks", agent_id="a1", page_size=10, page_token=token)
        found += [one.id for one in page.tasks]
        token = page.next_page_token
        if not token:
            break
        client.call("ScheduleTask", **task("t000a", "a1"))  # before the position: not seen
    assert found == [f"t{n:03}" for n in range(1, 100, 3)]
    assert not client.call("ListTasks", status="inflight").tasks
    assert client.call("ListTasks", status="lost").error.startswith("status must be one of pending")
