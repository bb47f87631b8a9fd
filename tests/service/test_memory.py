"""Memory: a hundred thousand resident agents, long listings, and agents that have left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio

from bench.recorded_writes import Load, Write
from dbos_actors.api.messages import (
    Agent,
    ModuleState,
    RegisterAgentRequest,
    SetModuleStateRequest,
)
from tests.support.clients import CallError, GrpcioClient
from tests.support.process import ServerProcess
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

AGENTS = 100_000
STATES_EACH = 3
MIB = 1 << 20


def population(agents: range) -> Iterator[Write]:
    """Every agent registers and reports three runs that go on, as agents of such a network do."""
    for number in agents:
        agent_id = f"probe-{number:06}"
        agent = Agent(id=agent_id, hostname=f"host-{number}.example", alive=True)
        request = RegisterAgentRequest(agent=agent).SerializeToString()
        yield Write("RegisterAgent", request, agent_id, "", 1)
        for module in range(STATES_EACH):
            state = ModuleState(
                agent_id=agent_id,
                module_name=f"module-{module}",
                request_id=f"request-{number:06}-{module}",
                state="running",
                details={"target": "192.0.2.1", "interval": "60"},
            )
            report = SetModuleStateRequest(state=state).SerializeToString()
            yield Write("SetModuleState", report, agent_id, state.request_id, 1)


@pytest.mark.long
async def test_a_hundred_thousand_resident_agents_fit_in_a_gigabyte(
    start_valkey: Callable[..., ValkeyServer], record_property: Callable[[str, object], None]
) -> None:
    valkey = start_valkey(appendonly="no")
    # Nobody leaves memory while they are counted.
    with ServerProcess(valkey.address, DBOS_IDLE_PASSIVATION="24h") as server:
        await trio.to_thread.run_sync(server.wait_ready)
        empty = server.rss_bytes()
        load = Load(keeps_history=False)
        quarters = [range(n * AGENTS // 4, (n + 1) * AGENTS // 4) for n in range(4)]
        await load.run(
            server.address, in_flight_each=900, writes=[population(part) for part in quarters]
        )
        assert load.acknowledged == AGENTS * (1 + STATES_EACH)
        full = server.rss_bytes()
        record_property("rss_empty_mib", empty // MIB)
        record_property("rss_full_mib", full // MIB)
        print(f"RSS: {empty // MIB} MiB empty, {full // MIB} MiB with {AGENTS} resident agents")
        assert full < 1_000_000_000

        await trio.to_thread.run_sync(list_all, server.address)
        listed = server.rss_bytes()
        print(f"RSS: {listed // MIB} MiB after listing")
        assert listed - full < 160 * MIB


def list_all(address: str) -> None:
    """Every agent, page by page, by several clients at once; and all at once, which is refused."""

    def page_through(page_size: int) -> None:
        with GrpcioClient(address) as client:
            expected = 0
            token = ""
            while True:
                response = client.call("ListAgents", page_size=page_size, page_token=token)
                for agent in response.agents:
                    assert agent.id == f"probe-{expected:06}"
                    expected += 1
                token = response.next_page_token
                if not token:
                    break
            assert expected == AGENTS

    def everything(_: int) -> None:
        with (
            GrpcioClient(address) as client,
            pytest.raises(CallError, match=r"RESOURCE_EXHAUSTED.*page_size"),
        ):
            client.call("ListAgents", timeout_s=60)

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(page_through, (10_000, 1_000)):
            pass
        for _ in pool.map(everything, range(8)):
            pass


def test_agents_beyond_the_limit_leave_memory_and_are_served_all_the_same(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(max_resident_agents=50)
    names = [f"a{number}" for number in range(500)]
    with GrpcioClient(server.address) as client:
        for state in ("created", "running"):
            outcomes = client.call_many(
                "SetModuleState",
                (
                    {
                        "state": {
                            "agent_id": name,
                            "module_name": "m",
                            "request_id": name,
                            "state": state,
                        }
                    }
                    for name in names
                ),
                in_flight=20,
            )
            assert all(outcome.success for outcome in outcomes)
        statistics = server.run(server.inside.agents.statistics)
        assert statistics.resident <= 50
        assert statistics.passivations >= 950
        for name in names:
            found = client.call("GetModuleState", request_id=name).state
            assert (found.agent_id, found.state, found.version) == (name, "running", 2)


def test_more_agents_at_once_than_may_be_resident_are_refused_or_served_never_lost(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server(max_resident_agents=10)
    with GrpcioClient(server.address) as client:
        outcomes = client.call_many(
            "RegisterAgent", ({"agent": {"id": f"a{n}"}} for n in range(300)), in_flight=300
        )
        served = {f"a{n}" for n, o in enumerate(outcomes) if not isinstance(o, CallError)}
        refused = {o.status for o in outcomes if isinstance(o, CallError)}
        assert refused <= {"RESOURCE_EXHAUSTED"}
        assert {agent.id for agent in client.call("ListAgents").agents} == served


def test_idle_agents_leave_memory(start_server: Callable[..., ServerThread]) -> None:
    server = start_server(idle_passivation_s=1)
    with GrpcioClient(server.address) as client:
        for number in range(20):
            assert client.call("RegisterAgent", agent={"id": f"a{number}"}).success

        async def until_empty() -> None:
            with trio.fail_after(20):
                while server.inside.agents.statistics().resident:  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.02)

        trio.from_thread.run(until_empty, trio_token=server.token)
        assert client.call("GetAgent", agent_id="a7").found
