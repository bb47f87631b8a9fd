"""Tasks after a restart, a clock that jumped, a journal that filled and refused writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio

from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.errors import UnavailableError
from tests.support.clients import CallError, Client, GrpcioClient
from tests.support.servers import ServerThread, SteppedClock
from tests.support.tasks import NOW_S, get, kept, lease, ledger, schedule, task, wait_until
from tests.support.valkey import ValkeyServer

# ------------------------------------------------------------ durability, clock


def test_everything_is_there_after_a_restart(
    start_server: Callable[..., ServerThread], clock: SteppedClock
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        schedule(client, "pending", scheduled_at=NOW_S + 50)
        schedule(client, "leased", "done", "failed", max_attempts=1)
        tokens = {one.id: one.lease_token for one in lease(client, lease_seconds=600)}
        assert client.call("AckTask", task_id="done", lease_token=tokens["done"]).success
        assert client.call("NackTask", task_id="failed", lease_token=tokens["failed"]).success
        before = ledger(first)
    first.stop()
    second = start_server()
    after = ledger(second)
    names = ("scheduled", "pending", "inflight", "completed", "dead", "deleted", "sequence")
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
    with GrpcioClient(second.address) as client:
        assert get(client, "leased").lease_token == tokens["leased"]
        assert client.call("AckTask", task_id="leased", lease_token=tokens["leased"]).success
        assert client.call("AckTask", task_id="done", lease_token=tokens["done"]).success
        assert get(client, "failed").last_error == "given back without a reason"
        assert lease(client) == []
        clock.now_s += 50
        assert [one.id for one in lease(client)] == ["pending"]


def test_a_wall_clock_that_jumps_either_way_makes_no_task_early_and_skips_none(
    client: Client, clock: SteppedClock
) -> None:
    schedule(client, "soon", scheduled_at=NOW_S + 10)
    schedule(client, "late", scheduled_at=NOW_S + 5_000)
    schedule(client, "held")
    (held,) = lease(client, lease_seconds=60)
    clock.now_s += 3600
    assert [one.id for one in client.call("ListDueTasks").tasks] == ["soon"]
    clock.now_s -= 7200
    assert not client.call("ListDueTasks").tasks
    assert lease(client) == []
    assert get(client, "held").status == "inflight"  # neither jump has ended its lease
    clock.now_s += 3610
    assert [one.id for one in lease(client)] == ["soon"]
    clock.now_s += 5_000
    assert [one.id for one in lease(client)] == ["late"]
    assert client.call("AckTask", task_id="held", lease_token=held.lease_token).success


def test_the_journal_is_bounded_in_bytes_too(
    start_server: Callable[..., ServerThread],
    redis: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = partial(SchedulerSettings, journal_bytes_min=20_000)
    monkeypatch.setattr("dbos_actors.assembly.actors.SchedulerSettings", small)
    server = start_server()
    with GrpcioClient(server.address) as client:
        schedule(client, "t", max_attempts=1_000)
        for number in range(1, 5):
            # 40 entries, each with an error of 500 bytes: 24 KB.
            for _ in range(40):
                assert client.call("NackTask", task_id="t", reason="r" * 500).success
            wait_until(lambda: ledger(server).snapshots == number)  # noqa: B023
        before = ledger(server)
        assert before.journal_entries < 200
        entries = redis.execute("XRANGE", "dbos:{p0}:tasks:journal", "-", "+")
        assert before.journal_bytes == sum(len(fields[b"e"]) for _, fields in entries) < 24_000
    server.stop()
    after = ledger(start_server())
    assert (after.journal_bytes, after.snapshot_bytes) == (
        before.journal_bytes,
        before.snapshot_bytes,
    )


def test_a_task_that_redis_refuses_to_write_never_was(
    client: Client, server: ServerThread, redis: ValkeyServer
) -> None:
    schedule(client, "kept")
    used = redis.execute("INFO", "memory")["used_memory"]
    redis.execute("CONFIG", "SET", "maxmemory", used // 2)
    try:
        with pytest.raises(CallError, match="UNAVAILABLE: Redis refused the commit: OOM"):
            client.call("ScheduleTask", **task("refused"))
        with pytest.raises(CallError, match="UNAVAILABLE"):
            lease(client)
        # What only reads is served.
        assert get(client, "kept").status == "pending"
        assert not client.call("GetTask", task_id="refused").found
    finally:
        redis.execute("CONFIG", "SET", "maxmemory", 0)
    assert [one.id for one in lease(client)] == ["kept"]
    schedule(client, "refused")
    assert ledger(server).scheduled == 2
    assert kept(redis).counters().inflight == 1


def test_a_snapshot_taken_while_a_write_is_refused_stays_unused(
    client: Client, server: ServerThread, redis: ValkeyServer
) -> None:
    outcomes = client.call_many("ScheduleTask", (task(f"t{n}") for n in range(100)))
    assert all(outcome.success for outcome in outcomes)
    tasks = server.inside.tasks

    async def snapshot_beside_a_refusal() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.take_snapshot)
            await trio.lowlevel.checkpoint()
            # As when a commit of the scheduler's is refused between two slices.
            tasks.reload()

    with pytest.raises(BaseExceptionGroup, match="nursery") as caught:
        trio.from_thread.run(snapshot_beside_a_refusal, trio_token=server.token)
    assert caught.group_contains(UnavailableError, match="started again meanwhile")
    assert redis.execute("EXISTS", "dbos:{p0}:tasks:snapshot") == 0
    assert get(client, "t1").status == "pending"
    trio.from_thread.run(tasks.take_snapshot, trio_token=server.token)
    assert redis.execute("XLEN", "dbos:{p0}:tasks:journal") == 0
    assert len(kept(redis)) == 100
