"""Turns of an actor: one at a time, all or nothing, seen only once committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbos_actors.actors.agents import actor as agent_actor
from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.actors.agents.caches import RunDirectory
from dbos_actors.api.messages import SetModuleStateRequest
from dbos_actors.runtime import Turn
from dbos_actors.store import connector_for
from tests.support.clients import CallError, Client, GrpcioClient, Pending, outcome_of
from tests.support.servers import ServerThread
from tests.support.stalling import StallingConnector
from tests.support.valkey import ValkeyServer


def state(agent_id: str, name: str, **fields: Any) -> dict[str, Any]:
    values = {"agent_id": agent_id, "module_name": "m", "request_id": "r", "state": name}
    return {"state": {**values, **fields}}


def read(client: Client, agent_id: str = "a") -> Any:
    response = client.call("GetModuleState", request_id="r", agent_id=agent_id)
    assert response.found, response.error
    return response.state


# ---------------------------------------------------------------- one at a time


def test_turns_of_one_agent_never_overlap_and_each_sees_the_one_before(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: set[str] = set()
    overlaps: list[str] = []
    original = AgentActor.handle

    def handle(self: AgentActor, request: Any) -> Any:
        agent_id = self._agent_id
        if agent_id in inside:
            overlaps.append(agent_id)
        inside.add(agent_id)
        try:
            return original(self, request)
        finally:
            inside.discard(agent_id)

    monkeypatch.setattr(AgentActor, "handle", handle)
    calls_each = 150

    def send(agent_id: str) -> None:
        with GrpcioClient(server.address) as client:
            requests = (state(agent_id, "running") for _ in range(calls_each))
            outcomes = client.call_many("SetModuleState", requests)
            assert all(outcome.success for outcome in outcomes)

    # Two connections for each of two agents.
    threads = [threading.Thread(target=send, args=(agent,)) for agent in "aabb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overlaps
    with GrpcioClient(server.address) as client:
        # Versions count turns: one that had not seen the one before it would repeat a number.
        assert read(client, "a").version == read(client, "b").version == 2 * calls_each


def test_writers_that_read_first_never_lose_an_update(server: ServerThread) -> None:
    with GrpcioClient(server.address) as client:
        assert client.call("SetModuleState", **state("a", "running", details={"sum": "0"})).success
    wins: list[int] = []

    def add_up() -> None:
        with GrpcioClient(server.address) as client:
            won = 0
            while won < 20:
                seen = read(client)
                details = {"sum": str(int(seen.details["sum"]) + 1)}
                update = state("a", "running", details=details, version=seen.version + 1)
                won += client.call("SetModuleState", **update).success
            wins.append(won)

    threads = [threading.Thread(target=add_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with GrpcioClient(server.address) as client:
        # A retry with the same content counts as a win of both: never more than the sum.
        assert sum(wins) == 80
        assert int(read(client).details["sum"]) == read(client).version - 1 <= 80


def test_calls_at_once_to_an_agent_that_is_not_in_memory_activate_it_once(
    start_server: Callable[..., ServerThread],
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        client.call("SetModuleState", **state("a", "running"))
    first.stop()
    server = start_server()
    with GrpcioClient(server.address) as client:
        outcomes = client.call_many(
            "SetModuleState", (state("a", "running") for _ in range(200)), in_flight=200
        )
        assert all(outcome.success for outcome in outcomes)
        assert read(client).version == 201
    assert server.run(server.inside.agents.statistics).activations == 1


# --------------------------------------------------------------- raising turns


class BoomError(Exception):
    """A bug in a handler."""


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report with the detail ``boom`` meets a bug, after part of the turn is done."""
    original: Any = agent_actor._HANDLERS[SetModuleStateRequest]

    def handler(actor: AgentActor, request: SetModuleStateRequest) -> Turn:
        turn: Turn = original(actor, request)
        if "boom" in request.state.details:
            raise BoomError("not for the client's eyes")
        return turn

    monkeypatch.setitem(agent_actor._HANDLERS, SetModuleStateRequest, handler)


def boom(client: Client, agent_id: str = "a") -> CallError:
    with pytest.raises(CallError) as caught:
        client.call("SetModuleState", **state(agent_id, "completed", details={"boom": ""}))
    return caught.value


def behaviour(server: ServerThread, agent_id: str) -> Any:
    def look() -> Any:
        cell = server.inside.agents.get(agent_id)
        return None if cell is None else cell.behaviour

    return server.run(look)


@pytest.mark.usefixtures("bug")
def test_a_raising_turn_restarts_that_actor_only_and_leaves_nothing_behind(
    server: ServerThread, client: Client
) -> None:
    for agent_id in ("a", "b"):
        client.call("SetModuleState", **state(agent_id, "running"))
    before = {agent_id: behaviour(server, agent_id) for agent_id in ("a", "b")}

    error = boom(client)
    assert (error.status, error.message) == ("INTERNAL", "internal error")

    found = read(client)
    assert (found.state, found.version) == ("running", 1)
    assert read(client, "b").state == "running"
    assert behaviour(server, "a") is not before["a"]
    assert behaviour(server, "b") is before["b"]
    assert client.call("SetModuleState", **state("a", "completed")).success
    assert read(client).version == 2


@pytest.mark.usefixtures("bug")
def test_messages_that_wait_behind_a_raising_turn_are_served_after_the_restart(
    server: ServerThread, client: Client
) -> None:
    calls: list[Pending] = []
    for number in range(90):
        details = {"boom": ""} if number in (20, 40, 60) else {}
        calls.append(client.start("SetModuleState", **state("a", "running", details=details)))
    outcomes = [outcome_of(call) for call in calls]
    failed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, CallError)]
    assert failed == [20, 40, 60]
    assert all(outcome.success for n, outcome in enumerate(outcomes) if n not in failed)
    assert read(client).version == 87


@pytest.mark.usefixtures("bug")
def test_an_actor_that_keeps_raising_is_quarantined_and_nobody_else_is(
    server: ServerThread, client: Client
) -> None:
    for _ in range(6):
        assert boom(client).status == "INTERNAL"
    for _ in range(3):
        error = boom(client)
        assert error.status == "UNAVAILABLE"
        assert "quarantine" in error.message
    for method, fields in (
        ("GetAgent", {"agent_id": "a"}),
        ("RegisterAgent", {"agent": {"id": "a"}}),
    ):
        with pytest.raises(CallError, match="UNAVAILABLE"):
            client.start(method, **fields).result()
    assert client.call("SetModuleState", **state("b", "running")).success
    assert client.call("RegisterAgent", agent={"id": "c"}).success
    assert server.run(server.inside.agents.statistics).quarantined == 1


def test_a_bug_after_the_commit_restarts_the_actor_and_the_write_stands(
    server: ServerThread, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*_: Any) -> bytes:
        raise BoomError

    client.call("SetModuleState", **state("a", "running"))
    before = behaviour(server, "a")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "changed", raising)
        with pytest.raises(CallError, match="INTERNAL"):
            client.call("SetModuleState", **state("a", "completed"))
    found = read(client)
    assert (found.state, found.version) == ("completed", 2)
    assert behaviour(server, "a") is not before


# ------------------------------------------------------------ seen once committed


@pytest.fixture
def stalling(redis: ValkeyServer) -> StallingConnector:
    return StallingConnector(connector_for(redis.address))


@pytest.fixture
def stalled_server(
    start_server: Callable[..., ServerThread], stalling: StallingConnector
) -> Iterator[ServerThread]:
    server = start_server(connector=stalling)
    yield server
    server.run(stalling.release)


READ_BACK: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
    ("GetModuleState", {"request_id": "r"}, lambda found: found.state.state),
    ("GetModuleState", {"request_id": "r", "agent_id": "a"}, lambda found: found.state.state),
    ("ListModuleStates", {"agent_id": "a"}, lambda found: [one.state for one in found.states]),
    ("GetAgent", {"agent_id": "a"}, lambda found: found.agent.hostname),
    ("ListAgents", {}, lambda found: [one.hostname for one in found.agents]),
    ("GetResult", {"agent_id": "a", "request_id": "r"}, lambda found: found.found),
    ("ListResults", {"agent_id": "a"}, lambda found: len(found.results)),
    ("GetEvents", {}, lambda found: len(found.events)),
]


def test_no_read_shows_a_turn_before_its_commit(
    stalled_server: ServerThread, stalling: StallingConnector
) -> None:
    with GrpcioClient(stalled_server.address) as client:
        assert client.call("RegisterAgent", agent={"id": "a", "hostname": "old"}).success
        assert client.call("SetModuleState", **state("a", "running")).success
        old = [show(client.call(name, **fields)) for name, fields, show in READ_BACK]

        stalled_server.run(stalling.stall)
        writes = [
            client.start("SetModuleState", **state("a", "completed")),
            client.start("RegisterAgent", agent={"id": "a", "hostname": "new"}),
            client.start("StoreResult", result={"id": "r", "agent_id": "a", "module_name": "m"}),
        ]
        assert stalling.has_stalled.wait(10)
        for (name, fields, show), before in zip(READ_BACK, old, strict=True):
            try:
                response = client.call(name, timeout_s=0.2, **fields)
            except CallError as error:
                # Its deadline, or the server's patience with Redis a moment before.
                assert error.status in ("DEADLINE_EXCEEDED", "UNAVAILABLE"), name  # noqa: PT017
            else:
                assert show(response) == before, name
        assert not any(write.done() for write in writes)

        stalled_server.run(stalling.release)
        assert all(write.result().success for write in writes)
        for (name, fields, show), before in zip(READ_BACK, old, strict=True):
            assert show(client.call(name, **fields)) != before, name


def test_a_read_behind_a_stalled_commit_waits_and_then_shows_it(
    stalled_server: ServerThread, stalling: StallingConnector
) -> None:
    with GrpcioClient(stalled_server.address) as client:
        client.call("SetModuleState", **state("a", "running"))
        client.call("SetModuleState", **state("b", "running"))
        stalled_server.run(stalling.stall)
        write = client.start("SetModuleState", **state("a", "completed"))
        assert stalling.has_stalled.wait(10)
        waiting = client.start("GetModuleState", request_id="r", agent_id="a")
        # Another agent's state has no such turn before it.
        assert read(client, "b").state == "running"
        assert not waiting.done()
        stalled_server.run(stalling.release)
        assert write.result().success
        assert waiting.result().state.state == "completed"


def test_a_refused_commit_leaves_nothing_in_memory(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    redis = start_valkey()
    server = ServerThread(redis.address).start()
    try:
        with GrpcioClient(server.address) as client:
            client.call("RegisterAgent", agent={"id": "a", "hostname": "old"})
            client.call("SetModuleState", **state("a", "running"))
            redis.execute("CONFIG", "SET", "maxmemory", "1")
            for method, fields in (
                ("SetModuleState", state("a", "completed")),
                ("RegisterAgent", {"agent": {"id": "a", "hostname": "new"}}),
                ("StoreResult", {"result": {"id": "r", "agent_id": "a", "module_name": "m"}}),
            ):
                with pytest.raises(CallError) as caught:
                    client.start(method, **fields).result()
                assert caught.value.status == "UNAVAILABLE"
                assert "OOM" in caught.value.message
            found = read(client)
            assert (found.state, found.version) == ("running", 1)
            assert client.call("GetAgent", agent_id="a").agent.hostname == "old"
            assert not client.call("ListResults", agent_id="a").results
            redis.execute("CONFIG", "SET", "maxmemory", "0")
            assert client.call("SetModuleState", **state("a", "completed")).success
            assert read(client).version == 2
    finally:
        server.stop()


def test_a_deletion_gets_through_when_redis_is_out_of_memory(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    redis = start_valkey()
    server = ServerThread(redis.address).start()
    try:
        with GrpcioClient(server.address) as client:
            client.call("RegisterAgent", agent={"id": "a"})
            client.call("SetModuleState", **state("a", "running"))
            redis.execute("CONFIG", "SET", "maxmemory", "1")
            assert client.call("DeleteAgent", agent_id="a").success
            assert not client.call("GetAgent", agent_id="a").found
            assert not client.call("ListModuleStates", agent_id="a").states
    finally:
        server.stop()
