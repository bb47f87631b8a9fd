"""Names of every Redis key of the service.

All keys of a partition share one hash tag, ``{p0}``, so that one MULTI over
any of them is legal on a cluster, and a second partition can live beside it.
Ids inside a key are percent-encoded for the four characters that have a
meaning there, so that no two ids can name the same key.

A key of one agent, run or module is a prefix below plus `escaped` ids, put together where
it is needed: an agent keeps its escaped id, not a dozen keys.

| key | type | holds |
|---|---|---|
| layout | string | the version of this table that the data follows, `LAYOUT_VERSION` |
| commit | string | ``epoch:sequence`` of the last commit |
| owner | string, expires | who owns the partition |
| agents | hash | agent id -> Agent |
| agents:index | sorted set, score 0 | agent ids in lexical order |
| agents:known | set | every agent that has anything stored, registered or not |
| changes | string | ms: a moment above all scores by time of last change |
| agents:deleting | set | agents whose deletion has begun |
| states:<agent> | hash | ``r`` + request id or ``m`` + module name -> ModuleState |
| states-at:<agent> | sorted set | the same fields by time of last change, ms with decimals |
| states-of:<agent>:<module> | sorted set | the same, of one module |
| modules:<agent> | set | module names that have a ``states-of`` |
| unfinished:<agent> | set | request ids of runs not in a terminal state |
| request:<request id> | sorted set | agent ids by time of last change, ms |
| results:<agent> | hash | result id -> MeasurementResult |
| results-at:<agent> | sorted set | result ids by received_at, seconds |
| tasks | hash | task id -> Task as it was scheduled |
| tasks:journal | stream | id ``sequence-0``, field ``e`` -> a turn of the scheduler |
| tasks:snapshot | hash | ``generation`` and ``sequence`` of the snapshot in force |
| tasks:snapshot:<generation> | list | its chunks |
| to-check | hash | key that refused a command inside a commit -> JSON about it, for `check` |
| events | stream | field ``e`` -> JSON |
"""

from __future__ import annotations

import re
from typing import Final

LAYOUT_VERSION: Final = 3
"""Of the table above and of the bytes inside the keys. It rises whenever an earlier program could
not read what this one writes. A store that has a commit key but no layout is of version 1, from
before the version was kept. ``tests/layouts`` has data of every version.

Version 2: the tasks' journal and snapshot may hold lease requests by their keys.
Version 3: their rows may have the status cancelled."""

_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D", ":": "%3A"})
_find_special = re.compile("[%{}:]").search


def escaped(identifier: str) -> str:
    """``identifier`` as it stands inside a key."""
    # To look costs 0.2 us and to translate 2; nearly no id has any of them.
    return identifier if _find_special(identifier) is None else identifier.translate(_ESCAPES)


class Keys:
    """The key names of one partition. Names that end in a colon are prefixes."""

    def __init__(self, partition: str = "p0") -> None:
        prefix = f"dbos:{{{partition}}}:"
        self.prefix = prefix
        self.layout = prefix + "layout"
        self.commit = prefix + "commit"
        self.owner = prefix + "owner"
        self.agents = prefix + "agents"
        self.agents_index = prefix + "agents:index"
        self.agents_known = prefix + "agents:known"
        self.changes = prefix + "changes"
        self.agents_deleting = prefix + "agents:deleting"
        self.tasks = prefix + "tasks"
        self.tasks_journal = prefix + "tasks:journal"
        self.tasks_snapshot = prefix + "tasks:snapshot"
        self.to_check = prefix + "to-check"
        self.events = prefix + "events"
        # followed by agent
        self.states = prefix + "states:"
        self.states_at = prefix + "states-at:"
        self.modules = prefix + "modules:"
        self.unfinished = prefix + "unfinished:"
        self.results = prefix + "results:"
        self.results_at = prefix + "results-at:"
        # followed by agent, a colon and module
        self.states_of = prefix + "states-of:"
        # followed by request id
        self.request = prefix + "request:"
        # followed by generation
        self.tasks_snapshots = prefix + "tasks:snapshot:"
