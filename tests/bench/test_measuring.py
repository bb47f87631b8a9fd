"""A small measurement from end to end, and stores that do not hold what was acknowledged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import servers, verify
from bench.driver import run_load
from bench.load.plan import Group, GroupOutcome, Load
from bench.load.requests import Parameters, agent_of, id_of, id_prefix
from bench.runner import Options, Runner, Sample
from bench.scenarios import Profile, Scenario, Step, Traffic
from bench.servers import ServerKind

PREFIX = id_prefix(7, 0)
PROFILE = Profile("test", 1, 0.0, 0.3, 0.3, 0.3, 5.0)
STORE = Step("store", "StoreResult", (Traffic("store_result", 2, 16),))
READ = Step("read", "GetResult", (Traffic("get_result", 2, 16),), reads="store")
TASKS = Step("tasks", "ScheduleTask", (Traffic("schedule_task", 1, 1),), count=10, warmup=False)
DRAIN = Step("drain", "LeaseTasks", (Traffic("lease_tasks", 1, 1),), reads="tasks", count=10)

PEER = ServerKind("peer", "a peer", (sys.executable, "-m", "bench.peers.grpc_aio"))


@pytest.fixture(name="valkey")
def _valkey(tmp_path: Path) -> Iterator[servers.Process]:
    process = servers.start_valkey(tmp_path)
    yield process
    process.stop(kill=True)


def run(kind: ServerKind, *steps: Step) -> list[Sample]:
    scenario = Scenario("s", "a scenario", steps, agents=10, servers=(kind.name,))
    said: list[str] = []
    runner = Runner({kind.name: kind}, Options(PROFILE), say=said.append)
    return [s for samples in runner.samples([scenario], [kind.name]) for s in samples]


def test_a_measurement_has_figures_and_checks_the_store() -> None:
    store, read, tasks, drain = run(PEER, STORE, READ, TASKS, DRAIN)
    for sample in (store, read):
        assert sample.problems == []
        assert sample.skipped is None
        assert sample.calls > 0
        assert sample.rate > 0
        assert 0 < sample.p50_us <= sample.p95_us <= sample.p99_us
        assert sample.in_flight == 16
    assert tasks.skipped == "UNIMPLEMENTED"
    assert drain.skipped == "needs tasks"


def test_a_server_that_acknowledges_without_writing_is_found_out() -> None:
    liar = ServerKind("liar", "a liar", (sys.executable, "-m", "bench.peers.canned"))
    (sample,) = run(liar, STORE)
    assert not sample.usable
    assert any("0 stored" in problem for problem in sample.problems)


def test_a_server_that_does_not_start_is_skipped_with_what_it_said() -> None:
    broken = ServerKind("broken", "broken", (sys.executable, "-c", "raise SystemExit('no luck')"))
    (sample,) = run(broken, STORE)
    assert sample.skipped is not None
    assert "no luck" in sample.skipped


def test_every_valkey_is_durable_to_the_second_and_never_rewrites(valkey: servers.Process) -> None:
    with servers.client_of(valkey.address) as client:
        for name, value in servers.VALKEY_SETTINGS.items():
            assert client.config_get(name) == {name: value}


@pytest.fixture(name="stored")
def _stored(valkey: servers.Process, tmp_path: Path) -> Iterator[tuple[Any, list[Any]]]:
    """A client, and 60 results written through a peer."""
    server = servers.start_server(PEER, valkey.address, tmp_path)
    try:
        parameters = Parameters("store_result", PREFIX, agents=10, count=60)
        group = Group("store_result", parameters, 1, 8)
        load = Load(server.address, (group,), 0.0, 10.0, until_exhausted=True)
        outcome = run_load(load).total
    finally:
        server.stop()
    assert outcome.error is None
    with servers.client_of(valkey.address) as client:
        yield client, [(parameters, outcome.groups["store_result"])]


def test_a_store_that_holds_everything_passes(stored: tuple[Any, list[Any]]) -> None:
    client, written = stored
    assert verify.check(verify.PeerLayout(client), written, seed=1) == []


@pytest.mark.parametrize("key", ["results:", "results-at:"])
def test_one_missing_write_fails_the_check(key: str, stored: tuple[Any, list[Any]]) -> None:
    client, written = stored
    agent_id, result_id = agent_of(17, 10), id_of(PREFIX, 17)
    remove = client.hdel if key == "results:" else client.zrem
    assert remove(key + agent_id, result_id) == 1
    problems = verify.check(verify.PeerLayout(client), written, seed=1)
    assert "results: 59 stored, 60 acknowledged of 60 sent" in problems


def test_a_record_with_other_content_fails_the_check(stored: tuple[Any, list[Any]]) -> None:
    client, written = stored
    here, there = agent_of(17, 10), agent_of(18, 10)
    other = client.hget(f"results:{there}", id_of(PREFIX, 18))
    client.hset(f"results:{here}", id_of(PREFIX, 17), other)
    problems = verify.check(verify.PeerLayout(client), written, seed=1)
    assert problems == [f"result {id_of(PREFIX, 17)} of {here} is not what was sent"]


def test_a_write_that_nobody_asked_for_fails_the_check(stored: tuple[Any, list[Any]]) -> None:
    client, written = stored
    for key in ("results:", "results-at:"):
        add = client.hset if key == "results:" else lambda k, f, _: client.zadd(k, {f: 1})
        add(key + agent_of(0, 10), "stray", b"x")
    assert verify.check(verify.PeerLayout(client), written, seed=1)
    assert not verify.check(verify.PeerLayout(client), written, seed=1, exactly=False)


def test_two_load_processes_share_the_work_and_have_ids_of_their_own(
    valkey: servers.Process, tmp_path: Path
) -> None:
    server = servers.start_server(PEER, valkey.address, tmp_path)
    try:
        parameters = Parameters("store_result", PREFIX, agents=10, count=80)
        group = Group("store_result", parameters, 2, 8)
        load = Load(server.address, (group,), 0.0, 10.0, until_exhausted=True)
        measured = run_load(load, workers=2)
    finally:
        server.stop()
    assert measured.total.error is None
    assert measured.total.groups["store_result"].acknowledged == 80
    written: list[tuple[Parameters, GroupOutcome]] = [
        (part.groups[0].workload, outcome.groups["store_result"])
        for part, outcome in measured.parts
    ]
    with servers.client_of(valkey.address) as client:
        assert verify.check(verify.PeerLayout(client), written, seed=1) == []
