"""Stores that earlier versions wrote: this one reads them, and refuses those of later ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from dbos_actors.clock import SystemClock
from dbos_actors.errors import UnusableStoreError
from dbos_actors.store import StoreSettings, connector_for, open_store
from dbos_actors.store.keys import LAYOUT_VERSION, Keys
from tests.cli.test_commands import one_line, run
from tests.layouts.fixture import DIRECTORY, Fixture
from tests.support.clients import GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

KEYS = Keys()
FILES = sorted(DIRECTORY.glob("version-*.jsonl"))


def missing_from(answer: Any, recorded: Any) -> list[str]:
    """What was answered then and is not now; what has been added since is no matter."""
    if isinstance(recorded, dict) and isinstance(answer, dict):
        return [
            f".{name}{rest}"
            for name, value in recorded.items()
            for rest in missing_from(answer.get(name), value)
        ]
    if isinstance(recorded, list) and isinstance(answer, list) and len(answer) == len(recorded):
        if all(isinstance(value, dict) and "scheduled_at" in value for value in recorded):
            # Tasks: of one second's due tasks no order is stored.
            answer, recorded = (sorted(side, key=_task_id) for side in (answer, recorded))
        return [
            f"[{number}]{rest}"
            for number, value in enumerate(recorded)
            for rest in missing_from(answer[number], value)
        ]
    return [] if answer == recorded else [f": {answer!r} instead of {recorded!r}"]


def _task_id(task: dict[str, Any]) -> str:
    return str(task["id"])


async def opened(address: str) -> None:
    """Take ownership of the store as a server does, and release it."""
    async with open_store(
        connector_for(address),
        settings=StoreSettings(),
        clock=SystemClock(),
        random=random.Random(1),
    ):
        pass


def test_every_version_has_a_store_to_be_tried_on() -> None:
    assert [Fixture.read(path).layout for path in FILES] == list(range(1, LAYOUT_VERSION + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_everything_a_version_wrote_is_found_and_goes_on(path: Any, valkey: ValkeyServer) -> None:
    fixture = Fixture.read(path)
    with valkey.client() as redis:
        fixture.restore(redis)
        assert Keyspace(redis).problems() == []
    server = ServerThread(valkey.address, clock=SteppedClock(fixture.wall_s)).start()
    try:
        with GrpcioClient(server.address) as client:
            assert len(fixture.calls) > 100
            for call in fixture.calls:
                response = client.call(call.method, **call.request)
                answer = MessageToDict(response, preserving_proto_field_name=True)
                assert missing_from(answer, call.response) == [], (call.method, call.request)
            goes_on(client, fixture)
    finally:
        server.stop()
    with valkey.client() as redis:
        assert Keyspace(redis).problems() == []
        assert redis.get(KEYS.layout) == b"%d" % LAYOUT_VERSION


def goes_on(client: GrpcioClient, fixture: Fixture) -> None:
    """Leases, runs and results that were begun then are ended now."""
    leased = next(
        task
        for call in fixture.calls
        if (call.method, call.request) == ("ListTasks", {"status": "inflight"})
        for task in call.response["tasks"]
    )
    token = leased["lease_token"]
    if fixture.layout >= 2:
        asked: dict[str, Any] = {"agent_id": "probe-1", "worker_id": "w", "request_key": "key"}
        again = client.call("LeaseTasks", **asked)
        assert [task.lease_token for task in again.tasks] == [token]
    assert client.call("AckTask", task_id=leased["id"], lease_token=token).success
    assert client.call("GetTask", task_id=leased["id"]).task.status == "completed"
    if fixture.layout >= 3:
        assert client.call("RequeueTask", task_id="cancelled").success
        requeued = client.call("GetTask", task_id="cancelled").task
        assert (requeued.status, requeued.payload) == ("pending", bytes(range(32)))
    run = {"agent_id": "probe-1", "module_name": "ping", "request_id": "run-running"}
    assert client.call("SetModuleState", state={**run, "state": "completed"}).success
    repeat = {"id": "result-1", "agent_id": "probe-1", "module_name": "ping", "data": b"new"}
    assert client.call("StoreResult", result=repeat).duplicate
    assert client.call("StoreResult", result={**repeat, "id": "result-2"}).success


@pytest.mark.parametrize(
    "tampered", [{}, {"layout": b"1"}, {"commit": b"7:3"}, {"layout": b"1", "commit": b"7:3"}]
)
async def test_a_store_without_a_layout_gets_it_with_its_ownership(
    tampered: dict[str, bytes], valkey: ValkeyServer
) -> None:
    for name, value in tampered.items():
        valkey.execute("SET", getattr(KEYS, name), value)
    await opened(valkey.address)
    assert valkey.execute("GET", KEYS.layout) == b"%d" % LAYOUT_VERSION


def set_later_layout(valkey: ValkeyServer) -> None:
    valkey.execute("SET", KEYS.layout, LAYOUT_VERSION + 1)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (set_later_layout, f"its layout version is {LAYOUT_VERSION + 1}, this program knows"),
        (lambda valkey: valkey.execute("SET", KEYS.layout, "one"), "layout is no version"),
        (lambda valkey: valkey.execute("SADD", KEYS.layout, "1"), "is no string"),
        (lambda valkey: valkey.execute("SET", KEYS.commit, "7"), "commit is no epoch:sequence"),
        (lambda valkey: valkey.execute("SADD", KEYS.commit, "7:1"), "is no string"),
        (lambda valkey: valkey.execute("SADD", KEYS.owner, "me"), "is no string"),
    ],
)
async def test_a_store_that_this_program_does_not_understand_is_refused_unchanged(
    damage: Callable[[ValkeyServer], None], told: str, valkey: ValkeyServer
) -> None:
    damage(valkey)
    with valkey.client() as redis:
        before = {key: redis.dump(key) for key in redis.scan_iter()}
        with pytest.raises(UnusableStoreError, match=told):
            await opened(valkey.address)
        assert {key: redis.dump(key) for key in redis.scan_iter()} == before


def test_a_later_layout_is_one_line_and_status_2_also_with_take_over(
    valkey: ValkeyServer,
) -> None:
    set_later_layout(valkey)
    line = one_line(run("serve", "--port", "0", "--take-over", REDIS_ADDR=valkey.address))
    assert f"its layout version is {LAYOUT_VERSION + 1}" in line
    assert "use a newer program" in line
