"""Heartbeat through real clients, and agents that are listed without having registered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import Client, GrpcioClient, open_client
from tests.support.servers import ServerThread, SteppedClock
from tests.support.tasks import wait_until
from tests.support.valkey import ValkeyServer

NOW = 1_700_000_000
CONFIG = {f"key {number}": "value" * number for number in range(20)}


@pytest.fixture(params=["grpcio-today", "aio-today", "sdk"])
def client(server: ServerThread, request: pytest.FixtureRequest) -> Iterator[Client]:
    with open_client(request.param, server.address) as client:
        yield client


def register(client: Client, **fields: Any) -> None:
    agent = {"id": "a", "hostname": "h", "alive": True, "config": CONFIG, **fields}
    assert client.call("RegisterAgent", agent=agent).success


def beat(client: Client, agent_id: str = "a", **fields: Any) -> None:
    response = client.call("Heartbeat", agent_id=agent_id, **fields)
    assert (response.success, response.found, response.error) == (True, True, "")


def agent_of(client: Client) -> Any:
    response = client.call("GetAgent", agent_id="a")
    assert response.found
    return response.agent


def numbers(client: Client) -> tuple[int, int, int, bool]:
    agent = agent_of(client)
    assert (agent.hostname, dict(agent.config)) == ("h", CONFIG)
    return agent.first_seen, agent.last_seen, agent.total_heartbeats, agent.alive


def test_a_heartbeat_changes_two_numbers_and_nothing_else(client: Client) -> None:
    register(client, first_seen=50, last_seen=100, total_heartbeats=7)
    beat(client, last_seen=200, total_heartbeats=8)
    assert numbers(client) == (50, 200, 8, True)
    beat(client, last_seen=300, total_heartbeats=2_147_483_647)
    assert numbers(client) == (50, 300, 2_147_483_647, True)
    beat(client)
    assert numbers(client) == (50, NOW, 2_147_483_647, True)
    (listed,) = client.call("ListAgents").agents
    assert listed == agent_of(client)


def test_nothing_goes_back_and_the_future_is_bounded(client: Client) -> None:
    register(client, first_seen=50, last_seen=NOW - 50, total_heartbeats=7)
    beat(client, last_seen=100, total_heartbeats=3)
    beat(client, last_seen=100, total_heartbeats=-3)
    assert numbers(client) == (50, NOW - 50, 7, True)
    beat(client, last_seen=NOW + 60)
    assert numbers(client) == (50, NOW, 7, True)
    ahead = client.call("Heartbeat", agent_id="a", last_seen=NOW + 100_000)
    assert not ahead.success
    assert ahead.error.startswith(f"last_seen is {NOW + 100_000}, which is more than a day ahead")
    register(client, total_heartbeats=9, first_seen=50)
    assert numbers(client) == (50, NOW, 9, True)


def test_a_repeated_heartbeat_writes_nothing(client: Client, server: ServerThread) -> None:
    register(client, last_seen=100)
    beat(client, last_seen=200, total_heartbeats=8)
    before = server.run(server.inside.store.statistics).commits
    for _ in range(5):
        beat(client, last_seen=200, total_heartbeats=8)
        beat(client, last_seen=150, total_heartbeats=8)
    assert server.run(server.inside.store.statistics).commits == before


def test_an_agent_that_is_not_registered_is_not_found(client: Client) -> None:
    unknown = client.call("Heartbeat", agent_id="b")
    assert (unknown.success, unknown.found) == (False, False)
    assert unknown.error == "agent 'b' is not registered: send RegisterAgent"
    assert client.call("Heartbeat").error == "agent_id is required"
    too_long = client.call("Heartbeat", agent_id="i" * 257).error
    assert too_long == "agent_id has 257 bytes, the limit is 256"
    assert not client.call("ListAgents", include_unregistered=True).agents
    register(client)
    assert client.call("DeleteAgent", agent_id="a").success
    assert not client.call("Heartbeat", agent_id="a").found


def test_only_a_later_heartbeat_brings_an_agent_back_that_went_offline(client: Client) -> None:
    register(client, last_seen=100)
    register(client, last_seen=200, alive=False)
    beat(client, last_seen=150)  # sent before it went offline, and late
    assert not agent_of(client).alive
    beat(client, last_seen=201)
    assert agent_of(client).alive
    types = [json.loads(event)["type"] for event in client.call("GetEvents").events]
    assert types == ["agent.alive", "agent.offline", "agent.registered"]


def test_heartbeats_alone_keep_an_agent_alive_and_bring_a_lapsed_one_back(
    start_server: Callable[..., ServerThread], clock: SteppedClock
) -> None:
    server = start_server(heartbeat_timeout_s=0.5)
    with GrpcioClient(server.address) as client:
        register(client)
        wait_until(lambda: not agent_of(client).alive)
        clock.now_s += 10
        beat(client)
        assert agent_of(client).alive


def test_heartbeats_survive_a_restart_and_earlier_programs_read_the_record(
    redis: ValkeyServer, start_server: Callable[..., ServerThread]
) -> None:
    first = start_server()
    with GrpcioClient(first.address) as client:
        register(client, first_seen=50, last_seen=100)
        for number in range(200, 210):
            beat(client, last_seen=number, total_heartbeats=number)
        expected = agent_of(client)
        old = client.call_raw("/dbos.DBOS/GetAgent", b"\x0a\x01a")
    first.stop()
    with GrpcioClient(start_server().address) as client:
        assert agent_of(client) == expected
        assert client.call_raw("/dbos.DBOS/GetAgent", b"\x0a\x01a") == old
        beat(client, last_seen=300)
        assert numbers(client) == (50, 300, 209, True)


# ------------------------------------------------------------------- ListAgents


def listed(client: Client, **fields: Any) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = client.call("ListAgents", page_token=token, **fields)
        assert not page.error
        found += [agent.id for agent in page.agents]
        token = page.next_page_token
        if not token:
            return found


def test_agents_that_never_registered_are_listed_on_request(
    start_server: Callable[..., ServerThread],
) -> None:
    names = [f"agent-{number:03}" for number in range(300)]
    first = start_server()
    with GrpcioClient(first.address) as client:
        for number, name in enumerate(names):
            if number % 3 == 0:
                assert client.call("RegisterAgent", agent={"id": name, "hostname": "h"}).success
            elif number % 3 == 1:
                result = {"id": "r", "agent_id": name, "module_name": "ping"}
                assert client.call("StoreResult", result=result).success
            else:
                state = {"agent_id": name, "module_name": "ping", "state": "stopped"}
                assert client.call("SetModuleState", state=state).success
        assert listed(client) == names[::3]
        for page_size in (0, 7, 1_000):
            assert listed(client, page_size=page_size, include_unregistered=True) == names
        agents = client.call("ListAgents", include_unregistered=True).agents
        assert [agent.hostname for agent in agents] == ["h", "", ""] * 100
        assert client.call("DeleteAgent", agent_id=names[1]).success
        assert listed(client, include_unregistered=True) == names[:1] + names[2:]
        page = client.call("ListAgents", include_unregistered=True, page_size=5)
        other = client.call("ListAgents", page_size=5, page_token=page.next_page_token)
        assert other.error == "page_token belongs to a listing with other filters"
    first.stop()
    with GrpcioClient(start_server().address) as client:
        assert listed(client, page_size=7, include_unregistered=True) == names[:1] + names[2:]
