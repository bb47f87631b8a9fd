"""What all agent actors of a server share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from dbos_actors.actors.agents.caches import RunCache, RunDirectory
from dbos_actors.actors.agents.change_clock import ChangeClock
from dbos_actors.actors.agents.commands import AgentCommands
from dbos_actors.actors.agents.kept import KeptLimits
from dbos_actors.actors.agents.known_agents import KnownAgents
from dbos_actors.actors.event_log import EventLog
from dbos_actors.clock import Clock
from dbos_actors.store import Store

RUN: Final = "r"
MODULE: Final = "m"
"""What a field of an agent's ``states`` begins with, before the request id or module name."""


M = TypeVar("M", bound=Message)


def readable(kind: type[M], record: bytes | None) -> M | None:
    """The message that a record is; None if there is none, or if it is damaged.

    For work in the background, which has to go on, and for filters.
    """
    if record is None:
        return None
    try:
        return kind.FromString(record)
    except DecodeError:
        return None


@dataclass(slots=True)
class AgentStatistics:
    """Counts since the start."""

    results_stored: int = 0
    results_duplicate: int = 0
    results_conflicting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentContext:
    """What all agent actors share."""

    store: Store
    clock: Clock
    server_id: str
    """Becomes ``dbos_server_id`` of results that have none."""

    changes: ChangeClock
    runs: RunCache
    directory: RunDirectory
    known: KnownAgents
    log: EventLog
    commands: AgentCommands
    limits: KeptLimits = field(default_factory=KeptLimits)
    """What one agent may have stored."""

    event_results: bool = False
    forget_tasks: Callable[[str], Awaitable[None]] | None = None
    """Deletes an agent's tasks; part of forgetting the agent."""

    deletion_interrupted: Callable[[str], None] | None = None
    """Told the id of an agent whose deletion has failed, and may be half done."""

    statistics: AgentStatistics = field(default_factory=AgentStatistics)

    def interrupted(self, agent_id: str) -> None:
        """Say that the deletion of an agent has failed."""
        if self.deletion_interrupted is not None:
            self.deletion_interrupted(agent_id)

    def log_event(self, event: bytes) -> bytes:
        """The command that appends ``event`` to the log."""
        return self.log.appended(event)

    def log_event_of_new_result(self, event: bytes, key: str, result_id: bytes) -> bytes:
        """The command that appends ``event`` if the hash ``key`` has no such result.

        To be before the commands that store the result, in the same submission.
        """
        return self.log.appended_if_new(event, key, result_id)

    def now_s(self) -> int:
        return int(self.clock.wall_s())
