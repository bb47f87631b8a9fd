"""The agent record: what a heartbeat, silence and deletion make of it.

An agent registers with every heartbeat, through a control server that may
restart and then count from nothing. So the record merges what is reported:

- ``first_seen`` is the earliest ever reported, ``last_seen`` the latest,
  ``total_heartbeats`` the largest. The server counts no heartbeats itself: a
  retried call is not a second heartbeat, and only the sender can tell.
- A time that is not set (0; negative ones count as not set) means now.
- A ``last_seen`` that is ahead of the server's clock means now too, and one that
  is ahead by more than a day is refused (`domain.times`). One that was recorded
  before there was this rule yields to the next heartbeat.
- ``hostname``, ``config`` and ``alive`` are what was last reported. A sender
  that says ``alive = false`` marks the agent offline; one that says ``true``
  brings back an agent that had lapsed.

Merging is commutative in the first three, so that heartbeats delayed or
repeated on the way do no harm.
"""

from __future__ import annotations

from typing import NamedTuple

from dbos_actors.api.messages import Agent
from dbos_actors.domain import events
from dbos_actors.domain.times import AHEAD_S_MAX, not_ahead


class Vitals(NamedTuple):
    """Of an agent's record, what a heartbeat without the rest of it touches."""

    last_seen: int
    total_heartbeats: int
    alive: bool


class Numbers(NamedTuple):
    """Of an agent's record, what a heartbeat merges with what is reported."""

    first_seen: int
    last_seen: int
    total_heartbeats: int
    alive: bool


def numbers_of(record: Agent) -> Numbers:
    """These of a record."""
    return Numbers(record.first_seen, record.last_seen, record.total_heartbeats, record.alive)


class AgentUpdate(NamedTuple):
    """What became of an agent's record."""

    record: Agent
    event: bytes | None
    """To be logged in the same commit."""


def heartbeat(current: Numbers | None, reported: Agent, *, now_s: int) -> AgentUpdate:
    """The record after ``reported`` has arrived; ``current`` is None for a new agent.

    Completes ``reported`` itself, which becomes the record: to copy its configuration would take
    a tenth of the call. Raises `InvalidFieldError` if ``last_seen`` is more than a day ahead of
    ``now_s``; it is unchanged then.
    """
    record = reported
    first_seen = record.first_seen
    if record.last_seen <= 0:
        record.last_seen = now_s
    else:
        record.last_seen = not_ahead("agent.last_seen", record.last_seen, now_s)
    if current is None:
        if first_seen <= 0:
            record.first_seen = now_s
        record.total_heartbeats = max(record.total_heartbeats, 0)
        return AgentUpdate(record, _event(events.AGENT_REGISTERED, record, "registered", now_s))
    if first_seen <= 0 or first_seen > current.first_seen:
        record.first_seen = current.first_seen
    if current.last_seen <= now_s + AHEAD_S_MAX:
        record.last_seen = max(record.last_seen, current.last_seen)
    record.total_heartbeats = max(record.total_heartbeats, current.total_heartbeats)
    if record.alive == current.alive:
        return AgentUpdate(record, None)
    if record.alive:
        return AgentUpdate(record, alive_again(record, now_s=now_s))
    return AgentUpdate(record, _event(events.AGENT_OFFLINE, record, "went offline", now_s))


def beat(current: Vitals, *, last_seen: int, total_heartbeats: int, now_s: int) -> Vitals:
    """What a heartbeat without the rest of the record makes of ``current``.

    An agent that is away is alive again if this heartbeat is later than all that the record knows.
    A copy that comes late is not, so it does not undo that the agent went offline after it.

    Raises `InvalidFieldError` if ``last_seen`` is more than a day ahead of ``now_s``.
    """
    seen = now_s if last_seen <= 0 else not_ahead("last_seen", last_seen, now_s)
    before = current.last_seen if current.last_seen <= now_s + AHEAD_S_MAX else 0
    return Vitals(
        max(seen, before),
        max(total_heartbeats, current.total_heartbeats),
        current.alive or seen > before,
    )


def alive_again(record: Agent, *, now_s: int) -> bytes:
    """The event of an agent that is back."""
    return _event(events.AGENT_ALIVE, record, "is alive again", now_s)


def lapse(current: Agent, *, now_s: int) -> AgentUpdate:
    """The record of an agent that has been silent for too long.

    One that is not alive stays as it is, without an event.
    """
    if not current.alive:
        return AgentUpdate(current, None)
    record = Agent()
    record.CopyFrom(current)
    record.alive = False
    return AgentUpdate(record, _event(events.AGENT_LAPSED, record, "fell silent", now_s))


def deleted(agent_id: str, *, now_s: int) -> bytes:
    """The event of an agent's deletion."""
    return events.event(
        events.AGENT_DELETED, f"agent {agent_id} was deleted", {"agent_id": agent_id}, now_s
    )


def _event(kind: str, record: Agent, what: str, now_s: int) -> bytes:
    return events.event(
        kind,
        f"agent {record.id} {what}",
        {
            "agent_id": record.id,
            "hostname": record.hostname,
            "last_seen": str(record.last_seen),
        },
        now_s,
    )
