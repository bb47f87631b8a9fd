"""One report 159 times within a second, as it was recorded in the field; and worse."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
import trio

from tests.support.clients import CallError, GrpcioClient, open_client, outcome_of
from tests.support.keyspace import Keyspace
from tests.support.process import ServerProcess
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

STORM = 159

RUN = {"agent_id": "a", "module_name": "ping", "request_id": "r"}
COMPLETED = {"state": {**RUN, "state": "completed", "details": {"rtt": "1"}}}
RESULT = {"result": {"id": "r", "agent_id": "a", "module_name": "ping", "data": b"d"}}
HEARTBEAT = {"agent": {"id": "a", "hostname": "h", "alive": True, "total_heartbeats": 7}}


def storm(clients: list[Any], method: str, fields: dict[str, Any]) -> list[Any]:
    """The same call 159 times over several connections, all under way at once."""
    start = time.monotonic()
    calls = [clients[n % len(clients)].start(method, **fields) for n in range(STORM)]
    outcomes = [outcome_of(call) for call in calls]
    assert time.monotonic() - start < 5.0
    return outcomes


@pytest.fixture
def crowd(victim: ServerThread) -> Any:
    clients = [open_client(kind, victim.address) for kind in ("grpcio-a", "grpcio-today", "sdk")]
    yield clients
    for client in clients:
        client.close()


def test_a_storm_from_several_clients_is_one_change(
    store: ValkeyServer, victim: ServerThread, crowd: list[Any]
) -> None:
    for method, fields in (
        ("SetModuleState", COMPLETED),
        ("StoreResult", RESULT),
        ("RegisterAgent", HEARTBEAT),
    ):
        outcomes = storm(crowd, method, fields)
        assert [outcome for outcome in outcomes if not outcome.success] == []
    with store.client() as client:
        kept = Keyspace(client)
    assert kept.problems() == []
    assert kept.states["a"]["rr"].version == 1
    assert kept.transitions() == Counter({("a", "r", "run.completed"): 1})
    assert list(kept.results["a"]) == ["r"]
    assert kept.agents["a"].total_heartbeats == 7


def test_of_a_storm_of_conditional_reports_one_wins_and_its_retries_are_told_so(
    victim: ServerThread, crowd: list[Any]
) -> None:
    state = {**RUN, "request_id": "c", "state": "running", "version": 1}
    same = storm(crowd[1:], "SetModuleState", {"state": {**state, "details": {"k": "v"}}})
    assert {outcome.success for outcome in same} == {True}
    other = storm(crowd[1:], "SetModuleState", {"state": {**state, "details": {"k": "w"}}})
    assert {outcome.error for outcome in other} == {"version conflict: expected 2, got 1"}


async def test_a_storm_through_the_death_of_its_server_is_one_change(valkey: ValkeyServer) -> None:
    """Whoever got no answer sends it again, to the next server."""
    servers = []
    try:
        unanswered = STORM
        while unanswered:
            server = ServerProcess(valkey.address)
            servers.append(server)
            await trio.to_thread.run_sync(server.wait_ready)
            unanswered = await trio.to_thread.run_sync(
                _send_until_killed, server, unanswered, len(servers) == 1
            )
    finally:
        for server in servers:
            server.close()
    assert len(servers) >= 2
    with valkey.client() as client:
        kept = Keyspace(client)
    assert kept.problems() == []
    assert kept.states["a"]["rr"].version == 1
    assert kept.transitions() == Counter({("a", "r", "run.completed"): 1})


def _send_until_killed(server: ServerProcess, count: int, is_killed: bool) -> int:
    """How many calls had no answer."""
    with GrpcioClient(server.address) as client:
        calls = [client.start("SetModuleState", timeout_s=10.0, **COMPLETED) for _ in range(count)]
        if is_killed:
            calls[count // 2].result()
            server.kill()
        outcomes = [outcome_of(call) for call in calls]
    lost = [outcome for outcome in outcomes if isinstance(outcome, CallError)]
    assert {outcome.status for outcome in lost} <= {"UNAVAILABLE"}
    if is_killed and not lost:
        return 1  # all were answered before the kill: one more, for the next server
    return len(lost)
