"""A DeleteAgent that fails half-way: nothing that was acknowledged after it is deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.service.test_delete_calls import fill
from tests.service.test_operations import wait_until
from tests.support.clients import CallError, GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

DELETING = "dbos:{p0}:agents:deleting"


@contextmanager
def undeletable(redis: ValkeyServer, agent: str) -> Iterator[None]:
    """A deletion of the agent begins, and fails when it reads the names of the modules."""
    key = f"dbos:{{p0}}:modules:{agent}"
    redis.execute("RENAME", key, "aside")
    redis.execute("SET", key, "not a set")
    try:
        yield
    finally:
        redis.execute("RENAME", "aside", key)


def test_what_an_agent_stores_after_an_interrupted_deletion_outlives_the_next_start(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        fill(client, "a")
        with undeletable(redis, "a"):
            with pytest.raises(CallError) as error:
                client.call("DeleteAgent", agent_id="a")
            assert error.value.status == "UNAVAILABLE"
            assert redis.execute("SMEMBERS", DELETING) == {b"a"}
        assert client.call("RegisterAgent", agent={"id": "a", "total_heartbeats": 7}).success
        calls = (
            {"result": {"id": f"new{n}", "agent_id": "a", "module_name": "m"}} for n in range(100)
        )
        assert all(response.success for response in client.call_many("StoreResult", calls))
    first.stop()
    with GrpcioClient(start_server().address) as client:
        assert client.call("GetAgent", agent_id="a").agent.total_heartbeats == 7
        results = client.call("ListResults", agent_id="a").results
        assert sorted(result.id for result in results) == sorted(f"new{n}" for n in range(100))
        assert not client.call("ListModuleStates", agent_id="a").states
    with redis.client() as connection:
        assert Keyspace(connection).problems() == []


def test_no_message_of_an_agent_is_taken_before_its_deletion_is_finished(
    server: ServerThread, client: GrpcioClient, redis: ValkeyServer
) -> None:
    fill(client, "a")
    fill(client, "b")
    messages: list[tuple[str, dict[str, Any]]] = [
        ("RegisterAgent", {"agent": {"id": "a"}}),
        ("GetAgent", {"agent_id": "a"}),
        ("GetModuleState", {"agent_id": "a", "request_id": "r0"}),
        ("StoreResult", {"result": {"id": "x", "agent_id": "a", "module_name": "m"}}),
    ]
    with undeletable(redis, "a"):
        for method, fields in [("DeleteAgent", {"agent_id": "a"}), *messages]:
            with pytest.raises(CallError) as error:
                client.call(method, **fields)
            assert error.value.status == "UNAVAILABLE"
        # The others are served.
        assert client.call("GetAgent", agent_id="b").found
    assert not client.call("GetAgent", agent_id="a").found
    assert client.call("DeleteAgent", agent_id="a").success


def test_an_interrupted_deletion_is_finished_though_nobody_asks_for_the_agent(
    server: ServerThread, client: GrpcioClient, redis: ValkeyServer
) -> None:
    fill(client, "a")
    with undeletable(redis, "a"), pytest.raises(CallError):
        client.call("DeleteAgent", agent_id="a")
    wait_until(lambda: redis.execute("SCARD", DELETING) == 0)
    assert not [key for key in redis.execute("KEYS", "*") if b":a" in key]
    assert not client.call("ListAgents").agents


def test_a_server_starts_though_a_deletion_cannot_be_finished(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        fill(client, "a")
        fill(client, "b")
    first.stop()
    redis.execute("SADD", DELETING, "a")
    with undeletable(redis, "a"), GrpcioClient(start_server().address) as client:
        assert client.call("GetAgent", agent_id="b").found
        with pytest.raises(CallError):
            client.call("GetAgent", agent_id="a")
    wait_until(lambda: redis.execute("SCARD", DELETING) == 0)
