"""What Redis refuses is undone in the task book; it is read back only where that is not enough."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio

from dbos_actors.actors.tasks.rewind import Rewind
from dbos_actors.domain.tasks import scheduling
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.errors import UnavailableError
from tests.domain.tasks.helpers import Driver, durable_state
from tests.support.clients import CallError, Client, GrpcioClient
from tests.support.servers import ServerThread
from tests.support.tasks import get, kept, lease, ledger, schedule, task
from tests.support.valkey import ValkeyServer

JOURNAL = "dbos:{p0}:tasks:journal"


@contextmanager
def without_memory(redis: ValkeyServer) -> Iterator[None]:
    """Have Redis refuse what needs memory."""
    used = redis.execute("INFO", "memory")["used_memory"]
    redis.execute("CONFIG", "SET", "maxmemory", used // 2)
    try:
        yield
    finally:
        redis.execute("CONFIG", "SET", "maxmemory", 0)


def reads(redis: ValkeyServer) -> int:
    """How often snapshot or journal were read."""
    statistics = redis.execute("INFO", "commandstats")
    return sum(
        int(statistics.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("xrange", "lrange")
    )


def run_async(server: ServerThread, function: Callable[[], Awaitable[None]]) -> None:
    trio.from_thread.run(function, trio_token=server.token)


def book_of(server: ServerThread) -> TaskBook:
    actor = server.inside.tasks.actor
    assert actor is not None
    return actor.book


def assert_as_stored(server: ServerThread, redis: ValkeyServer) -> None:
    assert server.run(lambda: durable_state(book_of(server))) == durable_state(kept(redis))


def test_refused_changes_are_undone_and_nothing_is_read_back(
    client: GrpcioClient, server: ServerThread, redis: ValkeyServer
) -> None:
    # Mutation: read the book back after each refused commit.
    for name in ("due", "held", "other"):
        schedule(client, name, agent_id=name)
    (held,) = lease(client, agent_id="held")
    before, read = ledger(server), reads(redis)
    with without_memory(redis):
        refused = [
            client.start("AckTask", task_id="held", lease_token=held.lease_token),
            client.start("LeaseTasks", limit=2, request_key="k"),
            client.start("NackTask", task_id="other", retry_delay_seconds=100),
            client.start("CancelTask", task_id="due"),
            *(client.start("ScheduleTask", **task(f"t{n}", agent_id=f"a{n}")) for n in range(50)),
        ]
        for call in refused:
            with pytest.raises(CallError, match="UNAVAILABLE"):
                call.result()
        assert get(client, "held").status == "inflight"
        assert not client.call("GetTask", task_id="t1").found
    after = ledger(server)
    assert after.rewinds > before.rewinds
    assert after.recoveries == before.recoveries
    assert reads(redis) == read
    assert_as_stored(server, redis)
    assert (after.sequence, after.journal_bytes) == (before.sequence, before.journal_bytes)
    # The lease goes on as it was, and what was leased in vain is due again.
    assert client.call("AckTask", task_id="held", lease_token=held.lease_token).success
    assert {one.id for one in lease(client)} == {"due", "other"}
    schedule(client, "t1", agent_id="a1")
    assert_as_stored(server, redis)
    run_async(server, server.inside.tasks.audit)
    assert ledger(server).audit_misplaced == ledger(server).audit_strangers == 0


def test_the_book_is_read_back_if_redis_executed_a_part_of_a_turn(
    client: Client, server: ServerThread, redis: ValkeyServer
) -> None:
    schedule(client, "kept")
    before = ledger(server).recoveries
    redis.execute("SET", "dbos:{p0}:events", "damaged")
    with pytest.raises(CallError, match="DATA_LOSS"):
        client.call("AckTask", task_id="kept")
    assert get(client, "kept").status == "completed", "the journal has it"
    assert ledger(server).recoveries == before + 1
    assert ledger(server).rewinds == 0


def test_the_book_is_read_back_after_a_handler_has_raised(
    client: Client, server: ServerThread, redis: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule(client, "kept")
    before = ledger(server).recoveries

    def broken(*_: object, **__: object) -> bool:
        raise ZeroDivisionError

    with without_memory(redis), monkeypatch.context() as patch:
        patch.setattr(scheduling, "schedule", broken)
        calls = [
            client.start("AckTask", task_id="kept"),
            client.start("ScheduleTask", **task("t")),
        ]
        for call in calls:
            with pytest.raises(CallError, match=r"UNAVAILABLE|INTERNAL"):
                call.result()
    assert get(client, "kept").status == "pending"
    assert ledger(server).recoveries == before + 1
    assert_as_stored(server, redis)


def test_the_book_is_read_back_if_another_snapshot_is_in_force(
    client: Client, server: ServerThread, redis: ValkeyServer
) -> None:
    # Mutation: take the book over without looking which snapshot the store names.
    schedule(client, "kept")
    run_async(server, server.inside.tasks.take_snapshot)
    before = ledger(server).recoveries
    # As if the switch had been committed and its reply not seen yet.
    server.inside.tasks._context.stored.generation -= 1
    with without_memory(redis), pytest.raises(CallError, match="UNAVAILABLE"):
        client.call("ScheduleTask", **task("t"))
    assert get(client, "kept").status == "pending"
    assert ledger(server).recoveries == before + 1
    run_async(server, server.inside.tasks.take_snapshot)
    assert_as_stored(server, redis)


def test_a_book_whose_refused_changes_are_not_its_last_ones_is_not_taken_over() -> None:
    driver = Driver()
    for number in range(4):
        driver.schedule(f"t{number}")
    rewind = Rewind()
    refusal = UnavailableError("no")
    for changes in (driver.applied[:3], driver.applied[1::2], []):
        for change in changes:
            rewind.refused(change, refusal)
        rewind.leave(driver.book)
        assert rewind.take() is None
    rewind.refused(driver.applied[-1], refusal)
    assert rewind.take() is None, "no incarnation has left a book"
    rewind.refused(driver.applied[-1], refusal)
    rewind.leave(driver.book)
    undoing = rewind.take()
    assert undoing is not None
    assert undoing.book is not driver.book, "who has looked at the old one has to begin again"
    assert undoing.changes == driver.applied[-1:]
