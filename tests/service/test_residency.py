"""What is in memory must not show: evicted runs, restarts, deletions that a crash cut short."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio

from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.actors.agents.caches import RUN_OVERHEAD_BYTES
from dbos_actors.domain.runs import STATES, TERMINAL_STATES
from tests.support.clients import CallError, Client, GrpcioClient, outcome_of
from tests.support.keyspace import Keyspace
from tests.support.runs import start_runs
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

DELETING = "dbos:{p0}:agents:deleting"


def ask(client: Client, method: str, **fields: Any) -> Any:
    """A call, made again while every actor in a small table is busy."""
    while True:
        try:
            return client.call(method, timeout_s=10, **fields)
        except CallError as error:
            if error.status != "RESOURCE_EXHAUSTED":
                raise


def report(client: Client, agent_id: str, request_id: str, state: str, **fields: Any) -> Any:
    values = {"agent_id": agent_id, "module_name": "m", "request_id": request_id, "state": state}
    return ask(client, "SetModuleState", state={**values, **fields})


def read(client: Client, request_id: str, **fields: Any) -> Any:
    response = client.call("GetModuleState", request_id=request_id, timeout_s=10, **fields)
    assert response.found, response.error
    return response.state


def test_finished_runs_that_have_left_memory_are_read_and_judged_as_before(
    start_server: Callable[..., ServerThread],
) -> None:
    """Nothing fits into the cache, so every finished run is fetched for every call."""
    with GrpcioClient(start_server(run_cache_bytes=0).address) as client:
        for number in range(10):
            for agent_id in ("a", "b"):
                assert report(client, agent_id, f"{agent_id}{number}", "completed").success
        for number in range(10):
            for agent_id in ("a", "b"):
                run = f"{agent_id}{number}"
                assert read(client, run).version == 1
                assert report(client, agent_id, run, "completed", details={"x": "y"}).success
                response = report(client, agent_id, run, "running")
                assert response.error == "invalid transition completed -> running"
                assert read(client, run, agent_id=agent_id).version == 1
        calls = [client.start("GetModuleState", request_id="a1") for _ in range(50)]
        assert all(outcome_of(call).found for call in calls)


def test_an_agent_that_is_never_idle_keeps_the_budget_of_finished_runs(
    start_server: Callable[..., ServerThread],
) -> None:
    budget = 20_000
    server = start_server(run_cache_bytes=budget)
    with GrpcioClient(server.address) as client:
        done = threading.Event()

        def stay_busy(number: int) -> None:
            """Results of the same agent: while one is committed the next ones are submitted."""
            for turn in itertools.count():
                if done.is_set():
                    return
                result = {"id": f"{number}-{turn}", "agent_id": "a", "module_name": "m"}
                client.call("StoreResult", result=result)

        with ThreadPoolExecutor(8) as pool:
            workers = [pool.submit(stay_busy, number) for number in range(8)]
            try:
                for number in range(200):
                    assert report(client, "a", f"r{number}", "completed").success
            finally:
                done.set()
            for worker in workers:
                worker.result()

        def held() -> int:
            cell = server.inside.agents.get("a")
            assert cell is not None
            behaviour = cell.behaviour
            assert isinstance(behaviour, AgentActor)
            return len(behaviour._runs)

        assert server.run(held) <= budget // RUN_OVERHEAD_BYTES
        assert read(client, "r0", agent_id="a").state == "completed"


def test_after_a_restart_the_run_last_changed_under_an_id_is_still_known(
    start_server: Callable[..., ServerThread], clock: SteppedClock
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        for agent_id in ("one", "two", "three", "two"):
            report(client, agent_id, "shared", "running")
            clock.now_s += 1
    first.stop()
    with GrpcioClient(start_server().address) as client:
        assert read(client, "shared").agent_id == "two"


def test_an_agent_with_thousands_of_unfinished_runs_is_served_after_a_restart(
    start_server: Callable[..., ServerThread],
) -> None:
    first = start_server()
    count = 1_500  # more than are loaded at once
    with GrpcioClient(first.address) as client:
        start_runs(client, count)
    first.stop()
    with GrpcioClient(start_server().address) as client:
        for number in (0, 7, count - 1):
            assert read(client, f"r{number}").state == "running"
            assert report(client, "a", f"r{number}", "completed").success
            assert read(client, f"r{number}").version == 2
        assert report(client, "a", "new", "created").success
        assert read(client, "new").version == 1


def test_a_deletion_that_a_crash_cut_short_is_finished_by_the_next_server(
    start_server: Callable[..., ServerThread], redis: ValkeyServer
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        for agent_id in ("doomed", "other"):
            client.call("RegisterAgent", agent={"id": agent_id})
            for number in range(5):
                report(client, agent_id, f"r{number}", "running")
            result = {"id": "r", "agent_id": agent_id, "module_name": "m"}
            client.call("StoreResult", result=result)
    first.stop()
    # As its first two commits leave it.
    redis.execute("SADD", DELETING, "doomed")
    redis.execute("ZREM", "dbos:{p0}:request:r1", "doomed")

    server = start_server()

    async def until_finished() -> None:
        with trio.fail_after(10):
            while redis.execute("SCARD", DELETING):  # noqa: ASYNC110 - nothing else tells
                await trio.sleep(0.01)

    trio.from_thread.run(until_finished, trio_token=server.token)
    with GrpcioClient(server.address) as client:
        assert [agent.id for agent in client.call("ListAgents").agents] == ["other"]
        assert len(client.call("ListModuleStates", agent_id="other").states) == 5
    with redis.client() as connection:
        assert Keyspace(connection).problems() == []
    assert not [key for key in redis.execute("KEYS", "*") if b"doomed" in key]


def test_the_keyspace_check_of_these_tests_sees_half_written_changes(
    client: Client, redis: ValkeyServer
) -> None:
    client.call("RegisterAgent", agent={"id": "a"})
    report(client, "a", "r", "running")
    client.call("StoreResult", result={"id": "r", "agent_id": "a", "module_name": "m"})
    with redis.client() as connection:
        assert Keyspace(connection).problems() == []
        for command in (
            ("ZREM", "agents:index", "a"),
            ("SREM", "agents:known", "a"),
            ("HDEL", "results:a", "r"),
            ("ZREM", "results-at:a", "r"),
            ("ZREM", "states-at:a", "rr"),
            ("ZREM", "states-of:a:m", "rr"),
            ("SREM", "modules:a", "m"),
            ("SREM", "unfinished:a", "r"),
            ("ZREM", "request:r", "a"),
        ):
            name, key, member = command
            key = f"dbos:{{p0}}:{key}"
            before: Any = connection.dump(key)
            assert redis.execute(name, key, member) == 1
            assert Keyspace(connection).problems(), command
            connection.restore(key, 0, before, replace=True)
            assert Keyspace(connection).problems() == []


# --------------------------------------------------------------------- a model


class Model:
    """What the service should say, kept in two dictionaries."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], tuple[str, int, str]] = {}  # state, version, note
        self.results: dict[tuple[str, str], bytes] = {}
        self.heartbeats: dict[str, int] = {}

    def report(self, agent: str, run: str, state: str, note: str, version: int) -> bool:
        """Whether the report is granted."""
        current = self.runs.get((agent, run))
        if current is None:
            if version not in (0, 1):
                return False
            self.runs[agent, run] = (state, 1, note)
            return True
        was, at, noted = current
        if was in TERMINAL_STATES:
            return state == was
        # The three terminal states have one rank.
        if min(STATES.index(state), 3) < min(STATES.index(was), 3):
            return False
        if version not in (0, at + 1):
            return version == at and (state, note) == (was, noted)
        self.runs[agent, run] = (state, at + 1, note)
        return True

    def forget(self, agent: str) -> None:
        for key in [key for key in self.runs if key[0] == agent]:
            del self.runs[key]
        for key in [key for key in self.results if key[0] == agent]:
            del self.results[key]
        self.heartbeats.pop(agent, None)


class Walk:
    """Random calls to one server after the other, each answer compared with the model's."""

    agents = ("a", "b:{c}", "d%")
    runs = tuple(f"r{number}" for number in range(5))

    def __init__(self, start: Callable[..., ServerThread], seed: int) -> None:
        self._start = start
        self._random = random.Random(seed)
        self.model = Model()
        self.server = self._started()
        self.client = GrpcioClient(self.server.address)

    def _started(self) -> ServerThread:
        return self._start(
            run_cache_bytes=self._random.choice([0, 2_000, 1 << 20]),
            max_resident_agents=self._random.choice([1, 2, 100]),
        )

    def step(self) -> None:
        steps = [self.report] * 6 + [self.read] * 4 + [self.store, self.beat, self.list]
        rare = [self.delete, self.reload, self.restart]
        step = self._random.choice([*steps, self._random.choice(rare)])
        step(self._random.choice(self.agents), self._random.choice(self.runs))

    def report(self, agent: str, run: str) -> None:
        state, note = self._random.choice(STATES), self._random.choice("xy")
        version = self._random.choice([0, 0, 0, 1, 2, 3])
        response = report(self.client, agent, run, state, details={"note": note}, version=version)
        assert response.success == self.model.report(agent, run, state, note, version)

    def read(self, agent: str, run: str) -> None:
        response = ask(self.client, "GetModuleState", request_id=run, agent_id=agent)
        found = response.state
        shown = (found.state, found.version, found.details.get("note"))
        assert self.model.runs.get((agent, run)) == (shown if response.found else None)

    def store(self, agent: str, run: str) -> None:
        data = self._random.choice([b"1", b"2"])
        result = {"id": run, "agent_id": agent, "module_name": "m", "data": data}
        duplicate = ask(self.client, "StoreResult", result=result).duplicate
        assert duplicate == ((agent, run) in self.model.results)
        self.model.results.setdefault((agent, run), data)

    def beat(self, agent: str, run: str) -> None:
        count = self._random.randrange(100)
        ask(self.client, "RegisterAgent", agent={"id": agent, "total_heartbeats": count})
        self.model.heartbeats[agent] = max(self.model.heartbeats.get(agent, 0), count)

    def list(self, agent: str, run: str) -> None:
        states = ask(self.client, "ListModuleStates", agent_id=agent).states
        shown = {(agent, state.request_id): state.version for state in states}
        assert shown == {k: v[1] for k, v in self.model.runs.items() if k[0] == agent}
        results = ask(self.client, "ListResults", agent_id=agent).results
        stored = {(agent, result.id): result.data for result in results}
        assert stored == {k: v for k, v in self.model.results.items() if k[0] == agent}

    def delete(self, agent: str, run: str) -> None:
        assert ask(self.client, "DeleteAgent", agent_id=agent).success
        self.model.forget(agent)

    def reload(self, agent: str, run: str) -> None:
        self.server.run(self.server.inside.agents.reload_all)

    def restart(self, agent: str, run: str) -> None:
        self.client.close()
        self.server.stop()
        self.server = self._started()
        self.client = GrpcioClient(self.server.address)


@pytest.mark.parametrize("seed", range(4))
def test_random_calls_restarts_and_evictions_agree_with_a_model(
    start_server: Callable[..., ServerThread], redis: ValkeyServer, clock: SteppedClock, seed: int
) -> None:
    walk = Walk(start_server, seed)
    try:
        for _ in range(250):
            clock.now_s += 0.001
            walk.step()
        listed = ask(walk.client, "ListAgents").agents
        assert {one.id: one.total_heartbeats for one in listed} == walk.model.heartbeats
    finally:
        walk.client.close()
    with redis.client() as connection:
        assert Keyspace(connection).problems() == []
