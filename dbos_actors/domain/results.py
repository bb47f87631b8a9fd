"""Measurement results: what is kept of one, and when a repeat is a conflict.

A result is named by (agent_id, id), and the first one that is written stays. The
server does not look into its ``data``, and keeps its ``timestamp`` as the agent set
it, 0 included. It adds when and where it received the result, unless a relay has
done so before. The time that a relay gives must not be ahead of the server's clock
(`domain.times`).
"""

from __future__ import annotations

from dbos_actors.api.messages import MeasurementResult
from dbos_actors.domain import events
from dbos_actors.domain.times import not_ahead


def accept(result: MeasurementResult, *, now_s: int, server_id: str) -> bytes:
    """The record of a result that was not known before, serialised.

    Completes ``result`` itself, whose ``received_at``, Unix seconds, is its place
    in the agent's list. Raises `InvalidFieldError` if that is more than a day ahead.
    """
    received_at = result.received_at
    if not received_at:
        result.received_at = now_s
    elif received_at > now_s:
        result.received_at = not_ahead("result.received_at", received_at, now_s)
    if not result.dbos_server_id:
        result.dbos_server_id = server_id
    return result.SerializeToString()


def same_measurement(stored: bytes, again: MeasurementResult) -> bool:
    """Whether ``again`` carries what the stored record of the same id carries.

    That is its data and its module. When and on which way it came may differ:
    a repeat is often sent by another process than the first.
    """
    first = MeasurementResult.FromString(stored)
    return first.data == again.data and first.module_name == again.module_name


def conflict(again: MeasurementResult, *, now_s: int) -> bytes:
    """The event of a result that came again with another content."""
    return events.event(
        events.RESULT_CONFLICT,
        f"result {again.id} of agent {again.agent_id} came again with different data; "
        "the first is kept",
        _metadata(again),
        now_s,
    )


def stored(result: MeasurementResult, *, now_s: int) -> bytes:
    """The event of a new result, for operators who want one for each."""
    return events.event(
        events.RESULT_STORED,
        f"result {result.id} of agent {result.agent_id} was stored",
        _metadata(result),
        now_s,
    )


def _metadata(result: MeasurementResult) -> dict[str, str]:
    return {
        "agent_id": result.agent_id,
        "result_id": result.id,
        "module_name": result.module_name,
        "data_bytes": str(len(result.data)),
        "ingest_source": result.ingest_source,
    }
