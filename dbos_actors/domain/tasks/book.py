"""The task book: every task of a partition in memory, and the turns that change them.

The book owns the records (`record`), the indexes over them (`index`) and the ledger. It has no
clock, no randomness and no I/O: a `Now`, tokens and bytes come in; rows, outcomes and journal
bytes go out.

A turn is one `Change`:

1. `begin` makes an empty change.
2. A rule writes into it: `scheduling`, `leasing`, `settling`, `deliveries`, `cancelling` or
   `retirement`.
3. `seal` turns the change into a journal entry. Nothing may be added afterwards.
4. `apply` makes the change real.

`undo` takes the last applied change back, when the store has refused it.

Only one change may be under way between two applies. `begin` and `advance` also move tasks from
index to index as time passes. That is not journalled: nobody can observe it, and a restart does it
anew.

The ledger always balances: `scheduled = pending + inflight + completed + dead + cancelled`.
*Completed* also counts the tasks whose record retention has dropped. A task that was deleted with
its agent, or that retention dropped when it was dead or cancelled, is taken out of *scheduled* and
counts as *deleted*.

Rows are kept in one `IdTable`, in the order of their ids. It grows in steps of a thousand rows;
snapshots and audits read as many at a time and continue after the last id they have seen. Rows and
ids are bytes and strings, which the garbage collector does not visit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from dbos_actors.domain.tasks.change import Before, Change
from dbos_actors.domain.tasks.claims import ClaimRecovery, Claims
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.id_table import BLOCK_MAX, IdTable
from dbos_actors.domain.tasks.index import (
    MONOTONIC_TICKS_PER_S,
    Place,
    TaskIndex,
    monotonic_ticks_passed,
)
from dbos_actors.domain.tasks.journal import Ledger, encode_entry
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now

WITHDRAWN_AT_ONCE = 200
"""Tasks that a wall clock set back has made early, taken out of `due` or passed over: 1 ms."""


class Counters(NamedTuple):
    """The ledger and what it balances; all counts."""

    scheduled: int
    pending: int
    inflight: int
    completed: int
    dead: int
    cancelled: int
    deleted: int
    due: int
    late: int
    oldest_due_s: int
    completed_kept: int

    @property
    def balanced(self) -> bool:
        return self.scheduled == (
            self.pending + self.inflight + self.completed + self.dead + self.cancelled
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
        self._tasks_of: dict[str, int] = {}  # agent -> tasks, if there is a limit of them
        self._flows_for: dict[str, dict[str, Flow]] = {}  # module -> agent -> flow
        self.next_flow = 1  # the number of the next flow that is made

    def __len__(self) -> int:
        return len(self._rows)

    # ------------------------------------------------------------- reading

    def get(self, task_id: str) -> TaskRecord | None:
        """A copy of the task's record, or None."""
        row = self._rows.get(task_id)
        return None if row is None else TaskRecord.decode(task_id, row, self._flows)

    def counters(self, wall_s: float = 0.0) -> Counters:
        """The ledger and the counts it must equal; how late due tasks are at ``wall_s``."""
        sizes = self.index.sizes()
        late, oldest_due_s = self.index.lateness(int(wall_s))
        return Counters(
            scheduled=self.ledger.scheduled,
            pending=sizes[Place.WAITING] + sizes[Place.DELAYED] + sizes[Place.DUE],
            inflight=sizes[Place.LEASED],
            completed=self.ledger.completed,
            dead=sizes[Place.DEAD],
            cancelled=sizes[Place.CANCELLED],
            deleted=self.ledger.deleted,
            due=sizes[Place.DUE],
            late=late,
            oldest_due_s=oldest_due_s,
            completed_kept=sizes[Place.RETAINED],
        )

    def has_due(self, agent_id: str = "", module_name: str = "") -> bool:
        """Whether a lease of that filter would find anything; O(1)."""
        return self.index.due.has(agent_id, module_name)

    def dead_tasks(self) -> Iterator[TaskRecord]:
        """Dead tasks in the order in which they died; the book must not change meanwhile."""
        return (self.known(task_id) for _, task_id in self.index.dead.ascending())

    @property
    def flows(self) -> Mapping[int, Flow]:
        """Every flow that has a record, by number."""
        return self._flows

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

    def tasks_of(self, agent_id: str) -> int:
        """How many tasks an agent has, of any status; 0 unless they are limited."""
        return self._tasks_of.get(agent_id, 0)

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

    # ------------------------------------------------- time passes (no journal)

    def begin(self, now: Now) -> Change:
        """A new, empty change. Some tasks that a wall clock set back has made early are withdrawn.

        The others follow with the next changes and `advance`; until then no lease takes them.
        """
        for _, task_id in self.index.no_longer_due(now, limit=WITHDRAWN_AT_ONCE):
            self.index.wait_again(self.known(task_id))
        return Change(now)

    def advance(self, now: Now, *, limit: int) -> int:
        """Move up to ``limit`` tasks between `waiting` and `due`; how many (``limit``: call again).

        Waiting ones fall due; due ones that a wall clock set back has made early wait again.
        """
        index = self.index
        early = index.no_longer_due(now, limit=limit)
        for _, task_id in early:
            index.wait_again(self.known(task_id))
        limit -= len(early)
        moved = index.waiting.pop(int(now.wall_s), limit)
        for _, task_id in moved:
            index.place_by_wall_clock(self.known(task_id), now)
        delayed = index.delays.pop(monotonic_ticks_passed(now), limit - len(moved))
        for _, task_id in delayed:
            del index.deadlines[task_id]
            index.place_by_wall_clock(self.known(task_id), now)
        return len(early) + len(moved) + len(delayed)

    # ------------------------------------------------- what a rule reads

    def known(self, task_id: str) -> TaskRecord:
        """The record of a task that is in an index. Raises `KeyError` if there is none."""
        row = self._rows.get(task_id)
        if row is None:
            raise KeyError(task_id)
        return TaskRecord.decode(task_id, row, self._flows)

    def find(self, change: Change, task_id: str) -> TaskRecord | None:
        """A task as ``change`` will leave it, or as it is; None if there is none."""
        if task_id in change.records:
            return change.records[task_id]
        record = self.get(task_id)
        if record is not None:
            # Table, flow and timers go on sharing one string; the caller's can go.
            record.task_id = record.flow.ids.same(task_id)
        return record

    def flow(self, change: Change, agent_id: str, module_name: str) -> Flow:
        """The flow of an agent and a module; a new one that nobody knows yet, if there is none."""
        flow = self._flows_of.get(agent_id, {}).get(module_name)
        if flow is None:
            flow = change.flows.get((agent_id, module_name))
        return flow or Flow(self.next_flow + len(change.flows), agent_id, module_name)

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
            self.next_flow = flow.number + 1
        for flow in change.served:
            self.index.due.served(flow)
        for claim, task_ids in change.claims:
            self.claims.remember(claim, task_ids, change.now.monotonic_s + claim.span_s)
        touched = list(change.flows.values())
        deadlines = self.index.deadlines
        before = change.before = []
        for task_id, row in change.rows.items():
            tick = deadlines.get(task_id)
            # The key, the timer and the queue share one string.
            replaced = self._set(
                task_id,
                row,
                change.records[task_id],
                deadline_s=change.deadlines.get(task_id),
                now=change.now,
                touched=touched,
            )
            before.append(Before(task_id, replaced, tick))
        change.emptied = self._forget_empty(touched)

    def undo(self, change: Change, now: Now) -> None:
        """Take the last applied change back.

        Every task has the row and the deadline that it had before. Due tasks queue behind those
        of their flow that are due already, as if a lease of theirs had ended. What was forgotten
        for the change's sake, the oldest claims, stays forgotten.
        """
        assert change.sequence == self.sequence, "the last one"
        for flow in change.emptied:
            self._remember_flow(flow)
        touched = list(change.flows.values())
        for task_id, row, tick in reversed(change.before):
            record = None if row is None else self.record(task_id, row)
            deadline_s = None if tick is None else tick / MONOTONIC_TICKS_PER_S
            self._set(task_id, row or b"", record, deadline_s=deadline_s, now=now, touched=touched)
        self._forget_empty(touched)
        for flow in change.flows.values():
            self.next_flow = min(self.next_flow, flow.number)
        for claim, _ in change.claims:
            self.claims.forget(claim)
        self.ledger = self.ledger.minus(change.added)
        self.sequence -= 1

    def _set(
        self,
        task_id: str,
        row: bytes,
        record: TaskRecord | None,
        *,
        deadline_s: float | None,
        now: Now,
        touched: list[Flow],
    ) -> bytes | None:
        """Give a task a row, empty if it goes, and its place; the row before, None if it is new.

        Flows that it leaves are added to ``touched``.
        """
        replaced = self._rows.put(task_id, row) if row else self._rows.pop(task_id)
        old = None if replaced is None else self.record(task_id, replaced)
        if old is not None:
            self.index.remove(old)
            if record is None or record.flow is not old.flow:
                old.flow.ids.remove(task_id)
                self._count_of(old.flow, -1)
                touched.append(old.flow)
        if record is not None:
            if old is None or record.flow is not old.flow:
                record.flow.ids.add(task_id)
                self._count_of(record.flow, 1)
            self.index.place(record, deadline_s, now)
        return replaced

    def _count_of(self, flow: Flow, change: int) -> None:
        if self.limits.agent_tasks_max:
            count = self._tasks_of.pop(flow.agent_id, 0) + change
            if count:
                self._tasks_of[flow.agent_id] = count

    def _forget_empty(self, touched: list[Flow]) -> list[Flow]:
        """Forget those of these flows that have no task; which they are."""
        empty = [flow for flow in touched if not flow.ids]
        for flow in empty:
            self._forget_flow(flow)
        return empty

    # -------------------------------------------- for recovery and the auditor

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
        self.next_flow = next_flow
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
                self._count_of(record.flow, 1)
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


def _restored_deadline_s(record: TaskRecord, now: Now) -> float | None:
    """The end of a lease or of a retry delay that was read back, on the monotonic clock."""
    if record.status is Status.INFLIGHT:
        return now.monotonic_s + record.span_s
    if record.status is Status.PENDING and record.moment:
        left_s = min(record.moment - now.wall_s, record.span_s)
        return now.monotonic_s + left_s if left_s > 0 else None
    return None
