"""Whether what a Redis holds at the end is whole: every record has its indexes, and the reverse.

A commit is one transaction, so none of this may ever be found half done. It is
read from the data itself, past the service.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from dbos_actors.api.messages import ModuleState
from dbos_actors.store.keys import Keys, escaped
from tests.simulation.models import RANK, TERMINAL
from tests.simulation.redis.database import Database


def inconsistencies(database: Database, agents: list[str], request_ids: list[str]) -> list[str]:
    """What contradicts itself in the data of these agents."""
    return [
        *(problem for agent in agents for problem in _Agent(database, agent).problems()),
        *_directory_problems(database, agents, request_ids),
        *_event_problems(database),
    ]


def _differ(what: str, one: Any, other: Any) -> list[str]:
    return [] if one == other else [f"{what}: {one} is not {other}"]


class _Agent:
    """What is kept of one agent."""

    def __init__(self, database: Database, agent_id: str) -> None:
        keys, values = Keys(), database.values
        name = escaped(agent_id)
        self.agent_id = agent_id
        self.states = {
            field.decode(): ModuleState.FromString(record)
            for field, record in values.get((keys.states + name).encode(), {}).items()
        }
        self.states_at = _members(values, keys.states_at + name)
        self.modules = {m.decode() for m in values.get((keys.modules + name).encode(), {})}
        self.states_of = {
            module: _members(values, f"{keys.states_of}{name}:{escaped(module)}")
            for module in self.modules
        }
        self.unfinished = {m.decode() for m in values.get((keys.unfinished + name).encode(), {})}
        self.results = {f.decode() for f in values.get((keys.results + name).encode(), {})}
        self.results_at = _members(values, keys.results_at + name)
        # A command of a commit failed here, and the key is listed for `check`.
        listed = values.get(keys.to_check.encode(), {})
        self.results_are_to_check = (keys.results_at + name).encode() in listed

    def problems(self) -> list[str]:
        of = f" of {self.agent_id}"
        unfinished = {
            part[1:]
            for part, state in self.states.items()
            if part[0] == "r" and RANK[state.state] != TERMINAL
        }
        by_module: dict[str, set[str]] = defaultdict(set)
        for part, state in self.states.items():
            by_module[state.module_name].add(part)
        found = [
            *_differ(f"states-at{of}", self.states_at, set(self.states)),
            *_differ(f"unfinished{of}", self.unfinished, unfinished),
            *_differ(f"modules{of}", self.modules, set(by_module)),
        ]
        if not self.results_are_to_check:
            found += _differ(f"results-at{of}", self.results_at, self.results)
        for module, parts in by_module.items():
            found += _differ(f"states-of{of}, {module}", self.states_of.get(module), parts)
        return found


def _directory_problems(database: Database, agents: list[str], request_ids: list[str]) -> list[str]:
    """The registered agents by id, and who has a run of each request id."""
    keys, values = Keys(), database.values
    records = {field.decode() for field in values.get(keys.agents.encode(), {})}
    found = _differ("agents:index", _members(values, keys.agents_index), records)
    for request_id in request_ids:
        having = {
            agent
            for agent in agents
            if b"r" + request_id.encode() in values.get((keys.states + escaped(agent)).encode(), {})
        }
        indexed = _members(values, keys.request + escaped(request_id)) & set(agents)
        found += _differ(f"request {request_id}", indexed, having)
    return found


def _event_problems(database: Database) -> list[str]:
    """A run's transitions, as events: each once, in order, until its agent is deleted.

    A result has one event, if there are events of results.
    """
    stream = database.values.get(Keys().events.encode())
    entries = [] if stream is None else stream.entries
    ids = [entry[0] for entry in entries]
    found = _differ("event ids", ids, sorted(set(ids)))
    last: dict[tuple[str, str], tuple[int, str]] = {}
    stored: set[tuple[str, str]] = set()
    for _, fields in entries:
        event = json.loads(fields[1])
        metadata = event["metadata"]
        agent_id = metadata.get("agent_id", "")
        if event["type"] == "agent.deleted":
            last = {run: seen for run, seen in last.items() if run[0] != agent_id}
            stored = {result for result in stored if result[0] != agent_id}
        elif event["type"] == "result.stored":
            result = agent_id, metadata["result_id"]
            if result in stored:
                found.append(f"events of {result}: stored twice")
            stored.add(result)
        elif "previous_state" in metadata:
            run = agent_id, metadata["request_id"]
            version, state = last.get(run, (0, ""))
            now = int(metadata["version"])
            if now <= version or metadata["previous_state"] != state:
                found.append(f"events of {run}: {version} {state!r}, then {metadata}")
            last[run] = now, metadata["state"]
    for (agent_id, request_id), (_, state) in last.items():
        states = database.values.get((Keys().states + escaped(agent_id)).encode(), {})
        record = states.get(b"r" + request_id.encode())
        kept = None if record is None else ModuleState.FromString(record).state
        found += _differ(f"last event of {agent_id} {request_id}", state, kept)
    return found


def _members(values: dict[bytes, Any], key: str) -> set[str]:
    found = values.get(key.encode())
    return set() if found is None else {member.decode() for member in found.scores}
