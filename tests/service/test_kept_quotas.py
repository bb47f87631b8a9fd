"""How much is kept of one agent, and how many agents: refused beyond it, also after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.access.test_quotas import Caller
from tests.access.test_quotas import result as encoded
from tests.support.clients import CallError, GrpcioClient
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

StartServer = Callable[..., ServerThread]


def result(client: GrpcioClient, agent: str, result_id: str, data: bytes = b"x") -> Any:
    return client.call(
        "StoreResult", result={"id": result_id, "agent_id": agent, "module_name": "m", "data": data}
    )


def state(client: GrpcioClient, run: str, name: str = "running", module: str = "m") -> Any:
    report = {"agent_id": "a", "module_name": module, "request_id": run, "state": name}
    return client.call("SetModuleState", state=report)


def task(client: GrpcioClient, agent: str, task_id: str) -> Any:
    return client.call("ScheduleTask", task={"id": task_id, "agent_id": agent, "module_name": "m"})


@contextmanager
def refused(quota: str) -> Iterator[None]:
    with pytest.raises(CallError) as error:
        yield
    assert error.value.status == "RESOURCE_EXHAUSTED"
    assert error.value.message.endswith(f"has used up the quota of {quota}")


def restarted(
    start_server: StartServer, servers: list[ServerThread], **settings: Any
) -> GrpcioClient:
    """A client of a new server on the same store."""
    if servers:
        servers.pop().stop()
    servers.append(start_server(**settings))
    return GrpcioClient(servers[0].address)


def test_an_agent_keeps_so_many_results_and_another_its_own(start_server: StartServer) -> None:
    servers: list[ServerThread] = []
    with restarted(start_server, servers, agent_results_max=3) as client:
        for number in range(3):
            assert result(client, "a", f"r{number}").success
        with refused("3 results"):
            result(client, "a", "r3")
        assert result(client, "a", "r1").duplicate, "what changes nothing is not refused"
        assert result(client, "b", "r3").success
        with refused("3 results"):
            result(client, "a", "r3")
        assert len(client.call("ListResults", agent_id="a").results) == 3
    with restarted(start_server, servers, agent_results_max=3) as client:
        with refused("3 results"):
            result(client, "a", "r3")
        assert client.call("DeleteAgent", agent_id="a").success
        assert result(client, "a", "r3").success


def test_what_retention_deletes_makes_room(start_server: StartServer, redis: ValkeyServer) -> None:
    """It does so without telling the agent's actor."""
    server = start_server(agent_results_max=3)
    with GrpcioClient(server.address) as client:
        for number in range(3):
            result(client, "a", f"r{number}")
        with refused("3 results"):
            result(client, "a", "r3")
        redis.execute("HDEL", "dbos:{p0}:results:a", "r0")
        redis.execute("ZREM", "dbos:{p0}:results-at:a", "r0")
        assert result(client, "a", "r3").success
        with refused("3 results"):
            result(client, "a", "r4")


def test_copies_and_many_at_once_do_not_get_over_the_limit(start_server: StartServer) -> None:
    server = start_server(agent_results_max=50)
    with GrpcioClient(server.address) as client:
        requests = (
            {"result": {"id": f"r{n % 80}", "agent_id": "a", "module_name": "m"}}
            for n in range(400)
        )
        outcomes = client.call_many("StoreResult", requests)
        stored = [one for one in outcomes if not isinstance(one, CallError) and not one.duplicate]
        assert len(stored) == 50
        assert len(client.call("ListResults", agent_id="a", page_size=100).results) == 50


def test_a_stream_stores_for_the_others_what_a_full_agent_may_not(
    start_server: StartServer,
) -> None:
    server = start_server(agent_results_max=5)
    bodies = [encoded("full" if n % 2 else "roomy" + str(n), str(n)) for n in range(60)]
    with Caller(server) as caller:
        answers = caller.store_results(bodies)
    rejected = [one for answer in answers for one in answer.rejected]
    assert answers[-1].durable == 60
    assert {one.agent_id for one in rejected} == {"full"}
    assert len(rejected) == 25


def test_unfinished_runs_have_a_limit_and_finishing_one_makes_room(
    start_server: StartServer,
) -> None:
    servers: list[ServerThread] = []
    for _ in range(2):
        with restarted(start_server, servers, agent_unfinished_max=2) as client:
            assert state(client, "1").success
            assert state(client, "2").success
            with refused("2 unfinished runs"):
                state(client, "3")
            assert state(client, "2").success, "progress of one that is known"
            assert state(client, "finished at once", "completed").success
    with restarted(start_server, servers, agent_unfinished_max=2) as client:
        assert state(client, "1", "completed").success
        assert state(client, "3").success
        with refused("2 unfinished runs"):
            state(client, "4")


def test_runs_and_modules_have_limits(start_server: StartServer) -> None:
    servers: list[ServerThread] = []
    limits = {"agent_runs_max": 4, "agent_modules_max": 2}
    with restarted(start_server, servers, **limits) as client:
        assert state(client, "1", "completed", "m").success
        assert state(client, "2", "completed", "n").success
        with refused("2 names of modules"):
            state(client, "3", "completed", "o")
        assert state(client, "3", "completed", "n").success
        assert state(client, "", "ready", "m").success
    with restarted(start_server, servers, **limits) as client:
        with refused("4 runs and states of modules"):
            state(client, "4", "completed", "m")
        assert state(client, "", "busy", "m").success
        assert state(client, "3", "completed", "n").success


def test_tasks_of_an_agent_have_a_limit_and_those_of_another_have_their_own(
    start_server: StartServer,
) -> None:
    servers: list[ServerThread] = []
    with restarted(start_server, servers, agent_tasks_max=2) as client:
        assert task(client, "a", "1").success
        assert task(client, "a", "2").success
        with refused("2 tasks"):
            task(client, "a", "3")
        assert task(client, "a", "1").success, "a copy"
        assert task(client, "b", "3").success
        with refused("2 tasks"):
            task(client, "a", "3")  # of another agent until now
    with restarted(start_server, servers, agent_tasks_max=2) as client:
        with refused("2 tasks"):
            task(client, "a", "4")
        assert client.call("DeleteAgent", agent_id="a").success
        assert task(client, "a", "4").success


def test_made_up_ids_fill_neither_memory_nor_redis(
    start_server: StartServer, redis: ValkeyServer
) -> None:
    servers: list[ServerThread] = []
    with restarted(start_server, servers, agents_max=20, heartbeat_timeout_s=60.0) as client:
        requests = ({"agent": {"id": f"agent-{n}", "alive": True}} for n in range(300))
        outcomes = client.call_many("RegisterAgent", requests)
        assert sum(not isinstance(one, CallError) for one in outcomes) == 20
        with refused("20 agents"):
            result(client, "another", "r")
        assert redis.execute("SCARD", "dbos:{p0}:agents:known") == 20
        kept = [agent.id for agent in client.call("ListAgents").agents]
        assert len(kept) == 20
        assert client.call("RegisterAgent", agent={"id": kept[0], "alive": True}).success
    with restarted(start_server, servers, agents_max=20) as client:
        assert result(client, kept[3], "r").success
        with refused("20 agents"):
            result(client, "another", "r")
        assert client.call("DeleteAgent", agent_id=kept[3]).success
        assert result(client, "another", "r").success
        with refused("20 agents"):
            result(client, kept[3], "r")
