"""The commands that are packed in parts are the ones packed at once."""

from __future__ import annotations

import pytest

from dbos_actors.actors.agents.commands import AgentCommands
from dbos_actors.store import Keys, pack
from dbos_actors.store.keys import escaped

KEYS = Keys()
IDS = ["a", "a-1", "100%", "{x}:y", "müller", "%d", "x" * 256]


@pytest.mark.parametrize("agent_id", IDS)
def test_what_an_actor_begins_with_is_read_from_its_keys(agent_id: str) -> None:
    name = escaped(agent_id)
    assert AgentCommands(KEYS).load(agent_id, name.encode()) == [
        pack("HGET", KEYS.agents, agent_id),
        pack("SISMEMBER", KEYS.agents_known, agent_id),
        pack("SISMEMBER", KEYS.agents_deleting, agent_id),
        pack("HLEN", KEYS.states + name),
        pack("SMEMBERS", KEYS.unfinished + name),
    ]


@pytest.mark.parametrize("agent_id", IDS)
@pytest.mark.parametrize("module_name", ["ping", "a:b", "50%"])
def test_a_state_is_written_with_its_two_places(agent_id: str, module_name: str) -> None:
    name = escaped(agent_id)
    commands = AgentCommands(KEYS)
    written = commands.place_state(
        name.encode(), b"rq", b"\x00data", module_name=module_name, score=b"17.001"
    )
    assert written == [
        pack("HSET", KEYS.states + name, "rq", b"\x00data"),
        pack("ZADD", KEYS.states_at + name, "17.001", "rq"),
        pack("ZADD", f"{KEYS.states_of}{name}:{escaped(module_name)}", "17.001", "rq"),
    ]
    assert commands.enter_module.of(name.encode(), b"m") == pack("SADD", KEYS.modules + name, "m")


def test_a_partition_whose_name_has_a_percent_sign_has_its_own_keys() -> None:
    keys = Keys("100%")
    assert AgentCommands(keys).load("a", b"a")[0] == pack("HGET", keys.agents, "a")
