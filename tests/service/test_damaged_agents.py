"""Damaged records and keys of one agent: work in the background goes on for all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.service.test_operations import wait_until
from tests.service.test_retention import NOW_S, report
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

GARBAGE = b"\xff\xff\xff"
LONG_AGO_MS = (NOW_S - 1_000) * 1_000


def runs_of(redis: ValkeyServer, agent: str) -> int:
    found: int = redis.execute("HLEN", f"dbos:{{p0}}:states:{agent}")
    return found


def with_old_runs(
    start_server: Callable[..., ServerThread], clock: SteppedClock, *agents: str
) -> None:
    clock.now_s = NOW_S - 1_000.0
    server = start_server()
    with GrpcioClient(server.address) as client:
        for agent in agents:
            for number in range(3):
                report(client, agent, f"r{number}", "completed")
            result = {"id": "r", "agent_id": agent, "module_name": "m"}
            assert client.call("StoreResult", result=result).success
    server.stop()
    clock.now_s = float(NOW_S)


def test_an_old_run_that_cannot_be_read_is_deleted_like_others(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock
) -> None:
    with_old_runs(start_server, clock, "a", "b")
    redis.execute("HSET", "dbos:{p0}:states:a", "rr1", GARBAGE)
    server = start_server(runs_max_age_s=10)
    wait_until(lambda: runs_of(redis, "a") == runs_of(redis, "b") == 0)
    assert redis.execute("EXISTS", "dbos:{p0}:states-of:a:m", "dbos:{p0}:states-at:a") == 0
    with GrpcioClient(server.address) as client:
        report(client, "a", "r1", "created")


@pytest.mark.parametrize("key", ["states-at:a", "results-at:a"])
def test_a_key_of_the_wrong_type_keeps_retention_from_no_other_agent(
    start_server: Callable[..., ServerThread],
    redis: ValkeyServer,
    clock: SteppedClock,
    key: str,
) -> None:
    with_old_runs(start_server, clock, "a", "b", "c")
    redis.execute("DEL", f"dbos:{{p0}}:{key}")
    redis.execute("SET", f"dbos:{{p0}}:{key}", "not a sorted set")
    server = start_server(
        runs_max_age_s=10, results_max_age_s=10, results_max_bytes=1 << 20, runs_max_bytes=1 << 20
    )
    for agent in "bc":
        wait_until(lambda agent=agent: runs_of(redis, agent) == 0)  # type: ignore[misc]
        wait_until(lambda agent=agent: not redis.execute("EXISTS", f"dbos:{{p0}}:results:{agent}"))  # type: ignore[misc]
    with GrpcioClient(server.address) as client:
        assert not client.call("ListResults", agent_id="b").results


def test_agents_fall_silent_though_records_of_another_cannot_be_read(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        for agent in "abc":
            assert client.call("RegisterAgent", agent={"id": agent, "alive": True}).success
            for number in range(3):
                report(client, agent, f"{agent}{number}", "running")
    server.stop()
    redis.execute("HSET", "dbos:{p0}:agents", "a", GARBAGE)
    redis.execute("HSET", "dbos:{p0}:states:b", "rb1", GARBAGE)
    server = start_server(heartbeat_timeout_s=0.3)
    with GrpcioClient(server.address) as client:

        def state(request_id: str) -> str:
            response = client.call("GetModuleState", agent_id=request_id[0], request_id=request_id)
            return str(response.state.state)

        for request_id in ("a0", "a1", "b0", "b2", "c0", "c1", "c2"):
            wait_until(lambda r=request_id: state(r) == "failed")  # type: ignore[misc]
        assert not client.call("GetAgent", agent_id="c").agent.alive


@pytest.mark.parametrize("registered", [None, {"id": "a", "hostname": "h"}])
def test_runs_of_an_agent_that_never_said_it_is_alive_fail_after_a_restart(
    start_server: Callable[..., ServerThread], registered: dict[str, Any] | None
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        if registered is not None:
            assert client.call("RegisterAgent", agent=registered).success
        report(client, "a", "run", "running")
    server.stop()
    server = start_server(heartbeat_timeout_s=0.3)
    with GrpcioClient(server.address) as client:

        def has_failed() -> bool:
            state = client.call("GetModuleState", agent_id="a", request_id="run").state
            return bool(state.state == "failed" and state.inferred_from == "running")

        wait_until(has_failed)


def test_a_filtered_listing_leaves_out_what_cannot_be_read(
    client: GrpcioClient, redis: ValkeyServer
) -> None:
    for result_id in ("r1", "r2"):
        result = {"id": result_id, "agent_id": "a", "module_name": "m"}
        assert client.call("StoreResult", result=result).success
    redis.execute("HSET", "dbos:{p0}:results:a", "r1", GARBAGE)
    results = client.call("ListResults", agent_id="a", module_name="m", page_size=10).results
    assert [result.id for result in results] == ["r2"]
