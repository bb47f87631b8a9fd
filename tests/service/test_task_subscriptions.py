"""SubscribeTasks: tasks pushed on a stream, their outcomes on the way back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from dbos_actors.api.messages import SubscribeTasksRequest
from dbos_actors.store import connector_for
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread, SteppedClock
from tests.support.stalling import StallingConnector
from tests.support.subscribers import HandSubscriber
from tests.support.tasks import NOW_S, get, lease, ledger, schedule, task, wait_until
from tests.support.unread import UnreadStream
from tests.support.valkey import ValkeyServer


def held(server: ServerThread) -> int:
    return server.run(server.inside.tasks.statistics).held


def subscribers(server: ServerThread) -> int:
    return server.run(server.inside.tasks.statistics).subscribers


def test_a_task_is_pushed_when_it_is_scheduled_and_its_outcome_rides_back(
    server: ServerThread, client: GrpcioClient
) -> None:
    with HandSubscriber(server.address, worker_id="w", lease_seconds=30) as subscriber:
        schedule(client, "t", payload=b"ping me")
        (pushed,) = subscriber.wait_tasks(1)
        assert (pushed.id, pushed.payload, pushed.status) == ("t", b"ping me", "inflight")
        assert (pushed.visibility_time, pushed.retry_count) == (NOW_S + 30, 0)
        subscriber.ack(pushed)
        (outcome,) = subscriber.wait_outcomes(1)
        assert (outcome.task_id, outcome.success, outcome.error) == ("t", True, "")
        assert get(client).status == "completed"
        assert held(server) == 0


def test_a_task_is_pushed_the_moment_its_second_comes(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(clock=None)
    with (
        GrpcioClient(server.address) as client,
        HandSubscriber(server.address) as subscriber,
    ):
        due_at = int(time.time()) + 2
        schedule(client, "t", scheduled_at=due_at)
        subscriber.wait_tasks(1)
        assert 0.0 <= time.time() - due_at < 0.1


def test_what_was_due_before_is_pushed_in_messages_of_many(
    server: ServerThread, client: GrpcioClient
) -> None:
    client.call_many("ScheduleTask", (task(f"t{n}") for n in range(1_000)))
    with HandSubscriber(server.address, max_in_flight=1_000) as subscriber:
        assert len({one.id for one in subscriber.wait_tasks(1_000)}) == 1_000
        assert subscriber.messages < 100


def test_no_more_than_max_in_flight_are_outstanding(
    server: ServerThread, client: GrpcioClient
) -> None:
    client.call_many("ScheduleTask", (task(f"t{n}") for n in range(50)))
    with HandSubscriber(server.address, max_in_flight=7) as subscriber:
        first = subscriber.wait_tasks(7)
        assert (ledger(server).inflight, len(subscriber.tasks)) == (7, 7)
        subscriber.ack(*first[:3])
        subscriber.nack(first[3], retry_delay_seconds=60)
        assert all(outcome.success for outcome in subscriber.wait_outcomes(4))
        subscriber.wait_tasks(11)
        assert (ledger(server).inflight, len(subscriber.tasks)) == (7, 11)
        # Settled elsewhere also makes room.
        token = first[4].lease_token
        assert client.call("AckTask", task_id=first[4].id, lease_token=token).success
        subscriber.wait_tasks(12)


def test_subscribers_of_one_filter_share_and_those_of_another_get_theirs(
    server: ServerThread, client: GrpcioClient
) -> None:
    with (
        HandSubscriber(server.address, agent_id="a", max_in_flight=1_000) as one,
        HandSubscriber(server.address, agent_id="a", max_in_flight=1_000) as two,
        HandSubscriber(server.address, agent_id="b", module_name="dns") as other,
    ):
        wait_until(lambda: subscribers(server) == 3)
        client.call_many("ScheduleTask", (task(f"t{n}") for n in range(400)))
        schedule(client, "b-ping", agent_id="b")
        schedule(client, "b-dns", agent_id="b", module_name="dns")
        assert [pushed.id for pushed in other.wait_tasks(1)] == ["b-dns"]
        wait_until(lambda: len(one.tasks) + len(two.tasks) == 400)
        assert len({pushed.id for pushed in one.tasks + two.tasks}) == 400
        assert min(len(one.tasks), len(two.tasks)) > 100
        assert get(client, "b-ping").status == "pending"


@pytest.mark.parametrize("way", ["vanish", "finish"])
def test_the_tasks_of_a_subscriber_that_ends_return_at_once(
    server: ServerThread, client: GrpcioClient, way: str
) -> None:
    with HandSubscriber(server.address, lease_seconds=3600, worker_id="w") as subscriber:
        schedule(client, "t", "u", "v")
        first = subscriber.wait_tasks(3)
        subscriber.ack(first[0])
        subscriber.wait_outcomes(1)
        getattr(subscriber, way)()
        wait_until(lambda: ledger(server).inflight == 0)
        assert get(client, first[1].id).last_error == "w vanished"
    again = lease(client)
    assert {one.id for one in again} == {one.id for one in first[1:]}
    stale = client.call("AckTask", task_id=first[1].id, lease_token=first[1].lease_token)
    assert "stale lease_token" in stale.error


def test_a_stream_that_its_client_finishes_ends_well(server: ServerThread) -> None:
    with HandSubscriber(server.address) as subscriber:
        assert subscriber.finish() is None


def test_an_expired_lease_makes_room_for_the_next_delivery(
    server: ServerThread, client: GrpcioClient
) -> None:
    with HandSubscriber(server.address, lease_seconds=1, max_in_flight=1) as subscriber:
        schedule(client, "t")
        first, second = subscriber.wait_tasks(2)
        assert (first.id, second.id, second.retry_count) == ("t", "t", 1)
        subscriber.ack(first)
        assert "stale lease_token" in subscriber.wait_outcomes(1)[0].error
        subscriber.send(
            extend={"task_id": "t", "lease_token": second.lease_token, "lease_seconds": 60}
        )
        assert subscriber.wait_outcomes(2)[1].success
        assert get(client).visibility_time == NOW_S + 60


def test_a_bad_request_on_a_stream_gets_its_own_error_and_the_stream_goes_on(
    server: ServerThread, client: GrpcioClient
) -> None:
    with HandSubscriber(server.address) as subscriber:
        subscriber.send(ack={"task_id": "no such"})
        subscriber.send(ack={})
        subscriber.send(nack={"task_id": "t", "reason": "x" * 70_000})
        subscriber.send(extend={"task_id": "t"})
        errors = sorted(outcome.error for outcome in subscriber.wait_outcomes(4))
        assert errors == [
            "ack.task_id is required",
            "lease_token is required",
            "nack.reason has 70000 bytes, the limit is 65536",
            "unknown task no such",
        ]
        schedule(client, "t")
        subscriber.ack(*subscriber.wait_tasks(1))
        assert subscriber.wait_outcomes(5)[-1].success


@pytest.mark.parametrize(
    ("start", "error"),
    [
        ({"lease_seconds": -1}, "start.lease_seconds must be between 0 and 43200"),
        ({"max_in_flight": 10_001}, "start.max_in_flight must be between 0 and 10000"),
        ({"agent_id": "x" * 257}, "start.agent_id has 257 bytes, the limit is 256"),
    ],
)
def test_a_start_that_cannot_be_granted_ends_the_stream(
    server: ServerThread, start: dict[str, int], error: str
) -> None:
    with HandSubscriber(server.address, **start) as subscriber:
        ended = subscriber.wait_end()
        assert ended is not None
        assert (ended.status, ended.message) == ("FAILED_PRECONDITION", error)


def test_a_stream_begins_with_a_start_and_has_one_only(server: ServerThread) -> None:
    with HandSubscriber(server.address) as subscriber:
        subscriber.send(start={})
        ended = subscriber.wait_end()
        assert ended is not None
        assert ended.message == "request must be ack, nack or extend after the first"
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(
            "/dbos.DBOS/SubscribeTasks",
            request_serializer=SubscribeTasksRequest.SerializeToString,
            response_deserializer=bytes,
        )
        with pytest.raises(grpc.RpcError, match="start is required"):
            list(call(iter([SubscribeTasksRequest(ack={"task_id": "t"})])))
        assert list(call(iter([]))) == []


def test_a_draining_server_settles_what_it_was_sent_and_leaves_the_leases(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server()
    with (
        GrpcioClient(server.address) as client,
        HandSubscriber(server.address, lease_seconds=600) as subscriber,
    ):
        schedule(client, "t", "u")
        first, second = subscriber.wait_tasks(2)
        subscriber.ack(first)
        subscriber.wait_outcomes(1)
        server.drain(5.0)
        ended = subscriber.wait_end()
        assert ended is not None
        assert (ended.status, ended.message) == ("UNAVAILABLE", "the server is draining")
    server.stop()
    with GrpcioClient(start_server().address) as client:
        assert get(client, second.id).status == "inflight"
        assert client.call("AckTask", task_id=second.id, lease_token=second.lease_token).success


def test_nothing_is_pushed_before_its_lease_is_committed(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock
) -> None:
    connector = StallingConnector(connector_for(redis.address))
    server = start_server(connector=connector)
    with (
        GrpcioClient(server.address) as client,
        HandSubscriber(server.address) as subscriber,
    ):
        schedule(client, "t", scheduled_at=NOW_S + 1)
        server.run(connector.stall)
        clock.now_s += 1
        assert connector.has_stalled.wait(5.0)
        assert held(server) == 1
        assert subscriber.tasks == []
        server.run(connector.release)
        assert [one.id for one in subscriber.wait_tasks(1)] == ["t"]


def test_a_subscriber_that_vanishes_before_its_lease_is_committed_keeps_nothing(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock
) -> None:
    connector = StallingConnector(connector_for(redis.address))
    server = start_server(connector=connector)
    with GrpcioClient(server.address) as client:
        with HandSubscriber(server.address) as subscriber:
            schedule(client, "t", scheduled_at=NOW_S + 1)
            server.run(connector.stall)
            clock.now_s += 1
            assert connector.has_stalled.wait(5.0)
            subscriber.vanish()
            wait_until(lambda: subscribers(server) == 0)
            server.run(connector.release)
        wait_until(lambda: get(client).status == "pending")
        assert held(server) == 0
        assert (ledger(server).released, ledger(server).taken_back) == (0, 1)
        (again,) = lease(client)
        assert (again.retry_count, again.last_error) == (0, "")


def test_a_push_under_way_is_sent_before_a_drain_ends_its_stream(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock
) -> None:
    connector = StallingConnector(connector_for(redis.address))
    server = start_server(connector=connector)
    with (
        GrpcioClient(server.address) as client,
        HandSubscriber(server.address, lease_seconds=600) as subscriber,
        ThreadPoolExecutor(1) as pool,
    ):
        schedule(client, "t", scheduled_at=NOW_S + 1)
        server.run(connector.stall)
        clock.now_s += 1
        assert connector.has_stalled.wait(5.0)
        draining = pool.submit(server.drain, 10.0)
        wait_until(lambda: subscribers(server) == 0)
        server.run(connector.release)
        ended = subscriber.wait_end()
        assert ended is not None
        assert (ended.status, ended.message) == ("UNAVAILABLE", "the server is draining")
        draining.result()
        (pushed,) = subscriber.tasks
    server.stop()
    with GrpcioClient(start_server().address) as client:
        assert client.call("AckTask", task_id="t", lease_token=pushed.lease_token).success


def test_a_drain_takes_back_what_its_client_does_not_read(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        client.call_many("ScheduleTask", (task(f"t{n}", payload=b"x" * 20_000) for n in range(20)))
        with silent_subscriber(server):
            wait_until(lambda: held(server) == 20)
            server.drain(2.0)
    server.stop()
    with GrpcioClient(start_server().address) as client:
        tasks = [get(client, f"t{n}") for n in range(20)]
        inflight = [one for one in tasks if one.status == "inflight"]
        # The stream's window is 64 KiB.
        assert len(inflight) <= 3
        again = lease(client, limit=20)
        assert len(again) == 20 - len(inflight)
        assert {one.retry_count for one in again} == {0}


def test_tasks_that_no_worker_was_sent_do_not_die_of_workers_that_crash(
    server: ServerThread, client: GrpcioClient
) -> None:
    """Each crashed worker was sent the 64 KiB of its stream's window: some 30 tasks."""
    client.call_many("ScheduleTask", (task(f"t{n}", payload=b"x" * 2_000) for n in range(1_000)))
    for _ in range(6):
        with silent_subscriber(server):
            wait_until(lambda: held(server) >= 400)
        wait_until(lambda: ledger(server).inflight == 0)
    found = ledger(server)
    assert found.dead <= 40
    assert found.released <= 6 * 40
    assert found.taken_back >= 6 * 360


def test_what_is_being_leased_counts_as_unsent(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock
) -> None:
    connector = StallingConnector(connector_for(redis.address))
    server = start_server(connector=connector)
    with (
        GrpcioClient(server.address) as client,
        HandSubscriber(server.address, max_in_flight=10_000) as subscriber,
    ):
        size = 100_000
        client.call_many(
            "ScheduleTask",
            (task(f"t{n}", payload=b"x" * size, scheduled_at=NOW_S + 1) for n in range(200)),
        )
        server.run(connector.stall)
        clock.now_s += 1
        assert connector.has_stalled.wait(5.0)
        # Its turns begin in one step, before any commit is answered.
        assert 0 < held(server) * size <= (1 << 20) + size
        server.run(connector.release)
        assert len({one.id for one in subscriber.wait_tasks(200)}) == 200


@contextmanager
def silent_subscriber(server: ServerThread) -> Iterator[None]:
    """A worker that reads nothing of what it is sent, and is gone at the end."""

    def start() -> Iterator[bytes]:
        yield SubscribeTasksRequest(
            start={"max_in_flight": 1_000, "lease_seconds": 600}
        ).SerializeToString()

    stream = UnreadStream(server.address, "/dbos.DBOS/SubscribeTasks", start())
    stream.send()
    try:
        yield
    finally:
        stream.sock.close()
