"""What becomes a gRPC status: methods not there, bad requests, deadlines, a Redis that is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clients import CallError, Client, GrpcioClient, outcome_of
from tests.support.contracts import contract
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

SERVED = [
    "RegisterAgent",
    "GetAgent",
    "ListAgents",
    "DeleteAgent",
    "SetModuleState",
    "GetModuleState",
    "ListModuleStates",
    "StoreResult",
    "GetResult",
    "ListResults",
    "GetEvents",
    "ScheduleTask",
    "GetTask",
    "ListDueTasks",
    "AckTask",
    "NackTask",
    "CancelTask",
    "RequeueTask",
    "Heartbeat",
    "Statistics",
]


def test_the_generations_know_twelve_fifteen_and_all_methods() -> None:
    assert len(contract("a").methods) == 12
    assert contract("b").methods[:12] == contract("a").methods
    assert len(contract("b").methods) == 15
    assert set(contract("b").methods) < set(contract("today").methods)


def test_a_method_of_no_contract_is_unimplemented(client: GrpcioClient) -> None:
    for path in ("/dbos.DBOS/Nonsense", "/other.Service/GetAgent"):
        with pytest.raises(CallError) as caught:
            client.call_raw(path, b"")
        assert caught.value.status == "UNIMPLEMENTED"


@pytest.mark.parametrize("method", SERVED)
def test_a_request_that_is_no_message_hurts_that_call_only(
    client: GrpcioClient, method: str
) -> None:
    bad = [b"\xff", b"\x0a\x05abc"]
    if method not in (
        "ListAgents",
        "GetEvents",
        "ListDueTasks",
        "Statistics",
    ):  # text or message elsewhere
        bad.append(b"\x0a\x02\xff\xfe")
    for garbage in bad:
        with pytest.raises(CallError) as caught:
            client.call_raw(f"/dbos.DBOS/{method}", garbage)
        assert caught.value.status in ("INTERNAL", "INVALID_ARGUMENT")
    assert client.call("RegisterAgent", agent={"id": "still-alive"}).success


def test_a_deadline_that_passes_while_redis_stalls_is_deadline_exceeded(
    redis: ValkeyServer, client: Client
) -> None:
    client.call("RegisterAgent", agent={"id": "a"})
    redis.pause()
    try:
        with pytest.raises(CallError) as caught:
            client.call("RegisterAgent", agent={"id": "a"}, timeout_s=0.2)
        assert caught.value.status == "DEADLINE_EXCEEDED"
    finally:
        redis.resume()
    assert client.call("RegisterAgent", agent={"id": "a"}).success


@pytest.fixture
def own_redis(start_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    """A Valkey that may be killed."""
    return start_valkey()


def test_while_redis_is_away_calls_are_unavailable_and_afterwards_served_again(
    own_redis: ValkeyServer, clock: SteppedClock
) -> None:
    server = ServerThread(own_redis.address, clock=clock).start()
    try:
        with GrpcioClient(server.address) as client:
            assert client.call("RegisterAgent", agent={"id": "a"}).success
            own_redis.kill()
            state = {"agent_id": "a", "module_name": "m", "request_id": "r", "state": "running"}
            requests: dict[str, dict[str, Any]] = {
                "RegisterAgent": {"agent": {"id": "a"}},
                "GetAgent": {"agent_id": "never seen"},
                "ListAgents": {},
                "SetModuleState": {"state": state},
                "GetModuleState": {"request_id": "never seen"},
                "ListModuleStates": {"agent_id": "a"},
                "StoreResult": {"result": {"id": "r", "agent_id": "b", "module_name": "m"}},
                "GetResult": {"agent_id": "a", "request_id": "r"},
                "ListResults": {"agent_id": "a"},
                "GetEvents": {},
            }
            pending = {name: client.start(name, **fields) for name, fields in requests.items()}
            for method, call in pending.items():
                with pytest.raises(CallError) as caught:
                    call.result()
                assert caught.value.status == "UNAVAILABLE", method
                assert "Redis" in caught.value.message, method
            own_redis.start()
            assert client.call("RegisterAgent", agent={"id": "a"}).success
            assert client.call("GetAgent", agent_id="a").found
    finally:
        server.stop()


def test_a_stopped_server_leaves_no_call_unanswered(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        client.call("RegisterAgent", agent={"id": "a"})
        calls = [client.start("RegisterAgent", agent={"id": f"a{n}"}) for n in range(200)]
        server.stop()
        for outcome in map(outcome_of, calls):
            if isinstance(outcome, CallError):
                assert outcome.status == "UNAVAILABLE"
            else:
                assert outcome.success


def test_a_drained_server_finishes_what_it_was_asked(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        client.call("RegisterAgent", agent={"id": "a"})
        calls = [client.start("RegisterAgent", agent={"id": f"a{n}"}) for n in range(200)]
        calls[0].result()
        server.drain(5)
        server.stop()
        outcomes = [outcome_of(call) for call in calls]
    refused = [outcome for outcome in outcomes if isinstance(outcome, CallError)]
    assert {error.status for error in refused} <= {"UNAVAILABLE"}
    acknowledged = {f"a{n}" for n, o in enumerate(outcomes) if not isinstance(o, CallError)}
    with GrpcioClient(start_server().address) as client:
        there = {agent.id for agent in client.call("ListAgents").agents}
        assert acknowledged <= there
