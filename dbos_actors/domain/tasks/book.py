"""The task book: every task of a partition, resident, and what may be done with it.

It owns the records (`task_record`), the indexes over them (`task_index`) and the
ledger. It has no clock, no randomness and no I/O: a `Now`, tokens and bytes come
in; rows, outcomes and journal bytes go out.

A turn is one `Change`. Operations write into the change and nothing else: they
read what it already holds, then the book. So several may share a turn, one that
raises `RefusedError` leaves the change as it was, and a change that is dropped
never happened. `seal` turns it into a journal entry, `apply` makes it real; only
one change may be under way between two applies. The exception is housekeeping
that no one can observe and that a restart does anew: `begin` and `advance` move
tasks from index to index as time passes.

The ledger always balances: `scheduled = pending + inflight + completed + dead`,
where *completed* counts for ever, also after retention has dropped the record. A
task deleted with its agent, or dead and dropped by retention, is taken out of
*scheduled* and counts as *deleted*.

Rows sit in one `IdTable`, in the order of their ids: growing, snapshots and audits go
in steps of a thousand, and a reader goes on behind any id. Rows and ids are bytes and
strings, which the garbage collector does not visit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dbos_actors.domain.tasks.claims import Claim, ClaimRecovery, Claims
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.id_table import BLOCK_MAX, IdTable
from dbos_actors.domain.tasks.index import (
    RETENTION_BATCH_S,
    Place,
    TaskIndex,
    monotonic_ticks_passed,
)
from dbos_actors.domain.tasks.journal import (
    Header,
    Ledger,
    claims_chunk,
    encode_entry,
    end_chunk,
    flows_chunk,
    header_chunk,
    rows_chunk,
)
from dbos_actors.domain.tasks.record import (
    LAST_ERROR_BYTES_MAX,
    LATENESS_MS_MAX,
    TOKEN_BITS,
    WORKER_BYTES_MAX,
    TaskRecord,
    clipped,
)
from dbos_actors.domain.tasks.states import (
    DeadTaskError,
    Event,
    Settled,
    StaleLeaseError,
    Status,
    UnknownTaskError,
    successor,
)
from dbos_actors.domain.tasks.timers import Now, TimerHeap
from dbos_actors.errors import InvalidFieldError, MissingFieldError, OverloadedError

SCHEDULED_AT_MAX = 253_402_300_799
"""The last second of the year 9999; milliseconds sent for seconds are far beyond."""

LEASE_S_MAX = 12 * 3600
DELAY_S_MAX = 30 * 24 * 3600
LEASE_LIMIT_MAX = 10_000
ATTEMPTS_MAX = 1_000

WITHDRAWN_AT_ONCE = 200
"""Tasks that a wall clock set back has made early, taken out of `due` or passed over: 1 ms."""

LANES_PER_CHUNK = 2_000
ROWS_PER_CHUNK = 2_000
"""A slice of a snapshot is cut after so many rows, at the next block's end: 2 ms, 200 KB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """What a task book is held to."""

    tasks_max: int = 5_000_000
    """Records of any status; about 0.3 KB each. Beyond, a new task is refused as overload."""

    completed_max: int = 1_000_000
    """Completed tasks kept at most; beyond, the oldest go before their retention has passed."""

    retention_s: int = 24 * 3600
    """How long a completed task is kept."""

    dead_max: int = 1_000_000
    """Dead tasks kept at most; beyond, those that died first go before their time."""

    dead_retention_s: int = 30 * 24 * 3600
    """How long a dead task is kept."""

    max_attempts: int = 5
    """Deliveries of a task that does not say."""


class Retired(NamedTuple):
    """What retention has dropped."""

    completed: list[str]
    dead: list[str]
    early: int
    """How many of both went before their time, because there are too many."""


class Counters(NamedTuple):
    """The ledger and what it balances; all counts."""

    scheduled: int
    pending: int
    inflight: int
    completed: int
    dead: int
    deleted: int
    due: int
    completed_kept: int

    @property
    def balanced(self) -> bool:
        return self.scheduled == self.pending + self.inflight + self.completed + self.dead


class Outcome(NamedTuple):
    """A task has come to an end: completed, dead, or gone (deleted)."""

    task_id: str
    agent_id: str
    module_name: str
    status: Status
    lateness_ms: int
    deliveries: int
    error: str


class Change:
    """What one turn is going to do; owned by whoever began it until it is applied or dropped.

    ``records`` holds every task touched, as it will be (None: gone); ``outcomes``
    what came to an end, in order.
    """

    __slots__ = (
        "added",
        "claims",
        "deadlines",
        "flows",
        "now",
        "outcomes",
        "records",
        "rows",
        "sequence",
        "served",
        "size_bytes",
    )

    def __init__(self, now: Now) -> None:
        self.now = now
        self.records: dict[str, TaskRecord | None] = {}
        self.deadlines: dict[str, float] = {}  # on the monotonic clock
        self.flows: dict[tuple[str, str], Flow] = {}  # not yet known to the book
        self.served: list[Flow] = []
        self.outcomes: list[Outcome] = []
        self.claims: list[tuple[Claim, tuple[str, ...]]] = []  # each with its tasks
        self.added = Ledger()
        self.sequence = 0  # 0 until sealed
        self.size_bytes = 0  # of its journal entry, likewise
        self.rows: dict[str, bytes] = {}  # from sealing on; empty: gone

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.records)

    def put(self, record: TaskRecord, deadline_s: float | None = None) -> None:
        """Set what a task will be."""
        self.records[record.task_id] = record
        if deadline_s is None:
            self.deadlines.pop(record.task_id, None)
        else:
            self.deadlines[record.task_id] = deadline_s

    def ended(self, record: TaskRecord, status: Status) -> None:
        """Note an outcome."""
        self.outcomes.append(
            Outcome(
                record.task_id,
                record.agent_id,
                record.module_name,
                status,
                record.lateness_ms if record.deliveries else 0,
                record.deliveries,
                record.last_error,
            )
        )


class TaskBook:
    """All tasks of one partition."""

    def __init__(self, limits: TaskLimits | None = None) -> None:
        self.limits = limits or TaskLimits()
        self.sequence = 0  # of the last applied change
        self.index = TaskIndex()
        self.ledger = Ledger()
        self.claims = Claims()
        self._rows: IdTable[bytes] = IdTable()
        self._flows: dict[int, Flow] = {}
        self._flows_of: dict[str, dict[str, Flow]] = {}  # agent -> module -> flow
        self._flows_for: dict[str, dict[str, Flow]] = {}  # module -> agent -> flow
        self._next_flow = 1

    def __len__(self) -> int:
        return len(self._rows)

    # ------------------------------------------------------------- reading

    def get(self, task_id: str) -> TaskRecord | None:
        """A copy of the task's record, or None."""
        row = self._rows.get(task_id)
        return None if row is None else TaskRecord.decode(task_id, row, self._flows)

    def counters(self) -> Counters:
        """The ledger and the counts it must equal."""
        sizes = self.index.sizes()
        return Counters(
            scheduled=self.ledger.scheduled,
            pending=sizes[Place.WAITING] + sizes[Place.DELAYED] + sizes[Place.DUE],
            inflight=sizes[Place.LEASED],
            completed=self.ledger.completed,
            dead=sizes[Place.DEAD],
            deleted=self.ledger.deleted,
            due=sizes[Place.DUE],
            completed_kept=sizes[Place.RETAINED],
        )

    def has_due(self, agent_id: str = "", module_name: str = "") -> bool:
        """Whether a lease of that filter would find anything; O(1)."""
        return self.index.due.has(agent_id, module_name)

    def dead_tasks(self) -> Iterator[TaskRecord]:
        """Dead tasks in the order in which they died; the book must not change meanwhile."""
        return (self._known(task_id) for _, task_id in self.index.dead.ascending())

    def flows_of(self, agent_id: str = "", module_name: str = "") -> Collection[Flow]:
        """The flows of a filter, with or without due tasks; an empty name stands for all."""
        if agent_id:
            flows = self._flows_of.get(agent_id, {})
            if not module_name:
                return flows.values()
            flow = flows.get(module_name)
            return () if flow is None else (flow,)
        if module_name:
            return self._flows_for.get(module_name, {}).values()
        return self._flows.values()

    def row(self, task_id: str) -> bytes | None:
        """The row of a task."""
        return self._rows.get(task_id)

    def rows_after(self, task_id: str, limit: int = BLOCK_MAX) -> list[tuple[str, bytes]]:
        """The next rows behind an id, in order: up to ``limit`` or a block's end, none at the end.

        "" is before every id. However the book changes between two calls, what stays in it is
        passed over by neither.
        """
        return self._rows.following(task_id, limit)

    def record(self, task_id: str, row: bytes) -> TaskRecord:
        """A row, decoded."""
        return TaskRecord.decode(task_id, row, self._flows)

    def has_expired(self, now: Now) -> bool:
        """Whether `expire` would find anything."""
        first = self.index.leases.first_tick()
        return first is not None and first <= monotonic_ticks_passed(now)

    def take_fresh(self) -> list[Flow]:
        """The flows in which tasks fell due since the last call."""
        fresh = list(self.index.fresh)
        self.index.fresh.clear()
        return fresh

    def wake_after_s(self, now: Now) -> float | None:
        """Seconds until something falls due or expires; 0: at once, None: never by itself."""
        limits = self.limits
        return self.index.wake_after_s(
            now, retention_s=limits.retention_s, dead_retention_s=limits.dead_retention_s
        )

    def is_retirement_due(self, now: Now) -> bool:
        """Whether `retire` would find enough: a batch's worth, or more than may be kept."""
        limits, index = self.limits, self.index
        return _is_overdue(index.retained, limits.completed_max, limits.retention_s, now) or (
            _is_overdue(index.dead, limits.dead_max, limits.dead_retention_s, now)
        )

    # ------------------------------------------------- time passes (no journal)

    def begin(self, now: Now) -> Change:
        """A new, empty change. Some tasks that a wall clock set back has made early are withdrawn.

        The others follow with the next changes and `advance`; until then no lease takes them.
        """
        for _, task_id in self.index.no_longer_due(now, limit=WITHDRAWN_AT_ONCE):
            self.index.wait_again(self._known(task_id))
        return Change(now)

    def advance(self, now: Now, *, limit: int) -> int:
        """Move up to ``limit`` tasks between `waiting` and `due`; how many (``limit``: call again).

        Waiting ones fall due; due ones that a wall clock set back has made early wait again.
        """
        index = self.index
        early = index.no_longer_due(now, limit=limit)
        for _, task_id in early:
            index.wait_again(self._known(task_id))
        limit -= len(early)
        moved = index.waiting.pop(int(now.wall_s), limit)
        for _, task_id in moved:
            index.place_by_wall_clock(self._known(task_id), now)
        delayed = index.delays.pop(monotonic_ticks_passed(now), limit - len(moved))
        for _, task_id in delayed:
            del index.deadlines[task_id]
            index.place_by_wall_clock(self._known(task_id), now)
        return len(early) + len(moved) + len(delayed)

    # ---------------------------------------------------------- operations

    def schedule(
        self,
        change: Change,
        *,
        task_id: str,
        agent_id: str,
        module_name: str,
        payload_digest: int,
        scheduled_at: int = 0,
        max_attempts: int = 0,
        revive: bool = False,
    ) -> bool:
        """Add a task, change a pending one, or revive a dead one.

        :param scheduled_at: Unix seconds, 0 for now.
        :param max_attempts: deliveries before the task is dead, 0 for the default.
        :param revive: let a dead task begin anew; only then may it differ from what it was.
        :returns: False if it is the same task again and nothing changes.
        :raises InvalidFieldError: a time or number is out of range.
        :raises InvalidTransitionError: the task is inflight or completed, and differs.
        :raises DeadTaskError: the task is dead, not to be revived, and differs.
        :raises OverloadedError: the book is full.
        """
        if not 0 <= scheduled_at <= SCHEDULED_AT_MAX:
            raise InvalidFieldError(
                "task.scheduled_at", f"must be Unix seconds up to {SCHEDULED_AT_MAX}"
            )
        if not 0 <= max_attempts <= ATTEMPTS_MAX:
            raise InvalidFieldError("task.max_attempts", f"must be between 0 and {ATTEMPTS_MAX}")
        wall_s = change.now.wall_s
        attempts = max_attempts or self.limits.max_attempts
        flow = self._flow(change, agent_id, module_name)
        record = self._find(change, task_id)
        revived = revive and record is not None and record.status is Status.DEAD
        if record is not None and not revived:
            if (
                record.flow is flow
                and record.digest == payload_digest
                and max_attempts in (0, record.max_attempts)
                and (
                    record.scheduled_at == scheduled_at
                    or (
                        scheduled_at == 0
                        and (record.status is not Status.PENDING or record.scheduled_at <= wall_s)
                    )
                )
            ):
                return False
            if record.status is Status.DEAD:
                raise DeadTaskError(task_id)
            successor(record.status, Event.SCHEDULE)
        if record is None:
            if len(self._rows) + change.added.scheduled >= self.limits.tasks_max:
                raise OverloadedError("task book", limit=self.limits.tasks_max, unit="tasks")
            change.added = change.added.plus(Ledger(scheduled=1))
            record = TaskRecord(task_id, flow)
        elif revived:
            record.deliveries = 0
            record.last_error = ""
        record.status = successor(record.status, Event.REVIVE if revived else Event.SCHEDULE)
        record.settled = Settled.NOT
        record.token = record.span_s = record.moment = 0
        record.flow = flow
        record.digest = payload_digest
        record.max_attempts = attempts
        record.scheduled_at = scheduled_at or int(wall_s)
        if not record.deliveries:
            record.lateness_ms = _lateness_ms(record.scheduled_at, wall_s)
        if flow.number not in self._flows:
            change.flows[agent_id, module_name] = flow
        change.put(record)
        return True

    def lease(
        self,
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
        """Claim due tasks, taking turns among agents.

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
        _require_range("limit", limit, 1, LEASE_LIMIT_MAX)
        _require_range("lease_seconds", lease_s, 1, LEASE_S_MAX)
        now = change.now
        # As many follow it as may be leased at once, and 0 is none.
        token = token % ((1 << TOKEN_BITS) - LEASE_LIMIT_MAX) or 1
        worker = clipped(worker_id, WORKER_BYTES_MAX)
        ends_at = math.ceil(now.wall_s + lease_s)
        deadline_s = now.monotonic_s + lease_s
        leased: list[TaskRecord] = []
        room_bytes = math.inf if bytes_max is None else bytes_max
        early = self.index.may_be_early(now)
        passed_over = 0
        for flow, task_id in self._candidates(agent_id, module_name, task_ids, now):
            if task_id in change.records:
                continue
            record = self._known(task_id)
            if early and record.scheduled_at > now.wall_s:
                passed_over += 1
                if passed_over == WITHDRAWN_AT_ONCE:
                    break
                continue
            room_bytes -= record.size_bytes_max
            if room_bytes < 0 and leased:
                break
            assert record.scheduled_at <= now.wall_s, "what is not due is not in `due`"
            record.status = successor(record.status, Event.LEASE)
            record.settled = Settled.NOT
            _count_delivery(record, now)
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

    def leased_again(self, identity: bytes, now: Now) -> list[TaskRecord] | None:
        """What the request of that identity leased and still holds; None if none is known."""
        found = self.claims.find(identity, now)
        if found is None:
            return None
        claim, task_ids = found
        records = map(self.get, task_ids)
        return [record for record in records if record is not None and claim.holds(record)]

    def _candidates(
        self, agent_id: str, module_name: str, task_ids: Iterable[str] | None, now: Now
    ) -> Iterator[tuple[Flow, str]]:
        if task_ids is None:
            yield from self.index.due.select(agent_id, module_name)
            return
        for task_id in task_ids:
            record = self.get(task_id)
            if record is not None and self._has_fallen_due(record, now):
                yield record.flow, task_id

    def _has_fallen_due(self, record: TaskRecord, now: Now) -> bool:
        """Whether a task may be leased; one whose time has come, but not its turn, falls due."""
        index = self.index
        if record.status is Status.PENDING and record.scheduled_at <= now.wall_s:
            if index.waiting.discard(record.scheduled_at, record.task_id):
                index.place_by_wall_clock(record, now)
            return record.task_id not in index.deadlines
        return False

    def ack(self, change: Change, task_id: str, lease_token: str = "") -> TaskRecord:
        """The task is done.

        Again with the token that completed it: the first answer again, and nothing
        in ``change``. Without a token: unfenced, while pending or inflight.

        :raises UnknownTaskError: there is no such task.
        :raises StaleLeaseError: the token is of another, or an ended, delivery.
        :raises InvalidTransitionError: without a token, the task is not to be had.
        """
        record, repeated = self._fenced(change, task_id, lease_token, Event.ACK)
        if repeated:
            return record
        if record.status is Status.PENDING:
            _count_delivery(record, change.now)
        record.status = successor(record.status, Event.ACK)
        record.settled = Settled.ACK if lease_token else Settled.ACK_UNFENCED
        record.moment = int(change.now.outcome_s)
        record.span_s = 0
        record.worker_id = ""
        change.added = change.added.plus(Ledger(completed=1))
        change.put(record)
        change.ended(record, Status.COMPLETED)
        return record

    def nack(
        self,
        change: Change,
        task_id: str,
        lease_token: str = "",
        *,
        delay_s: int = 0,
        reason: str = "",
    ) -> TaskRecord:
        """The worker gives the task back, for another try after ``delay_s`` seconds.

        It is dead if that was its last attempt. Repeated with the right token, or
        without one before the task is due again: the first answer again, and nothing
        in ``change``. Raises what `ack` raises, and `InvalidFieldError`.
        """
        _require_range("retry_delay_seconds", delay_s, 0, DELAY_S_MAX)
        record, repeated = self._fenced(change, task_id, lease_token, Event.NACK)
        if repeated:
            return record
        if record.status is Status.PENDING:
            _count_delivery(record, change.now)
        self._give_up(
            change,
            record,
            Event.NACK,
            Settled.NACK,
            delay_s=delay_s,
            error=reason or "given back without a reason",
        )
        return record

    def extend(self, change: Change, task_id: str, lease_token: str, *, lease_s: int) -> TaskRecord:
        """Let a running lease end ``lease_s`` seconds from now. Raises what `ack` raises."""
        _require_range("lease_seconds", lease_s, 1, LEASE_S_MAX)
        if not lease_token:
            raise MissingFieldError("lease_token")
        record, _ = self._fenced(change, task_id, lease_token, Event.EXTEND)
        record.status = successor(record.status, Event.EXTEND)
        record.span_s = lease_s
        record.moment = math.ceil(change.now.wall_s + lease_s)
        change.put(record, change.now.monotonic_s + lease_s)
        return record

    def expire(self, change: Change, *, limit: int) -> list[TaskRecord]:
        """End up to ``limit`` leases whose time is up; the records they leave."""
        ended = []
        until = monotonic_ticks_passed(change.now)
        for _, task_id in _first(self.index.leases.ascending(until), limit):
            if task_id in change.records:
                continue
            record = self._known(task_id)
            error = f"lease of {_worker(record)} expired after {record.span_s} s"
            self._give_up(change, record, Event.EXPIRE, Settled.EXPIRED, delay_s=0, error=error)
            ended.append(record)
        return ended

    def release(self, change: Change, task_id: str, lease_token: str, *, reason: str) -> bool:
        """End one lease at once because its worker is gone; False if it had ended already."""
        record = self._find(change, task_id)
        if record is None or record.status is not Status.INFLIGHT:
            return False
        if record.lease_token != lease_token:
            return False
        self._give_up(change, record, Event.EXPIRE, Settled.EXPIRED, delay_s=0, error=reason)
        return True

    def bury(self, change: Change, found: TaskRecord, *, error: str) -> bool:
        """Let a task die at once, because its payload cannot be read.

        :param found: the task as it was when that was found out.
        :returns: False if it has changed since.
        """
        record = self._find(change, found.task_id)
        if record is None or record.encode() != found.encode():
            return False
        record.status = successor(record.status, Event.DAMAGE)
        record.settled = Settled.EXPIRED  # whoever had it before has it no longer
        self._die(change, record, error)
        return True

    def take_back(self, change: Change, task_id: str, lease_token: str) -> bool:
        """End a lease that its worker has not been sent: the delivery does not count.

        False if the lease had ended already.
        """
        record = self._find(change, task_id)
        if record is None or record.status is not Status.INFLIGHT:
            return False
        if record.lease_token != lease_token:
            return False
        _discount_delivery(record)
        record.status = successor(record.status, Event.EXPIRE)
        record.settled = Settled.EXPIRED
        record.worker_id = ""
        record.span_s = record.moment = 0
        change.put(record)
        return True

    def retire(self, change: Change, *, limit: int) -> Retired:
        """Drop up to ``limit`` completed and dead tasks beyond retention."""
        limits, index = self.limits, self.index
        completed, early = self._beyond(
            change, index.retained, limits.completed_max, limits.retention_s, limit
        )
        dead, dead_early = self._beyond(
            change, index.dead, limits.dead_max, limits.dead_retention_s, limit - len(completed)
        )
        for task_id in (*completed, *dead):
            self._drop(change, self._known(task_id), Event.RETIRE)
        change.added = change.added.plus(Ledger(scheduled=-len(dead), deleted=len(dead)))
        return Retired(completed, dead, early + dead_early)

    @staticmethod
    def _beyond(
        change: Change, ended: TimerHeap, kept_max: int, kept_s: int, limit: int
    ) -> tuple[list[str], int]:
        """The oldest of ``ended`` that are too old or too many; how many are not too old."""
        too_many = len(ended) - kept_max
        until = int(change.now.age_s) - kept_s
        found: list[str] = []
        early = 0
        for ended_at, task_id in _first(ended.ascending(), limit):
            if ended_at > until and len(found) >= too_many:
                break
            if task_id not in change.records:
                found.append(task_id)
                early += ended_at > until
        return found, early

    def delete_agent(
        self, change: Change, agent_id: str, *, cursor: tuple[int, str] = (0, ""), limit: int
    ) -> tuple[int, str] | None:
        """Delete an agent's tasks, completed ones excepted, in bounded steps.

        :param cursor: what the previous step returned.
        :param limit: look at no more than so many tasks in this step.
        :returns: where to go on; None when all is done.
        """
        flows = {flow.number: flow for flow in self._flows_of.get(agent_id, {}).values()}
        first, last = cursor
        for number in sorted(number for number in flows if number >= first):
            if number > first:
                last = ""
            while task_ids := flows[number].ids.following(last, limit):
                for task_id in task_ids:
                    if task_id not in change.records:
                        self._delete(change, self._known(task_id))
                last = task_ids[-1]
                limit -= len(task_ids)
                if not limit:
                    return number, last
        return None

    def _delete(self, change: Change, record: TaskRecord) -> None:
        if record.status is not Status.COMPLETED:
            self._drop(change, record, Event.DELETE)
            change.added = change.added.plus(Ledger(scheduled=-1, deleted=1))
            change.ended(record, Status.GONE)

    # -------------------------------------------------------------- a turn ends

    def seal(self, change: Change) -> bytes:
        """The journal entry of a change; nothing may be added to it afterwards."""
        change.sequence = self.sequence + 1
        change.rows = {
            task_id: b"" if record is None else record.encode()
            for task_id, record in change.records.items()
        }
        claims = [claim for claim, _ in change.claims]
        entry = encode_entry(
            change.sequence, change.added, change.flows.values(), change.rows, claims
        )
        change.size_bytes = len(entry)
        return entry

    def apply(self, change: Change) -> None:
        """Make a sealed change real."""
        assert change.sequence == self.sequence + 1, "sealed, and nothing applied since"
        self.sequence = change.sequence
        self.ledger = self.ledger.plus(change.added)
        for flow in change.flows.values():
            self._remember_flow(flow)
            self._next_flow = flow.number + 1
        for flow in change.served:
            self.index.due.served(flow)
        for claim, task_ids in change.claims:
            self.claims.remember(claim, task_ids, change.now.monotonic_s + claim.span_s)
        touched = list(change.flows.values())
        for task_id, row in change.rows.items():
            record = change.records[task_id]
            # The key, the timer and the queue share one string.
            replaced = self._rows.put(task_id, row) if row else self._rows.pop(task_id)
            old = None if replaced is None else self.record(task_id, replaced)
            if old is not None:
                self.index.remove(old)
                if record is None or record.flow is not old.flow:
                    old.flow.ids.remove(task_id)
                    touched.append(old.flow)
            if record is not None:
                if old is None or record.flow is not old.flow:
                    record.flow.ids.add(task_id)
                self.index.place(record, change.deadlines.get(task_id), change.now)
        for flow in touched:
            if not flow.ids:
                self._forget_flow(flow)

    # ------------------------------------------------------------- snapshot

    def snapshot(self, rows_per_chunk: int = ROWS_PER_CHUNK) -> Iterator[bytes]:
        """The book as chunks, cut lazily while changes go on being applied between them.

        With the journal entries after its sequence (`sequence` when this is called)
        it recovers the state of any later moment. The chunks must reach the store in
        order, each after the changes applied before it was cut.
        """
        header = header_chunk(Header(self.sequence, self.ledger, self._next_flow))
        flows, claims = list(self._flows.values()), self.claims.all()
        return self._chunks(header, flows, claims, rows_per_chunk)

    def _chunks(
        self, header: bytes, flows: list[Flow], claims: list[Claim], rows_per_chunk: int
    ) -> Iterator[bytes]:
        yield header
        chunks = 1
        for start in range(0, len(flows), LANES_PER_CHUNK):
            yield flows_chunk(flows[start : start + LANES_PER_CHUNK])
            chunks += 1
        if claims:
            yield claims_chunk(claims)
            chunks += 1
        rows: list[tuple[str, bytes]] = []
        last = ""
        while following := self.rows_after(last):
            last = following[-1][0]
            rows += following
            if len(rows) >= rows_per_chunk:
                yield rows_chunk(rows, len(rows))
                chunks += 1
                rows = []
        if rows:
            yield rows_chunk(rows, len(rows))
            chunks += 1
        yield end_chunk(chunks)

    # -------------------------------------------- for recovery and the auditor

    @property
    def flows(self) -> Mapping[int, Flow]:
        """Every flow that has a record, by number."""
        return self._flows

    def restore(
        self,
        sequence: int,
        ledger: Ledger,
        flows: Mapping[int, Flow],
        next_flow: int,
        rows: IdTable[bytes],
    ) -> None:
        """Begin a recovery: take everything over; the indexes come with `restore_indexes`."""
        self.sequence = sequence
        self.ledger = ledger
        for number in sorted(flows):
            self._remember_flow(flows[number])
        self._next_flow = next_flow
        self._rows = rows

    def restore_indexes(self, now: Now, claims: ClaimRecovery) -> Iterator[None]:
        """End a recovery: index the rows, a thousand at each step.

        A lease begins anew in full: nobody could settle it while we were away. A
        retry delay goes on, by the wall clock, but is never longer than it was.

        :raises KeyError: a row names a flow that is not known; others of `ROW_ERRORS`: it is none.
        """
        last = ""
        while rows := self.rows_after(last):
            for last, row in rows:
                record = TaskRecord.decode(last, row, self._flows)
                record.flow.ids.add(last)
                if record.status is Status.INFLIGHT:
                    claims.see(record)
                deadline_s = _restored_deadline_s(record, now)
                if record.status is Status.PENDING and deadline_s is None:
                    # `advance` lets them fall due in the order of their time, not of their ids.
                    self.index.waiting.add(record.scheduled_at, last)
                else:
                    self.index.place(record, deadline_s, now)
            yield
        claims.finish(self.claims, now)
        for flow in [flow for flow in self._flows.values() if not flow.ids]:
            self._forget_flow(flow)

    def reindex(self, record: TaskRecord, now: Now) -> None:
        """Place a record that the auditor found misplaced, as a recovery would."""
        self.index.purge(record)
        self.index.place(record, _restored_deadline_s(record, now), now)

    # ------------------------------------------------------------- internals

    def _known(self, task_id: str) -> TaskRecord:
        """The record of an id that an index holds."""
        row = self._rows.get(task_id)
        if row is None:
            raise KeyError(task_id)
        return TaskRecord.decode(task_id, row, self._flows)

    def _find(self, change: Change, task_id: str) -> TaskRecord | None:
        if task_id in change.records:
            return change.records[task_id]
        record = self.get(task_id)
        if record is not None:
            # Table, flow and timers go on sharing one string; the caller's can go.
            record.task_id = record.flow.ids.same(task_id)
        return record

    def _flow(self, change: Change, agent_id: str, module_name: str) -> Flow:
        flow = self._flows_of.get(agent_id, {}).get(module_name)
        if flow is None:
            flow = change.flows.get((agent_id, module_name))
        return flow or Flow(self._next_flow + len(change.flows), agent_id, module_name)

    def _fenced(
        self, change: Change, task_id: str, lease_token: str, event: Event
    ) -> tuple[TaskRecord, bool]:
        """The record, and whether ``event`` has already happened to this very delivery."""
        record = self._find(change, task_id)
        if record is None:
            raise UnknownTaskError(task_id)
        if not lease_token:
            repeated = self._is_repeated(change, record, event)
            if not repeated:
                successor(record.status, event)
            return record, repeated
        if record.lease_token != lease_token:
            raise StaleLeaseError(task_id, "it is not the token of the last delivery")
        if record.status is Status.INFLIGHT:
            return record, False
        if record.settled in _REPEATS.get(event, ()):
            return record, True
        raise StaleLeaseError(
            task_id, f"{_ENDED[record.settled]}, the task is {record.status.text}"
        )

    def _is_repeated(self, change: Change, record: TaskRecord, event: Event) -> bool:
        """Whether ``event``, without a token, has happened and nobody was given the task since."""
        if event is Event.ACK:
            return record.settled is Settled.ACK_UNFENCED and record.status is Status.COMPLETED
        if record.settled is not Settled.NACK:
            return False
        if record.status is Status.PENDING:
            return not self._is_due(change, record)
        return record.status is Status.DEAD

    def _is_due(self, change: Change, record: TaskRecord) -> bool:
        """Whether a pending task may be handed out, as far as its times go."""
        now, task_id = change.now, record.task_id
        if record.scheduled_at > int(now.wall_s):
            return False
        if task_id in change.records:
            return change.deadlines.get(task_id, 0.0) <= now.monotonic_s
        tick = self.index.deadlines.get(task_id)
        return tick is None or tick <= monotonic_ticks_passed(now)

    def _give_up(
        self,
        change: Change,
        record: TaskRecord,
        event: Event,
        settled: Settled,
        *,
        delay_s: int,
        error: str,
    ) -> None:
        """A delivery ends without an acknowledgement."""
        dead = record.deliveries >= record.max_attempts
        record.status = successor(record.status, Event.EXHAUST if dead else event)
        record.settled = settled
        now = change.now
        if dead:
            self._die(change, record, error)
            return
        record.last_error = clipped(error, LAST_ERROR_BYTES_MAX)
        record.worker_id = ""
        if delay_s:
            record.span_s = delay_s
            record.moment = math.ceil(now.wall_s + delay_s)
            change.put(record, now.monotonic_s + delay_s)
        else:
            record.span_s = record.moment = 0
            change.put(record)

    def _die(self, change: Change, record: TaskRecord, error: str) -> None:
        record.last_error = clipped(error, LAST_ERROR_BYTES_MAX)
        record.worker_id = ""
        record.span_s = 0
        record.moment = int(change.now.outcome_s)
        change.put(record)
        change.ended(record, Status.DEAD)

    def _drop(self, change: Change, record: TaskRecord, event: Event) -> None:
        assert successor(record.status, event) is Status.GONE
        change.records[record.task_id] = None

    def _remember_flow(self, flow: Flow) -> None:
        self._flows[flow.number] = flow
        self._flows_of.setdefault(flow.agent_id, {})[flow.module_name] = flow
        self._flows_for.setdefault(flow.module_name, {})[flow.agent_id] = flow

    def _forget_flow(self, flow: Flow) -> None:
        if self._flows.pop(flow.number, None) is not None:
            flows = self._flows_of.get(flow.agent_id, {})
            # A journal may know an older flow of the same name, long empty.
            if flows.get(flow.module_name) is flow:
                del flows[flow.module_name]
                if not flows:
                    del self._flows_of[flow.agent_id]
                flows = self._flows_for[flow.module_name]
                del flows[flow.agent_id]
                if not flows:
                    del self._flows_for[flow.module_name]
        self.index.fresh.pop(flow, None)


_REPEATS = {
    Event.ACK: (Settled.ACK, Settled.ACK_UNFENCED),
    Event.NACK: (Settled.NACK,),
}
_ENDED = {
    Settled.NOT: "the delivery has ended",
    Settled.ACK: "the delivery was acknowledged",
    Settled.ACK_UNFENCED: "the delivery was acknowledged",
    Settled.NACK: "the delivery was given back",
    Settled.EXPIRED: "the lease has expired",
}


def _require_range(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidFieldError(field, f"must be between {least} and {most}")


def _lateness_ms(scheduled_at: int, wall_s: float) -> int:
    return min(max(0, int((wall_s - scheduled_at) * 1000)), LATENESS_MS_MAX)


def _count_delivery(record: TaskRecord, now: Now) -> None:
    record.deliveries += 1
    if record.deliveries == 1:
        # How late it was when it was scheduled is not our delay.
        late_ms = _lateness_ms(record.scheduled_at, now.wall_s)
        record.lateness_ms = max(0, late_ms - record.lateness_ms)


def _discount_delivery(record: TaskRecord) -> None:
    """Undo `_count_delivery`, to the second: the lease knows when it began."""
    record.deliveries -= 1
    if record.deliveries == 0:
        late_ms = _lateness_ms(record.scheduled_at, record.moment - record.span_s)
        record.lateness_ms = max(0, late_ms - record.lateness_ms)


def _restored_deadline_s(record: TaskRecord, now: Now) -> float | None:
    if record.status is Status.INFLIGHT:
        return now.monotonic_s + record.span_s
    if record.status is Status.PENDING and record.moment:
        left_s = min(record.moment - now.wall_s, record.span_s)
        return now.monotonic_s + left_s if left_s > 0 else None
    return None


def _is_overdue(ended: TimerHeap, kept_max: int, kept_s: int, now: Now) -> bool:
    first = ended.first_tick()
    return first is not None and (
        len(ended) > kept_max or first + kept_s + RETENTION_BATCH_S <= now.age_s
    )


def _worker(record: TaskRecord) -> str:
    return record.worker_id or "an unnamed worker"


def _first(timers: Iterator[tuple[int, str]], limit: int) -> Iterator[tuple[int, str]]:
    return (timer for timer, _ in zip(timers, range(limit), strict=False))
