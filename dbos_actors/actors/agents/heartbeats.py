"""Heartbeats that touch two numbers of an agent's record, without decoding the rest of it.

Protobuf takes the last one of a field that occurs twice, and the order of fields is free. So a
record that a heartbeat has written is a *base*, which has every field but `last_seen` and
`total_heartbeats`, and these two behind it. The next heartbeat keeps the bytes of the base and
writes a new end. Whoever reads the record sees an ordinary Agent.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dbos_actors.api.messages import Agent, HeartbeatRequest, HeartbeatResponse
from dbos_actors.domain import agents
from dbos_actors.domain.agents import Vitals

BEATEN: Final = HeartbeatResponse(success=True, found=True).SerializeToString()

_LAST_SEEN_TAG: Final = Agent.DESCRIPTOR.fields_by_name["last_seen"].number << 3
_TOTAL_TAG: Final = Agent.DESCRIPTOR.fields_by_name["total_heartbeats"].number << 3


class BeatenRecord(NamedTuple):
    """A record whose two numbers are known, and behind which bytes they are."""

    record: bytes
    base_bytes: int
    vitals: Vitals


def not_registered(agent_id: str) -> HeartbeatResponse:
    """The answer to an agent without a record."""
    return HeartbeatResponse(error=f"agent {agent_id!r} is not registered: send RegisterAgent")


def taken_apart(record: bytes) -> BeatenRecord:
    """A record as a heartbeat writes it, with the numbers that it has now."""
    agent = Agent.FromString(record)
    vitals = Vitals(agent.last_seen, agent.total_heartbeats, agent.alive)
    agent.ClearField("last_seen")
    agent.ClearField("total_heartbeats")
    return _joined(agent.SerializeToString(), vitals)


def beaten(
    before: BeatenRecord, request: HeartbeatRequest, *, now_s: int
) -> tuple[BeatenRecord, bytes | None] | None:
    """The record after a heartbeat, and an event for the same commit; None if nothing changes.

    Raises `InvalidFieldError` if ``last_seen`` is more than a day ahead of ``now_s``.
    """
    vitals = agents.beat(
        before.vitals,
        last_seen=request.last_seen,
        total_heartbeats=request.total_heartbeats,
        now_s=now_s,
    )
    if vitals == before.vitals:
        return None
    if vitals.alive == before.vitals.alive:
        return _joined(before.record[: before.base_bytes], vitals), None
    agent = Agent.FromString(before.record)
    agent.alive = vitals.alive
    agent.last_seen = vitals.last_seen
    agent.total_heartbeats = vitals.total_heartbeats
    return taken_apart(agent.SerializeToString()), agents.alive_again(agent, now_s=now_s)


def _joined(base: bytes, vitals: Vitals) -> BeatenRecord:
    end = bytearray(base)
    for tag, number in (
        (_LAST_SEEN_TAG, vitals.last_seen),
        (_TOTAL_TAG, vitals.total_heartbeats),
    ):
        # Protobuf encoding, "Base 128 Varints"; a negative number is one of 64 bits.
        end.append(tag)
        rest = number & 0xFFFF_FFFF_FFFF_FFFF
        while rest > 0x7F:
            end.append(rest & 0x7F | 0x80)
            rest >>= 7
        end.append(rest)
    return BeatenRecord(bytes(end), len(base), vitals)
