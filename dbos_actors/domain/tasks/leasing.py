"""LeaseTasks and pushes: due tasks are handed to a worker, for a while."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from dbos_actors.domain.tasks.book import WITHDRAWN_AT_ONCE, TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.claims import Claim
from dbos_actors.domain.tasks.deliveries import count_delivery
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.limits import LEASE_LIMIT_MAX, LEASE_S_MAX, require_range
from dbos_actors.domain.tasks.record import TOKEN_BITS, WORKER_BYTES_MAX, TaskRecord, clipped
from dbos_actors.domain.tasks.states import Event, Settled, Status, successor
from dbos_actors.domain.tasks.timers import Now


def lease(
    book: TaskBook,
    change: Change,
    *,
    limit: int,
    lease_s: int,
    worker_id: str,
    token: int,
    agent_id: str = "",
    module_name: str = "",
    bytes_max: int | None = None,
    task_ids: Iterable[str] | None = None,
    identity: bytes = b"",
) -> list[TaskRecord]:
    """Lease due tasks to a worker, taking turns among agents.

    :param limit: at most so many.
    :param lease_s: how long the worker has them, seconds.
    :param token: a random number of `TOKEN_BITS` bits, new for each call; the
        tasks get this and the following numbers.
    :param bytes_max: end before the tasks are larger than that, as messages; but
        the first one is always taken.
    :param task_ids: instead of taking turns, those of these that are still due.
    :param identity: of the request, if `leased_again` is to find what it leased.
    :returns: their records as they will be, each with its `lease_token`.
    :raises InvalidFieldError: a number is out of range.
    """
    require_range("limit", limit, 1, LEASE_LIMIT_MAX)
    require_range("lease_seconds", lease_s, 1, LEASE_S_MAX)
    now = change.now
    # As many follow it as may be leased at once, and 0 is none.
    token = token % ((1 << TOKEN_BITS) - LEASE_LIMIT_MAX) or 1
    worker = clipped(worker_id, WORKER_BYTES_MAX)
    ends_at = math.ceil(now.wall_s + lease_s)
    deadline_s = now.monotonic_s + lease_s
    leased: list[TaskRecord] = []
    for flow, record in _affordable(
        book, change, _candidates(book, agent_id, module_name, task_ids, now), bytes_max
    ):
        record.status = successor(record.status, Event.LEASE)
        record.settled = Settled.NOT
        count_delivery(record, now)
        record.token = token + len(leased)
        record.span_s = lease_s
        record.moment = ends_at
        record.worker_id = worker
        change.put(record, deadline_s)
        change.served.append(flow)
        leased.append(record)
        if len(leased) == limit:
            break
    if identity and leased:
        claim = Claim(identity, token, len(leased), lease_s)
        change.claims.append((claim, tuple(record.task_id for record in leased)))
    return leased


def _affordable(
    book: TaskBook,
    change: Change,
    candidates: Iterable[tuple[Flow, str]],
    bytes_max: int | None,
) -> Iterator[tuple[Flow, TaskRecord]]:
    """The candidates that may be handed out now, until their messages fill ``bytes_max``."""
    wall_s = change.now.wall_s
    early = book.index.may_be_early(change.now)
    passed_over = 0
    room_bytes = math.inf if bytes_max is None else bytes_max
    is_first = True
    for flow, task_id in candidates:
        if task_id in change.records:
            continue
        record = book.known(task_id)
        if early and record.scheduled_at > wall_s:
            passed_over += 1
            if passed_over == WITHDRAWN_AT_ONCE:
                return
            continue
        room_bytes -= record.size_bytes_max
        if room_bytes < 0 and not is_first:
            return
        is_first = False
        assert record.scheduled_at <= wall_s, "what is not due is not in `due`"
        yield flow, record


def leased_again(book: TaskBook, identity: bytes, now: Now) -> list[TaskRecord] | None:
    """What the request of that identity leased and still holds; None if none is known."""
    found = book.claims.find(identity, now)
    if found is None:
        return None
    claim, task_ids = found
    records = map(book.get, task_ids)
    return [record for record in records if record is not None and claim.holds(record)]


def _candidates(
    book: TaskBook, agent_id: str, module_name: str, task_ids: Iterable[str] | None, now: Now
) -> Iterator[tuple[Flow, str]]:
    if task_ids is None:
        yield from book.index.due.select(agent_id, module_name)
        return
    for task_id in task_ids:
        record = book.get(task_id)
        if record is not None and _has_fallen_due(book, record, now):
            yield record.flow, task_id


def _has_fallen_due(book: TaskBook, record: TaskRecord, now: Now) -> bool:
    """Whether a task may be leased; one whose time has come, but not its turn, falls due."""
    index = book.index
    if record.status is Status.PENDING and record.scheduled_at <= now.wall_s:
        if index.waiting.discard(record.scheduled_at, record.task_id):
            index.place_by_wall_clock(record, now)
        return record.task_id not in index.deadlines
    return False
