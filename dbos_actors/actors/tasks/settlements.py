"""How leases end, as turns of the actor: by their workers' word, by time, or with their stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dbos_actors.actors.tasks.messages import Expire, Release, Settle
from dbos_actors.actors.tasks.responses import (
    ACKNOWLEDGED,
    DEFAULT_LEASE_S,
    EXTENDED,
    GIVEN_BACK,
    outcome_bytes,
)
from dbos_actors.actors.tasks.turn_maker import TurnMaker
from dbos_actors.api.messages import (
    AckTaskRequest,
    ExtendLeaseRequest,
    NackTaskRequest,
    SubscribeTasksRequest,
)
from dbos_actors.domain.tasks import deliveries, settling
from dbos_actors.domain.tasks.change import Change
from dbos_actors.errors import RefusedError
from dbos_actors.runtime import Turn

EXPIRED_AT_ONCE: Final = 200
"""Leases ended in one turn, each perhaps with an event: 5 ms."""


def ack(turns: TurnMaker, request: AckTaskRequest) -> Turn:
    change = turns.begin()
    settling.ack(turns.book, change, request.task_id, request.lease_token)
    return turns.make(change, ACKNOWLEDGED)


def nack(turns: TurnMaker, request: NackTaskRequest) -> Turn:
    change = turns.begin()
    settling.nack(
        turns.book,
        change,
        request.task_id,
        request.lease_token,
        delay_s=request.retry_delay_seconds,
        reason=request.reason,
    )
    return turns.make(change, GIVEN_BACK)


def extend(turns: TurnMaker, request: ExtendLeaseRequest) -> Turn:
    change = turns.begin()
    settling.extend(
        turns.book,
        change,
        request.task_id,
        request.lease_token,
        lease_s=request.lease_seconds or DEFAULT_LEASE_S,
    )
    return turns.make(change, EXTENDED)


def settle(turns: TurnMaker, request: Settle) -> Turn:
    change = turns.begin()
    outcomes: list[bytes] = []
    for one in request.requests:
        task_id, error = _settle_one(turns, change, one)
        outcomes.append(outcome_bytes(task_id, error))
    return turns.make(change, b"".join(outcomes))


def _settle_one(
    turns: TurnMaker, change: Change, request: SubscribeTasksRequest
) -> tuple[str, str]:
    """Task id and error, if it is refused."""
    book = turns.book
    kind = request.WhichOneof("request")
    one: Any = getattr(request, kind or "ack")
    try:
        match kind:
            case "ack":
                settling.ack(book, change, one.task_id, one.lease_token)
            case "nack":
                settling.nack(
                    book,
                    change,
                    one.task_id,
                    one.lease_token,
                    delay_s=one.retry_delay_seconds,
                    reason=one.reason,
                )
            case _:
                assert kind == "extend", "the stream has been checked"
                settling.extend(
                    book,
                    change,
                    one.task_id,
                    one.lease_token,
                    lease_s=one.lease_seconds or DEFAULT_LEASE_S,
                )
    except RefusedError as error:
        return one.task_id, str(error)
    return one.task_id, ""


def expire(turns: TurnMaker, _: Expire) -> Turn:
    change = turns.begin()
    turns.context.counts.expired += len(
        deliveries.expire(turns.book, change, limit=EXPIRED_AT_ONCE)
    )
    return turns.make(change, None)


def release(turns: TurnMaker, request: Release) -> Turn:
    change = turns.begin()
    book, counts = turns.book, turns.context.counts
    for task_id, token in request.leases.items():
        if request.was_sent:
            counts.released += deliveries.release(
                book, change, task_id, token, reason=request.reason
            )
        else:
            counts.taken_back += deliveries.take_back(book, change, task_id, token)
    return turns.make(change, None)


HANDLERS: Final[dict[type, Callable[[TurnMaker, Any], Turn]]] = {
    AckTaskRequest: ack,
    NackTaskRequest: nack,
    ExtendLeaseRequest: extend,
    Settle: settle,
    Expire: expire,
    Release: release,
}
