"""The event log's vocabulary and the one form an event is kept and sent in.

An event is a JSON object of four members: ``type`` (a name below), ``message``
(for people), ``metadata`` (strings to strings) and ``timestamp`` (Unix
seconds, when the server recorded it). Only changes make events; reads, refused
requests, heartbeats and progress updates never do, so that polling or a busy
run cannot flush the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring
from typing import Final

from dbos_actors.errors import InvalidFieldError

AGENT_REGISTERED: Final = "agent.registered"
AGENT_ALIVE: Final = "agent.alive"
"""The agent is back, by its own report."""
AGENT_OFFLINE: Final = "agent.offline"
"""The agent is away, by its own report."""
AGENT_LAPSED: Final = "agent.lapsed"
"""The agent is away, as its silence says."""
AGENT_DELETED: Final = "agent.deleted"

RUN_STATES: Final = ("created", "started", "running", "completed", "error", "failed")
RUN_PREFIX: Final = "run."
"""Followed by the state the run has entered: ``run.completed``."""

RESULT_STORED: Final = "result.stored"
"""Only where the operator asked for it."""
RESULT_CONFLICT: Final = "result.conflict"
"""A result id came again with another content; the first was kept."""

TASK_PREFIX: Final = "task."
"""Followed by the task's outcome: ``task.completed``."""
TASK_REQUEUED: Final = "task.requeued"
"""A task that had come to its end is pending again, by an operator's word."""

_TASK_ENDS: Final = ("completed", "dead", "cancelled")

TYPES: Final = (
    AGENT_REGISTERED,
    AGENT_ALIVE,
    AGENT_OFFLINE,
    AGENT_LAPSED,
    AGENT_DELETED,
    *(RUN_PREFIX + state for state in RUN_STATES),
    RESULT_STORED,
    RESULT_CONFLICT,
    *(TASK_PREFIX + end for end in _TASK_ENDS),
    TASK_REQUEUED,
)
"""All there are."""


def check_types(field: str, types: Iterable[str]) -> None:
    """Raise `InvalidFieldError` if a filter names a type that no event has."""
    for name in types:
        if name not in TYPES:
            raise InvalidFieldError(
                field, f"has {name[:64]!r}, which must be one of {', '.join(TYPES)}"
            )


quoted = encode_basestring
"""A string as JSON, for who writes so many events alike that `event` is too slow."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def event(kind: str, message: str, metadata: Mapping[str, str], timestamp_s: int) -> bytes:
    """The event as it is kept and sent: compact JSON in UTF-8."""
    return _encode(
        {"type": kind, "message": message, "metadata": metadata, "timestamp": timestamp_s}
    ).encode()
