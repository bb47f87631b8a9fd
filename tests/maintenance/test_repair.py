"""Damage of every kind: check finds it, repair mends it, and the server serves."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis as redis_py
import trio

from dbos_actors.maintenance.check import Tally, check
from dbos_actors.maintenance.findings import Finding
from dbos_actors.maintenance.names import parsed
from dbos_actors.maintenance.repair import DeclinedError, _Repair, repair
from dbos_actors.store import Keys, connector_for
from tests.layouts.fixture import DIRECTORY, Fixture, dumped
from tests.support.clients import GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

KEYS = Keys()
FIXTURES = [Fixture.read(path) for path in sorted(DIRECTORY.glob("version-*.jsonl"))]
FIXTURE = FIXTURES[-1]

Redis = Any
Damage = Callable[[Redis], Any]

# A key of every kind that holds something, with a member or field that it has.
OF_PROBE = {
    "agents": b"probe-1",
    "results:probe-1": b"result-1",
    "states:probe-1": b"rrun-running",
}
INDEXES = {
    "agents:index": b"probe-1",
    "agents:known": b"probe-1",
    "results-at:probe-1": b"result-1",
    "states-at:probe-1": b"rrun-running",
    "states-of:probe-1:ping": b"rrun-running",
    "modules:probe-1": b"ping",
    "unfinished:probe-1": b"run-running",
    "request:run-running": b"probe-1",
}
RECORDS_OF_TASKS = ("tasks", "tasks:journal", "tasks:snapshot", "tasks:snapshot:1")
NOT_UTF8 = b"\xff\xfe"


def key(name: str) -> str:
    return KEYS.prefix + name


def wrong_type(name: str) -> Damage:
    def damage(redis: Redis) -> None:
        kind = redis.type(key(name))
        redis.delete(key(name))
        if kind == b"string":
            redis.sadd(key(name), "x")
        else:
            redis.set(key(name), "x")

    return damage


def missing(name: str) -> Damage:
    return lambda redis: redis.delete(key(name))


def without(name: str, member: bytes) -> Damage:
    def damage(redis: Redis) -> None:
        remove = {b"hash": redis.hdel, b"zset": redis.zrem, b"set": redis.srem}
        assert remove[redis.type(key(name))](key(name), member) == 1

    return damage


def with_stranger(name: str, member: bytes) -> Damage:
    def damage(redis: Redis) -> None:
        if redis.type(key(name)) == b"zset":
            redis.zadd(key(name), {member: 5})
        else:
            redis.sadd(key(name), member)

    return damage


def with_field(name: str, field: bytes, value: bytes) -> Damage:
    return lambda redis: redis.hset(key(name), field, value)


def moved(name: str, member: bytes) -> Damage:
    return lambda redis: redis.zincrby(key(name), 7, member)


def set_to(name: str, value: str) -> Damage:
    return lambda redis: redis.set(key(name), value)


def entry_without(position: int) -> Damage:
    def damage(redis: Redis) -> None:
        entry_id, _ = redis.xrange(key("tasks:journal"))[position]
        redis.xdel(key("tasks:journal"), entry_id)

    return damage


def entry_with(position: int, change: Callable[[bytes], dict[bytes, bytes]]) -> Damage:
    """Rewrites the journal with one entry changed."""

    def damage(redis: Redis) -> None:
        entries = redis.xrange(key("tasks:journal"))
        redis.delete(key("tasks:journal"))
        changed = position % len(entries)
        for number, (entry_id, fields) in enumerate(entries):
            written = change(fields[b"e"]) if number == changed else fields
            redis.xadd(key("tasks:journal"), written, id=entry_id)

    return damage


def chunk_with(position: int, value: bytes | None) -> Damage:
    def damage(redis: Redis) -> None:
        name = key("tasks:snapshot:1")
        chunks = redis.lrange(name, 0, -1)
        if value is None:
            del chunks[position]
        else:
            chunks[position] = value
        redis.delete(name)
        redis.rpush(name, *chunks)

    return damage


def of_agent(source: bytes) -> Damage:
    """Puts a state under another agent's key."""
    return lambda redis: redis.hset(
        key("states:probe-1"), source, redis.hget(key("states:silent"), "rlost")
    )


def wrong_state(redis: Redis) -> None:
    record = redis.hget(key("states:probe-1"), "rrun-running")
    redis.hset(key("states:probe-1"), "rrun-running", record.replace(b"running", b"walking"))


def all_damages() -> dict[str, Damage]:
    damages: dict[str, Damage] = {}
    heads = ("layout", "commit", "changes")
    for name in (*OF_PROBE, *INDEXES, *RECORDS_OF_TASKS, "agents:deleting", "events", *heads):
        damages[f"{name} of a wrong type"] = wrong_type(name)
    for name in INDEXES:
        damages[f"{name} missing"] = missing(name)
    for name in ("tasks", "tasks:snapshot", "tasks:snapshot:1", "tasks:journal", "agents"):
        damages[f"{name} missing"] = missing(name)
    for name, member in INDEXES.items():
        damages[f"{name} without an entry"] = without(name, member)
        damages[f"{name} with an entry that is no text"] = with_stranger(name, NOT_UTF8)
    for name in sorted(INDEXES.keys() - {"agents:known", "modules:probe-1"}):
        damages[f"{name} with a stranger"] = with_stranger(name, b"rstranger")
    damages["unfinished with a finished run"] = with_stranger(
        "unfinished:probe-1", b"run-completed"
    )
    for name in ("results-at:probe-1", "states-at:probe-1", "agents:index"):
        damages[f"{name} with a wrong score"] = moved(name, INDEXES[name])
    for name, field in {**OF_PROBE, "tasks": b"due"}.items():
        damages[f"{name} with garbage"] = with_field(name, field, b"\xff garbage")
        damages[f"{name} with an empty record"] = with_field(name, field, b"")
        damages[f"{name} with a new record of garbage"] = with_field(name, b"new", b"\x07")
        damages[f"{name} with a name that is no text"] = with_field(name, NOT_UTF8, b"")
    damages["a state of another agent"] = of_agent(b"rlost")
    damages["a run in no known state"] = wrong_state
    for name in ("results:", "results:a:b", "states:%4", "tasks:snapshot:x", "states-of:a"):
        damages[f"a key named {name!r}"] = set_to(name, "x")
    damages["a key whose name is no text"] = lambda redis: redis.set(
        KEYS.results.encode() + NOT_UTF8, "x"
    )
    damages["an event of garbage"] = lambda redis: redis.xadd(KEYS.events, {b"e": b"{"})
    damages["an event without its field"] = lambda redis: redis.xadd(KEYS.events, {b"f": b"{}"})
    damages["a mark"] = lambda redis: redis.hset(key("to-check"), key("agents"), "{}")
    damages["a commit key of garbage"] = lambda redis: redis.set(KEYS.commit, "garbage")
    damages["a time of changes of garbage"] = lambda redis: redis.set(KEYS.changes, "garbage")
    damages["a layout of garbage"] = lambda redis: redis.set(KEYS.layout, "garbage")
    damages["an owner for ever"] = lambda redis: redis.set(KEYS.owner, "garbage")
    damages["an owner of a wrong type"] = lambda redis: redis.sadd(KEYS.owner, "garbage")
    for position in (0, 5, -1):
        damages[f"the journal's entry {position} damaged"] = entry_with(
            position, lambda data: {b"e": data[:9]}
        )
    for position in (0, 5):
        damages[f"the journal without entry {position}"] = entry_without(position)
    damages["the journal with an entry of nothing"] = entry_with(3, lambda _: {b"x": b"y"})
    damages["the journal far ahead"] = lambda redis: redis.xadd(
        key("tasks:journal"), {b"e": b"x"}, id="999999999-5"
    )
    for position in (0, 1, 2, -1):
        damages[f"the snapshot's chunk {position} damaged"] = chunk_with(position, b"?")
        damages[f"the snapshot without chunk {position}"] = chunk_with(position, None)
    damages["a snapshot of no generation"] = with_field("tasks:snapshot", b"generation", b"x")
    damages["a snapshot of a later sequence"] = with_field("tasks:snapshot", b"sequence", b"999999")
    damages["a task without a state"] = lambda redis: redis.hset(
        key("tasks"), "copy", redis.hget(key("tasks"), "due").replace(b"due", b"copy", 1)
    )
    damages["a state without a task"] = lambda redis: redis.hdel(key("tasks"), "due")
    return damages


DAMAGES = all_damages()


class Seen:
    def __init__(self) -> None:
        self.findings: list[Finding] = []

    async def __call__(self, finding: Finding) -> None:
        self.findings.append(finding)


async def yes(found: Tally) -> bool:
    return True


async def no(found: Tally) -> bool:
    return False


async def checked(server: ValkeyServer) -> list[Finding]:
    seen = Seen()
    tally = await check(connector_for(server.address), seen)
    assert tally.findings == len(seen.findings)
    assert tally.entries > 100
    return seen.findings


@pytest.fixture(scope="module")
def stored() -> Any:
    """One Valkey for all these tests."""
    with ValkeyServer(appendfsync="no") as server:
        yield server


@pytest.fixture
def store(stored: ValkeyServer) -> ValkeyServer:
    stored.execute("FLUSHALL")
    with stored.client() as redis:
        FIXTURE.restore(redis)
    return stored


def contents(redis: redis_py.Redis) -> dict[str, Any]:
    return {line["key"]: line["value"] for line in dumped(redis)}


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: f"version-{fixture.layout}")
async def test_a_store_without_damage_is_clean_and_not_touched(
    fixture: Fixture, stored: ValkeyServer
) -> None:
    stored.execute("FLUSHALL")
    with stored.client() as redis:
        fixture.restore(redis)
        before = contents(redis)
        assert await checked(stored) == []
        assert contents(redis) == before
        assert [name for name in redis.scan_iter() if parsed(name, KEYS) is None] == []


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_found_mended_and_served(name: str, store: ValkeyServer) -> None:
    with store.client() as redis:
        DAMAGES[name](redis)
        before = contents(redis)
        found = await checked(store)
        assert found
        assert contents(redis) == before
    assert await repair(connector_for(store.address), report=Seen(), confirm=yes) == 0
    assert await checked(store) == []
    await trio.to_thread.run_sync(serves, store)
    assert await checked(store) == []


def serves(store: ValkeyServer) -> None:
    """Every read is answered, and every kind of write is possible."""
    server = ServerThread(store.address, clock=SteppedClock(FIXTURE.wall_s)).start()
    try:
        with GrpcioClient(server.address) as client:
            for call in FIXTURE.calls:
                client.call(call.method, **call.request)
            agent = {"id": "probe-1", "hostname": "h", "alive": True}
            run = {"agent_id": "probe-1", "module_name": "ping", "request_id": "run-running"}
            result = {"id": "new result", "agent_id": "probe-1", "module_name": "ping"}
            task = {"id": "new task", "agent_id": "probe-1", "module_name": "ping"}
            assert client.call("RegisterAgent", agent=agent).success
            assert client.call("SetModuleState", state={**run, "state": "completed"}).success
            assert client.call("StoreResult", result=result).success
            assert client.call("ScheduleTask", task=task).success
            leased = client.call("LeaseTasks", limit=100, lease_seconds=60).tasks
            assert "new task" in {task.id for task in leased}
            for one in leased:
                assert client.call("AckTask", task_id=one.id, lease_token=one.lease_token).success
    finally:
        server.stop()
    with store.client() as redis:
        problems = Keyspace(redis).problems()
    # A module whose last run was deleted stays among the agent's modules.
    assert [problem for problem in problems if not problem.startswith("modules of ")] == []


def damage_much(redis: Redis) -> None:
    """Everything that leaves something to be damaged further."""
    for name, damage in DAMAGES.items():
        if " of a wrong type" not in name and "missing" not in name:
            # What it damages may be gone already.
            with suppress(AssertionError, IndexError, AttributeError):
                damage(redis)


async def repair_head(store: ValkeyServer) -> None:
    asked: list[Tally] = []

    async def only_the_head(found: Tally) -> bool:
        asked.append(found)
        return len(asked) == 1

    with pytest.raises(DeclinedError):
        await repair(connector_for(store.address), report=Seen(), confirm=only_the_head)


class KilledError(Exception):
    """Instead of SIGKILL."""


async def test_a_repair_that_dies_at_any_step_is_finished_by_the_next(
    store: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = _Repair._flush
    monkeypatch.setattr("dbos_actors.maintenance.repair._WRITTEN_AT_ONCE", 3)
    steps_left = 0

    async def dying(repair: _Repair) -> None:
        nonlocal steps_left
        if repair._commands:
            steps_left -= 1
            if steps_left < 0:
                raise KilledError
        await flush(repair)

    monkeypatch.setattr(_Repair, "_flush", dying)
    with store.client() as redis:
        damage_much(redis)
        # The head is mended before anything is owned.
        await repair_head(store)
        damaged: dict[bytes, Any] = {name: redis.dump(name) for name in redis.scan_iter()}
    died = 0
    for step in range(1_000):
        with store.client() as redis:
            redis.flushall()
            for name, value in damaged.items():
                redis.restore(name, 0, value)
        steps_left = step
        try:
            assert await repair(connector_for(store.address), report=Seen(), confirm=yes) == 0
        except KilledError:
            died += 1
        else:
            break
        steps_left = 1_000
        assert await repair(connector_for(store.address), report=Seen(), confirm=yes) == 0
        assert await checked(store) == []
    assert died > 20
    await trio.to_thread.run_sync(serves, store)


async def test_everything_at_once_is_mended(store: ValkeyServer) -> None:
    with store.client() as redis:
        damage_much(redis)
    assert len(await checked(store)) > 40
    assert await repair(connector_for(store.address), report=Seen(), confirm=yes) == 0
    assert await checked(store) == []
    await trio.to_thread.run_sync(serves, store)


async def test_a_repair_reports_what_it_drops_and_loses_nothing_else(store: ValkeyServer) -> None:
    with store.client() as redis:
        redis.hset(key("results:probe-1"), "result-1", b"\xff garbage")
        redis.delete(key("results-at:probe-1"))
        results: Any = redis.hgetall(key("results:probe-1"))
        seen = Seen()
        await repair(connector_for(store.address), report=seen, confirm=yes)
        dropped = [finding for finding in seen.findings if finding.drops]
        assert [str(finding) for finding in dropped] == [
            "dbos:{p0}:results:probe-1 result-1: cannot be decoded (9 bytes)"
        ]
        del results[b"result-1"]
        assert redis.hgetall(key("results:probe-1")) == results
        index: Any = redis.zrange(key("results-at:probe-1"), 0, -1, withscores=True)
        assert dict(index)[b"imported"] == 1_600_000_000
        assert {member for member, _ in index} == set(results)


async def test_no_leaves_everything_as_it_was_but_the_owner(store: ValkeyServer) -> None:
    with store.client() as redis:
        redis.delete(key("results-at:probe-1"))
        before = contents(redis)
        with pytest.raises(DeclinedError):
            await repair(connector_for(store.address), report=Seen(), confirm=no)
        after = contents(redis)
    for name in (KEYS.commit, KEYS.layout):
        before.pop(name, None)
        after.pop(name, None)
    assert after == before


async def test_tasks_after_a_gap_keep_what_is_known_of_them(store: ValkeyServer) -> None:
    """The entries of the snapshot stay; a task whose entry is lost begins anew."""
    with store.client() as redis:
        entries: Any = redis.xrange(key("tasks:journal"))
        redis.xdel(key("tasks:journal"), *(entry_id for entry_id, _ in entries[-3:-1]))
    await repair(connector_for(store.address), report=Seen(), confirm=yes)
    server = await trio.to_thread.run_sync(
        ServerThread(store.address, clock=SteppedClock(FIXTURE.wall_s)).start
    )
    try:
        with GrpcioClient(server.address) as client:
            listed = await trio.to_thread.run_sync(lambda: client.call("ListTasks").tasks)
        statuses = {task.id: task.status for task in listed}
    finally:
        await trio.to_thread.run_sync(server.stop)
    recorded = {
        task["id"]: task["status"]
        for call in FIXTURE.calls
        if (call.method, call.request) == ("ListTasks", {})
        for task in call.response["tasks"]
    }
    assert set(statuses) == set(recorded)
    assert statuses["inflight"] == "inflight"
    assert statuses["dead"] == "dead"
    different = {name for name in statuses if statuses[name] != recorded[name]}
    assert {statuses[name] for name in different} <= {"pending"}


def test_a_finding_is_one_line_whatever_is_in_it() -> None:
    finding = Finding(key=b"dbos:\xff\n", item="Ключ".encode(), problem="p", detail=json.dumps("d"))
    assert str(finding).splitlines() == [str(finding)]
    assert "Ключ" in str(finding)
