"""Names of every Redis key of the service.

All keys of a partition share one hash tag, ``{p0}``, so that one MULTI over
any of them is legal on a cluster, and a second partition can live beside it.
Ids inside a key are percent-encoded for the four characters that have a
meaning there, so that no two ids can name the same key.

| key | type | holds |
|---|---|---|
| commit | string | ``epoch:sequence`` of the last commit |
| owner | string, expires | who owns the partition |
| agents | hash | agent id -> Agent |
| agents:index | sorted set, score 0 | agent ids in lexical order |
| agents:deleting | set | agents whose deletion has begun |
| states:<agent> | hash | ``r`` + request id or ``m`` + module name -> ModuleState |
| states-at:<agent> | sorted set | the same fields by time of last change, ms |
| states-of:<agent>:<module> | sorted set | the same, of one module |
| modules:<agent> | set | module names that have a ``states-of`` |
| unfinished:<agent> | set | request ids of runs not in a terminal state |
| request:<request id> | sorted set | agent ids by time of last change, ms |
| results:<agent> | hash | result id -> MeasurementResult |
| results-at:<agent> | sorted set | result ids by received_at, seconds |
| events | stream | field ``e`` -> JSON |
"""

from __future__ import annotations

_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D", ":": "%3A"})


def escaped(identifier: str) -> str:
    """``identifier`` as it stands inside a key."""
    return identifier.translate(_ESCAPES)


class Keys:
    """The key names of one partition."""

    def __init__(self, partition: str = "p0") -> None:
        self.prefix = f"dbos:{{{partition}}}:"
        self.commit = f"{self.prefix}commit"
        self.owner = f"{self.prefix}owner"
        self.agents = f"{self.prefix}agents"
        self.agents_index = f"{self.prefix}agents:index"
        self.agents_deleting = f"{self.prefix}agents:deleting"
        self.events = f"{self.prefix}events"

    def states(self, agent_id: str) -> str:
        return f"{self.prefix}states:{escaped(agent_id)}"

    def states_at(self, agent_id: str) -> str:
        return f"{self.prefix}states-at:{escaped(agent_id)}"

    def states_of(self, agent_id: str, module_name: str) -> str:
        return f"{self.prefix}states-of:{escaped(agent_id)}:{escaped(module_name)}"

    def modules(self, agent_id: str) -> str:
        return f"{self.prefix}modules:{escaped(agent_id)}"

    def unfinished(self, agent_id: str) -> str:
        return f"{self.prefix}unfinished:{escaped(agent_id)}"

    def request(self, request_id: str) -> str:
        return f"{self.prefix}request:{escaped(request_id)}"

    def results(self, agent_id: str) -> str:
        return f"{self.prefix}results:{escaped(agent_id)}"

    def results_at(self, agent_id: str) -> str:
        return f"{self.prefix}results-at:{escaped(agent_id)}"
