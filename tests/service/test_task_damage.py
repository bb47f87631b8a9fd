"""Damage to what Redis holds of the tasks: what is still served, what is said, what mends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest
import trio

from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.assembly import TASKS_HEALTH
from dbos_actors.domain.tasks.salvage import Salvage, Salvager
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.rpc.server.health import HealthCheckRequest, HealthCheckResponse
from dbos_actors.store.keys import Keys
from tests.support.clients import CallError, GrpcioClient
from tests.support.servers import ServerThread
from tests.support.subscribers import HandSubscriber
from tests.support.tasks import get, kept, lease, ledger, schedule, task, wait_until
from tests.support.valkey import ValkeyServer

KEYS = Keys()
TASKS, JOURNAL, SNAPSHOT = KEYS.tasks, KEYS.tasks_journal, KEYS.tasks_snapshot


def damage_entry(redis: ValkeyServer) -> None:
    """Put garbage in the place of the second entry and keep those behind it."""
    entries = redis.execute("XRANGE", JOURNAL, "-", "+")
    redis.execute("DEL", JOURNAL)
    for number, (entry_id, fields) in enumerate(entries):
        data = b"garbage" if number == 1 else fields[b"e"]
        redis.execute("XADD", JOURNAL, entry_id, "e", data)


def damage_snapshot(redis: ValkeyServer) -> None:
    redis.execute("HSET", SNAPSHOT, "generation", 1, "sequence", 3)
    redis.execute("RPUSH", f"{KEYS.tasks_snapshots}1", b"garbage")


DAMAGES: list[tuple[Callable[[ValkeyServer], Any], str]] = [
    (lambda r: r.execute("XDEL", JOURNAL, "2-0"), "journal entry 2 is missing, 3 is next"),
    (lambda r: r.execute("DEL", JOURNAL), "tasks holds 3 tasks, snapshot and journal know 0"),
    (lambda r: r.execute("XDEL", JOURNAL, "3-0"), "holds 3 tasks, snapshot and journal know 2"),
    (damage_entry, "damaged journal entry"),
    (damage_snapshot, "unknown kind of snapshot chunk"),
    (
        lambda r: r.execute("HSET", SNAPSHOT, "generation", "one", "sequence", "1"),
        "not two numbers",
    ),
    (lambda r: r.execute("SET", SNAPSHOT, "x"), "tasks:snapshot is a string, not a hash"),
    (
        lambda r: (r.execute("DEL", JOURNAL), r.execute("SADD", JOURNAL, "x")),
        "tasks:journal is a set, not a stream",
    ),
    (lambda r: r.execute("XADD", JOURNAL, "4-0", "e", b"\x01" * 25), "journal entry"),
]


def health_of(server: ServerThread, service: str) -> str:
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        status = check(HealthCheckRequest(service=service), timeout=10).status
    return str(HealthCheckResponse.ServingStatus.Name(status))


def salvaged(redis: ValkeyServer) -> Salvage:
    """Read what is readable, and write it in the place of what is there, as a repair does."""
    salvager = Salvager()
    with redis.client() as connection:
        client: Any = connection

        def is_a(key: str, kind: bytes) -> bool:
            return bool(client.type(key) == kind)

        values: Sequence[Any] = (None, None)
        if is_a(SNAPSHOT, b"hash"):
            values = client.hmget(SNAPSHOT, "generation", "sequence")
        generation, sequence = (
            int(value) if value is not None and value.isdigit() else 0 for value in values
        )
        chunks = client.lrange(f"{KEYS.tasks_snapshots}{generation}", 0, -1)
        salvager.read_snapshot(chunks, sequence)
        if is_a(JOURNAL, b"stream"):
            salvager.read_journal(
                (entry_id, [part for pair in fields.items() for part in pair])
                for entry_id, fields in client.xrange(JOURNAL)
            )
        salvager.read_records(client.hscan_iter(TASKS))
        found = salvager.finish(Now(time.time(), 0.0))
        commits = TaskCommands(KEYS).rebuild(
            generation + 1, found.book.sequence, found.snapshot(), list(found.dropped)
        )
        for commit in commits:
            for command in commit:
                send(client, command)
    return found


def send(client: Any, command: bytes) -> None:
    connection = client.connection_pool.get_connection()
    try:
        connection.send_packed_command([command])
        connection.read_response()
    finally:
        client.connection_pool.release(connection)


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_damaged_tasks_alone_are_refused_until_they_are_repaired(
    damage: Callable[[ValkeyServer], Any],
    told: str,
    start_server: Callable[..., ServerThread],
    redis: ValkeyServer,
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        schedule(client, "t", "u", "v")
        client.call("RegisterAgent", agent={"id": "a", "hostname": "h"})
        assert health_of(server, TASKS_HEALTH) == "SERVING"
    server.stop()
    damage(redis)

    server = start_server()
    with GrpcioClient(server.address) as client:
        result = {"id": "r", "agent_id": "a", "module_name": "ping"}
        assert client.call("StoreResult", result=result).success
        assert client.call("GetAgent", agent_id="a").found
        refused: list[tuple[str, dict[str, Any]]] = [
            ("ScheduleTask", task("w")),
            ("GetTask", {"task_id": "t"}),
            ("LeaseTasks", {}),
            ("ListDueTasks", {}),
            ("ListTasks", {}),
            ("AckTask", {"task_id": "t"}),
            ("DeleteAgent", {"agent_id": "a"}),
        ]
        for method, fields in refused:
            with pytest.raises(CallError, match="run 'dbos-actors repair'") as caught:
                client.call(method, **fields)
            assert caught.value.status == "UNAVAILABLE"
            assert told in caught.value.message
        # The deletion has not begun, and so keeps nobody out.
        assert client.call("GetAgent", agent_id="a").found
    assert health_of(server, "") == "SERVING"
    assert health_of(server, TASKS_HEALTH) == "NOT_SERVING"
    assert server.run(server.inside.tasks.statistics).readable is False
    server.stop()

    salvaged(redis)
    server = start_server()
    with GrpcioClient(server.address) as client:
        assert {one.id for one in lease(client)} == {"t", "u", "v"}
        schedule(client, "w")
    assert ledger(server).readable is True
    server.stop()
    assert len(kept(redis)) == 4


def test_a_server_that_finds_its_tasks_damaged_while_it_runs_goes_on_without_them(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        schedule(client, "t", "u", "v")
        entries = redis.execute("XRANGE", JOURNAL, "-", "+")
        redis.execute("XDEL", JOURNAL, "2-0")
        trio.from_thread.run_sync(server.inside.tasks.reload, trio_token=server.token)
        wait_until(lambda: not server.run(server.inside.tasks.statistics).readable)
        with pytest.raises(CallError, match="journal entry 2 is missing"):
            client.call("GetTask", task_id="t")
        assert client.call("RegisterAgent", agent={"id": "a", "hostname": "h"}).success
        # The store is another one again, such as a replica that was promoted: it is read anew.
        redis.execute("DEL", JOURNAL)
        for entry_id, fields in entries:
            redis.execute("XADD", JOURNAL, entry_id, "e", fields[b"e"])
        trio.from_thread.run_sync(server.inside.tasks.reload, trio_token=server.token)
        assert get(client, "u").status == "pending"
        assert ledger(server).readable is True


# ------------------------------------------------------------------- one damaged task


UNREADABLE = b"\x0a\xff"
"""Undecodable: a length that is not followed by so many bytes."""


@pytest.fixture
def damaged(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> Iterator[tuple[GrpcioClient, ServerThread]]:
    """A client of a server with due tasks t0 to t4; t1 cannot be read, t3 is lost."""
    server = start_server()
    with GrpcioClient(server.address) as client:
        schedule(client, *(f"t{i}" for i in range(5)))
        redis.execute("HSET", TASKS, "t1", UNREADABLE)
        redis.execute("HDEL", TASKS, "t3")
        yield client, server


def dead(client: GrpcioClient) -> dict[str, str]:
    return {one.id: one.last_error for one in client.call("ListTasks", status="dead").tasks}


def test_a_damaged_task_is_read_as_damaged(damaged: tuple[GrpcioClient, ServerThread]) -> None:
    client, server = damaged
    before = server.run(server.inside.tasks.statistics).sequence
    for task_id in ("t1", "t3"):
        response = client.call("GetTask", task_id=task_id, timeout_s=5)
        assert not response.found
        assert response.error.startswith(f"task {task_id} is damaged")
    assert get(client, "t0").payload == b"p"
    assert server.run(server.inside.tasks.statistics).sequence == before


def test_a_task_that_holds_another_content_than_was_scheduled_is_damaged(
    client: GrpcioClient, redis: ValkeyServer
) -> None:
    schedule(client, "t", "u")
    other = redis.execute("HGET", TASKS, "u")
    redis.execute("HSET", TASKS, "t", other.replace(b"ping", b"pong"))
    assert "is damaged" in client.call("GetTask", task_id="t", timeout_s=5).error


def test_damaged_tasks_spoil_no_lease_and_die(
    damaged: tuple[GrpcioClient, ServerThread], redis: ValkeyServer
) -> None:
    client, server = damaged
    assert [one.id for one in lease(client, lease_seconds=3600)] == ["t0", "t2", "t4"]
    wait_until(lambda: ledger(server).damaged == 2)
    statistics = ledger(server)
    assert (statistics.inflight, statistics.dead, statistics.damaged) == (3, 2, 2)
    # The one that is lost altogether has nothing to be listed with.
    assert dead(client) == {"t1": "what Redis holds of it cannot be read"}
    revived = {**task("t1"), "revive": True}
    assert client.call("ScheduleTask", **revived).success
    assert [(one.id, one.payload) for one in lease(client)] == [("t1", b"p")]


def test_a_damaged_task_spoils_no_listing(damaged: tuple[GrpcioClient, ServerThread]) -> None:
    client, server = damaged
    assert [one.id for one in client.call("ListTasks").tasks] == ["t0", "t1", "t2", "t4"]
    assert [one.id for one in client.call("ListDueTasks").tasks] == ["t0", "t2", "t4"]
    wait_until(lambda: ledger(server).dead == 1)
    assert dead(client) == {"t1": "what Redis holds of it cannot be read"}


def test_a_damaged_task_spoils_no_push(damaged: tuple[GrpcioClient, ServerThread]) -> None:
    client, server = damaged
    subscriber = HandSubscriber(server.address, max_in_flight=5)
    try:
        assert {one.id for one in subscriber.wait_tasks(3)} == {"t0", "t2", "t4"}
        wait_until(lambda: ledger(server).dead == 2)
        # They no longer count against the subscriber.
        schedule(client, "t5", "t6")
        assert {one.id for one in subscriber.wait_tasks(5)} >= {"t5", "t6"}
    finally:
        subscriber.vanish()
        subscriber.wait_end()
