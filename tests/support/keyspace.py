"""What a Redis really holds of the service, and whether its parts agree with each other.

Read past the service, key by key: a record without its index entry or an entry without its
record is a half-written change, whatever the service would show of it.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import redis

from dbos_actors.api.messages import Agent, MeasurementResult, ModuleState
from dbos_actors.domain.runs import TERMINAL_STATES

PREFIX = "dbos:{p0}:"

_ESCAPED = {"%3A": ":", "%7B": "{", "%7D": "}", "%25": "%"}


class Keyspace:
    """A snapshot of everything in the store."""

    def __init__(self, client: redis.Redis) -> None:
        self._values: dict[str, Any] = {}
        keys: Any = client.keys(f"{PREFIX}*")
        names = sorted(key.decode() for key in keys)
        for name in names:
            self._values[name.removeprefix(PREFIX)] = _read(client, name)
        self.commit = self._values.get("commit", b"").decode()
        self.agents = {
            agent.decode(): Agent.FromString(record)
            for agent, record in self._values.get("agents", {}).items()
        }
        self.results: dict[str, dict[str, MeasurementResult]] = {
            agent: {field.decode(): MeasurementResult.FromString(v) for field, v in value.items()}
            for agent, value in self._of("results")
        }
        self.states: dict[str, dict[str, ModuleState]] = {
            agent: {field.decode(): ModuleState.FromString(v) for field, v in value.items()}
            for agent, value in self._of("states")
        }
        self.events = [json.loads(fields[b"e"]) for _, fields in self._values.get("events", [])]

    def _of(self, kind: str) -> list[tuple[str, Any]]:
        """(agent, value) of every key of one kind."""
        start = f"{kind}:"
        return [
            (_unescaped(name.removeprefix(start)), value)
            for name, value in self._values.items()
            if name.startswith(start)
        ]

    def transitions(self) -> Counter[tuple[str, str, str]]:
        """How often (agent, request id, event type) is in the event log."""
        return Counter(
            (event["metadata"]["agent_id"], event["metadata"]["request_id"], event["type"])
            for event in self.events
            if event["type"].startswith("run.")
        )

    def problems(self) -> list[str]:
        """Where parts of the same change are not all there. Empty if all is well."""
        found: list[str] = []

        def expect(what: str, one: Any, other: Any) -> None:
            if one != other:
                extra = f"{sorted(set(one) - set(other))[:5]} / {sorted(set(other) - set(one))[:5]}"
                found.append(f"{what} disagree: {extra}")

        index = {member.decode() for member, _ in self._values.get("agents:index", [])}
        expect("agents and their index", set(self.agents), index)
        known = {member.decode() for member in self._values.get("agents:known", set())}
        expect(
            "known agents and those with something stored",
            known,
            set(self.agents) | set(self.results) | set(self.states),
        )
        if self._values.get("agents:deleting"):
            found.append("a deletion is not finished")
        self._check_results(expect)
        self._check_states(expect)
        return found

    def _check_results(self, expect: Any) -> None:
        indexes = {
            agent: {member.decode(): int(score) for member, score in value}
            for agent, value in self._of("results-at")
        }
        expect("agents with results and with their index", set(self.results), set(indexes))
        for agent, results in self.results.items():
            times = {result_id: result.received_at for result_id, result in results.items()}
            expect(f"results of {agent} and their index", times, indexes.get(agent, {}))

    def _check_states(self, expect: Any) -> None:
        times = dict(self._of("states-at"))
        modules = dict(self._of("modules"))
        unfinished = dict(self._of("unfinished"))
        runs: set[tuple[str, str]] = set()
        expect("agents with states and with their index", set(self.states), set(times))
        expect("agents with states and with modules", set(self.states), set(modules))
        for agent, states in self.states.items():
            indexed = {member.decode() for member, _ in times.get(agent, [])}
            expect(f"states of {agent} and their index", set(states), indexed)
            of_modules = {
                (_unescaped(name.split(":")[2]), member.decode())
                for name, value in self._values.items()
                if name.startswith("states-of:") and _unescaped(name.split(":")[1]) == agent
                for member, _ in value
            }
            expect(
                f"states of {agent} and those of its modules",
                {(state.module_name, field) for field, state in states.items()},
                of_modules,
            )
            expect(
                f"modules of {agent}",
                {state.module_name for state in states.values()},
                {member.decode() for member in modules.get(agent, set())},
            )
            open_runs = {
                state.request_id
                for field, state in states.items()
                if field.startswith("r") and state.state not in TERMINAL_STATES
            }
            expect(
                f"unfinished runs of {agent}",
                open_runs,
                {member.decode() for member in unfinished.get(agent, set())},
            )
            runs |= {(field[1:], agent) for field in states if field.startswith("r")}
        requests = {
            (request_id, member.decode())
            for request_id, value in self._of("request")
            for member, _ in value
        }
        expect("runs and request ids", runs, requests)


def _read(client: redis.Redis, name: str) -> Any:
    kind: Any = client.type(name)
    match kind:
        case b"hash":
            return client.hgetall(name)
        case b"set":
            return client.smembers(name)
        case b"zset":
            return client.zrange(name, 0, -1, withscores=True)
        case b"stream":
            return client.xrange(name)
        case b"list":
            return client.lrange(name, 0, -1)
        case _:
            return client.get(name)


def _unescaped(text: str) -> str:
    for escape, character in _ESCAPED.items():
        text = text.replace(escape, character)
    return text
