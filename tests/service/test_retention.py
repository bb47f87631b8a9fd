"""Retention by age and by bytes, seen by a client and in Redis itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from dbos_actors.actors.agents import retention
from tests.service.test_operations import wait_until
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

NOW_S = 1_700_000_000


def store(client: GrpcioClient, agent_id: str, numbers: range, **fields: Any) -> None:
    base = {"agent_id": agent_id, "module_name": "m", "data": b"x" * 500, **fields}
    calls = ({"result": {"id": f"r{number}", **base}} for number in numbers)
    assert all(response.success for response in client.call_many("StoreResult", calls))


def listed(client: GrpcioClient, agent_id: str) -> list[str]:
    results = client.call("ListResults", agent_id=agent_id).results
    return [result.id for result in results]


def memory_of_results(redis: ValkeyServer, agent_id: str) -> int:
    """What Redis needs for the results of an agent and for their index."""
    keys = (f"dbos:{{p0}}:results:{agent_id}", f"dbos:{{p0}}:results-at:{agent_id}")
    return sum(redis.execute("MEMORY", "USAGE", key) or 0 for key in keys)


def report(client: GrpcioClient, agent_id: str, request_id: str, state: str, **more: Any) -> None:
    fields = {"agent_id": agent_id, "module_name": "m", "request_id": request_id, "state": state}
    assert client.call("SetModuleState", state={**fields, **more}).success


def test_results_older_than_their_age_are_deleted_with_their_index(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    server = start_server(results_max_age_s=10)
    with GrpcioClient(server.address) as client:
        # More than one step of a sweep, for an agent that never registered.
        store(client, "a", range(1_200), received_at=NOW_S - 1_000)
        store(client, "a", range(2_000, 2_003), received_at=NOW_S - 5)
        store(client, "b", range(3), received_at=NOW_S - 11)
        wait_until(lambda: listed(client, "a") == ["r2000", "r2001", "r2002"])
        wait_until(lambda: listed(client, "b") == [])
        assert not client.call("GetResult", agent_id="a", request_id="r7").found
    assert redis.execute("HLEN", "dbos:{p0}:results:a") == 3
    assert redis.execute("EXISTS", "dbos:{p0}:results:b", "dbos:{p0}:results-at:b") == 0


def test_results_dated_in_the_future_are_not_kept_longer_than_others(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        store(client, "fast", range(20), received_at=NOW_S + 3_600)
        response = client.call(
            "StoreResult",
            result={"id": "ms", "agent_id": "a", "module_name": "m", "received_at": NOW_S * 1_000},
        )
        assert not response.success
        assert response.error.startswith("result.received_at is 1700000000000, which is more than")
        clock.now_s += 10
        store(client, "honest", range(20))
    server.stop()
    sizes = [
        redis.execute("MEMORY", "USAGE", f"dbos:{{p0}}:results:{a}") for a in ("fast", "honest")
    ]
    server = start_server(results_max_bytes=sum(sizes) - sizes[0] // 2)
    with GrpcioClient(server.address) as client:
        wait_until(lambda: len(listed(client, "fast")) < 20)
        assert len(listed(client, "honest")) == 20
    server.stop()
    clock.now_s += 60
    start_server(results_max_age_s=60)
    wait_until(lambda: redis.execute("EXISTS", "dbos:{p0}:results:fast") == 0)


def test_a_clock_that_jumps_forward_deletes_nothing(
    start_server: Callable[..., ServerThread], clock: SteppedClock
) -> None:
    server = start_server(results_max_age_s=10, runs_max_age_s=10)
    with GrpcioClient(server.address) as client:
        store(client, "a", range(3))
        store(client, "old", range(3), received_at=NOW_S - 200)
        clock.now_s += 3_600
        wait_until(lambda: listed(client, "old") == [])
        assert len(listed(client, "a")) == 3


def test_finished_runs_older_than_their_age_leave_every_index(
    start_server: Callable[..., ServerThread], clock: SteppedClock, redis: ValkeyServer
) -> None:
    clock.now_s = NOW_S - 1_000.0
    server = start_server(runs_max_age_s=10)

    with GrpcioClient(server.address) as client:
        for number in range(60):
            report(client, "a", f"open{number}", "running")
        for number in range(5):
            report(client, "a", f"done{number}", "completed")
        report(client, "a", "", "stopped")
    server.stop()
    clock.now_s = float(NOW_S)
    server = start_server(runs_max_age_s=10)
    with GrpcioClient(server.address) as client:
        report(client, "a", "new", "completed")

        def runs() -> set[str]:
            return {s.request_id for s in client.call("ListModuleStates", agent_id="a").states}

        wait_until(lambda: "done0" not in runs() and "done4" not in runs())
        assert runs() == {*(f"open{number}" for number in range(60)), "", "new"}
        assert not client.call("GetModuleState", request_id="done1").found
        assert client.call("GetModuleState", request_id="open1").found
        # The id is free again: a later run under it begins anew.
        report(client, "a", "done1", "created")
    assert redis.execute("EXISTS", "dbos:{p0}:request:done2") == 0
    assert redis.execute("ZCARD", "dbos:{p0}:states-of:a:m") == 63


def test_results_over_their_bytes_go_oldest_first(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        for start in range(0, 1_000, 100):
            store(client, "a", range(start, start + 100), received_at=NOW_S - 2_000 + start)
    server.stop()
    total = memory_of_results(redis, "a")
    server = start_server(results_max_bytes=total // 2)
    with GrpcioClient(server.address) as client:
        wait_until(lambda: len(listed(client, "a")) < 1_000)
        wait_until(lambda: memory_of_results(redis, "a") <= total * 0.52)
        left = listed(client, "a")
        assert left[-1] == "r999"
        assert len(left) >= 300


def test_of_results_received_at_once_no_more_go_than_must(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        store(client, "a", range(400), received_at=NOW_S)
        clock.now_s += 1
        store(client, "b", range(400), received_at=NOW_S + 1)
    server.stop()
    sizes = [memory_of_results(redis, agent) for agent in "ab"]
    server = start_server(results_max_bytes=sum(sizes) - sizes[0] // 2)
    with GrpcioClient(server.address) as client:
        wait_until(lambda: len(listed(client, "a")) < 400)
        assert 150 <= len(listed(client, "a")) <= 250
        assert len(listed(client, "b")) == 400


def test_the_index_of_small_results_counts_for_the_limit(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        store(client, "a", range(3_000), data=b"")
    server.stop()
    limit = memory_of_results(redis, "a") // 2
    start_server(results_max_bytes=limit)
    wait_until(lambda: memory_of_results(redis, "a") <= limit * 1.15, 60)


def test_the_size_of_unfinished_runs_does_not_cause_finished_ones_to_be_deleted(
    start_server: Callable[..., ServerThread],
    redis: ValkeyServer,
    clock: SteppedClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unfinished runs and modules' own states are large and old; the finished runs fit."""
    # All states are looked at instead of twenty by chance, so that the estimate is the same
    # each time.
    monkeypatch.setattr(retention, "_SAMPLES", 1_000)
    large = {"text": "x" * 5_000}
    server = start_server()
    with GrpcioClient(server.address) as client:
        for number in range(100):
            report(client, "a", f"open{number}", "running", details=large)
        report(client, "a", "", "stopped", details=large)
        clock.now_s += 1
        for number in range(100):
            report(client, "a", f"done{number}", "completed")
    server.stop()
    server = start_server(runs_max_bytes=100_000)
    wait_until(lambda: server.run(lambda: server.inside.store.statistics().read_round_trips) > 0)
    time.sleep(1)
    assert redis.execute("HLEN", "dbos:{p0}:states:a") == 201
    server.stop()
    # With half of that limit some of the finished ones go, though all others are older.
    start_server(runs_max_bytes=20_000)
    wait_until(lambda: redis.execute("HLEN", "dbos:{p0}:states:a") < 201)
    wait_until(lambda: redis.execute("EXISTS", "dbos:{p0}:request:done0") == 0)
    time.sleep(0.5)
    left = redis.execute("HLEN", "dbos:{p0}:states:a") - 101
    assert 40 <= left <= 70
    assert redis.execute("SCARD", "dbos:{p0}:unfinished:a") == 100
