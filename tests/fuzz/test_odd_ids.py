"""Ids with every odd character go round through every call, and no two of them meet."""

from __future__ import annotations

import json

import pytest

from tests.fuzz.wire import ODD_CHARACTERS
from tests.support.clients import GrpcioClient
from tests.support.keyspace import Keyspace
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

AFFIXES = ("{}", "a{}", "{}a", "a{}a", "{0}{0}")
IDS = [affix.format(character) for character in ODD_CHARACTERS for affix in AFFIXES] + [
    "%25",
    "%3A",
    "%7B%7D",
    "a:b:c",
    "{p0}",
    "dbos:{p0}:commit",
    "r",
    "m",
    "..",
    "x" * 256,
    "\u00e9" * 128,
    "\U0001f600" * 64,
]


def test_every_odd_id_is_kept_as_it_is_and_told_apart(
    victim: ServerThread, witness: GrpcioClient, store: ValkeyServer
) -> None:
    names = sorted(set(IDS))
    states = [
        {"agent_id": name, "module_name": name, "request_id": name, "state": "running"}
        for name in names
    ]
    results = [
        {"agent_id": name, "id": name, "module_name": name, "data": name.encode()} for name in names
    ]
    for outcomes in (
        witness.call_many("RegisterAgent", ({"agent": {"id": name}} for name in names)),
        witness.call_many("SetModuleState", ({"state": state} for state in states)),
        witness.call_many("StoreResult", ({"result": result} for result in results)),
    ):
        assert [outcome for outcome in outcomes if not outcome.success] == []
    assert {agent.id for agent in witness.call("ListAgents").agents} == set(names)
    for name in names:
        assert witness.call("GetAgent", agent_id=name).agent.id == name
        assert witness.call("GetModuleState", request_id=name).state.agent_id == name
        assert witness.call("GetResult", agent_id=name, request_id=name).result.id == name
        (state,) = witness.call("ListModuleStates", agent_id=name, module_name=name).states
        assert (state.request_id, state.version) == (name, 1)
        (result,) = witness.call("ListResults", agent_id=name, module_name=name).results
        assert result.data == name.encode()
    events = [json.loads(event) for event in witness.call("GetEvents", limit=10_000).events]
    told = {event["metadata"]["request_id"] for event in events if event["type"] == "run.running"}
    assert told == set(names)
    with store.client() as client:
        assert Keyspace(client).problems() == []


def test_pages_of_odd_ids_hold_each_once_and_in_order(witness: GrpcioClient) -> None:
    found: list[str] = []
    token = ""
    while True:
        page = witness.call("ListAgents", page_size=7, page_token=token)
        assert not page.error
        found += [agent.id for agent in page.agents]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(set(IDS), key=str.encode)


def test_odd_ids_are_deleted_alone(witness: GrpcioClient, store: ValkeyServer) -> None:
    left = set(IDS)
    for name in sorted(set(IDS)):
        assert witness.call("DeleteAgent", agent_id=name).success
        left.discard(name)
    assert not witness.call("ListAgents").agents
    with store.client() as client:
        kept = Keyspace(client)
        assert kept.problems() == []
        assert not kept.states
        assert not kept.results


@pytest.mark.parametrize("name", ["x" * 257, "\u00e9" * 129, "\U0001f600" * 65])
def test_one_byte_too_long_is_refused_in_bytes_not_characters(
    witness: GrpcioClient, name: str
) -> None:
    size = len(name.encode())
    text = f"has {size} bytes, the limit is 256"
    assert text in witness.call("RegisterAgent", agent={"id": name}).error
    assert text in witness.call("GetAgent", agent_id=name).error
    result = {"id": name, "agent_id": "a", "module_name": "m"}
    assert text in witness.call("StoreResult", result=result).error
    state = {"request_id": name, "agent_id": "a", "module_name": "m", "state": "running"}
    assert text in witness.call("SetModuleState", state=state).error
