"""The task book against a simple model, through restarts, snapshots and clock jumps.

Every operation runs on both. After each one the records, what is due and the
ledger must agree; at the end (and at every restart) the book recovered from the
journal alone, and from a snapshot cut in slices along the way, must equal the
live one, and the auditor must find nothing. Each change is undone once before it
stays, and several together at any moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dbos_actors.domain.tasks import deliveries, retirement
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.errors import RefusedError
from tests.domain.tasks.helpers import Driver, assert_audited, due_tasks, durable_state, recovered
from tests.domain.tasks.model import Model, may_settle

LIMITS = TaskLimits(retention_s=120, completed_max=3, max_attempts=3)
IDS = st.sampled_from([f"t{i}" for i in range(6)])
AGENTS = st.sampled_from(["a1", "a2", "a3"])
MODULES = st.sampled_from(["ping", "dns"])
FILTERS = st.fixed_dictionaries({}, optional={"agent_id": AGENTS, "module_name": MODULES})


class TaskMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(LIMITS)
        self.driver.rehearses = True
        self.model: dict[str, Model] = {}
        self.scheduled = self.completed = self.deleted = 0
        self.tokens: list[tuple[str, str]] = [("t0", "feedfeedfeedfeed")]
        self.ever_acked: set[tuple[str, str]] = set()
        self.cutting: Iterator[bytes] | None = None
        self.chunks: list[bytes] = []
        self.cut_at = 0
        self.snapshot: tuple[int, list[bytes]] | None = None

    # ---------------------------------------------------------------- model

    @property
    def wall_s(self) -> float:
        return self.driver.wall_s

    @property
    def monotonic_s(self) -> float:
        return self.driver.monotonic_s

    def is_due(self, task: Model) -> bool:
        return (
            task.status == "pending"
            and task.deadline_s is None
            and task.scheduled_at <= self.wall_s
        )

    def time_passes(self) -> None:
        for task in self.model.values():
            waits = task.status == "pending" and task.deadline_s is not None
            if waits and (task.deadline_s or 0) <= self.monotonic_s:
                task.deadline_s = None

    def give_up(self, task: Model, ended_by: str, delay_s: int = 0) -> None:
        task.ended_by = ended_by
        task.deadline_s = None
        task.visible_at = task.span_s = 0
        if task.deliveries >= task.max_attempts:
            task.status = "dead"
        else:
            task.status = "pending"
            if delay_s:
                task.deadline_s = self.monotonic_s + delay_s
                task.visible_at = math.ceil(self.wall_s + delay_s)
                task.span_s = delay_s

    def draw_delivery(self, data: st.DataObject) -> tuple[str, str]:
        """A task and a token: mostly of a running delivery, else an old one or none."""
        held = [(task_id, task.token) for task_id, task in self.model.items() if task.token]
        pool = data.draw(st.sampled_from([pool for pool in (held, held, self.tokens) if pool]))
        task_id, token = data.draw(st.sampled_from(pool))
        return task_id, data.draw(st.sampled_from([token, token, ""]))

    def may_settle(self, task_id: str, token: str, ended_by: str) -> str:
        task = self.model.get(task_id)
        return may_settle(task, token, ended_by, is_due=task is not None and self.is_due(task))

    # ----------------------------------------------------------- operations

    @initialize(attempts=st.lists(st.integers(1, 4), min_size=6, max_size=6))
    def some_tasks(self, attempts: list[int]) -> None:
        """Mostly due whatever the clock does, so that something can happen at once."""
        for i, allowed in enumerate(attempts):
            self.schedule_one(f"t{i}", (f"a{i % 3 + 1}", "ping"), b"", -90_000, allowed)

    @rule(
        task_id=IDS,
        flow=st.tuples(AGENTS, MODULES),
        payload=st.sampled_from([b"", b"x"]),
        in_s=st.sampled_from([None, -90_000, -90_000, -20, -1, 0, 1, 7, 60, 3600]),
        attempts=st.sampled_from([0, 0, 0, 1, 2]),
        revive=st.booleans(),
    )
    def schedule(
        self,
        task_id: str,
        flow: tuple[str, str],
        payload: bytes,
        in_s: int | None,
        attempts: int,
        *,
        revive: bool,
    ) -> None:
        self.schedule_one(task_id, flow, payload, in_s, attempts, revive=revive)

    def schedule_one(
        self,
        task_id: str,
        flow: tuple[str, str],
        payload: bytes,
        in_s: int | None,
        attempts: int,
        *,
        revive: bool = False,
    ) -> None:
        at = 0 if in_s is None else int(self.wall_s) + in_s
        task = self.model.get(task_id)
        same = (
            task is not None
            and task.flow == flow
            and task.payload == payload
            and attempts in (0, task.max_attempts)
            and (
                at == task.scheduled_at
                or (at == 0 and (task.status != "pending" or task.scheduled_at <= int(self.wall_s)))
            )
        )
        revived = revive and task is not None and task.status == "dead"
        kept = ("pending", "dead") if revived else ("pending",)
        refused = task is not None and task.status not in kept and not same
        try:
            changed = self.driver.schedule(
                task_id,
                agent_id=flow[0],
                module_name=flow[1],
                payload=payload,
                scheduled_at=at,
                max_attempts=attempts,
                revive=revive,
            )
        except RefusedError:
            assert refused
            return
        assert not refused
        assert changed is not (same and not revived)
        if not changed:
            return
        if task is None:
            self.scheduled += 1
        deliveries = task.deliveries if task and task.status == "pending" else 0
        self.model[task_id] = Model(
            "pending",
            flow,
            payload,
            at or int(self.wall_s),
            attempts or 3,
            deliveries=deliveries,
        )

    @rule(lease_s=st.sampled_from([5, 30]))
    def lease_all(self, lease_s: int) -> None:
        self.lease_some(10, lease_s, {})

    @rule(limit=st.integers(1, 3), lease_s=st.sampled_from([5, 30]), filters=FILTERS)
    def lease(self, limit: int, lease_s: int, filters: dict[str, str]) -> None:
        self.lease_some(limit, lease_s, filters)

    def lease_some(self, limit: int, lease_s: int, filters: dict[str, str]) -> None:
        self.time_passes()
        due = [
            task_id
            for task_id, task in self.model.items()
            if self.is_due(task)
            and filters.get("agent_id", task.flow[0]) == task.flow[0]
            and filters.get("module_name", task.flow[1]) == task.flow[1]
        ]
        leased = self.driver.lease(limit=limit, lease_s=lease_s, **filters)
        assert len(leased) == min(limit, len(due))
        assert {record.task_id for record in leased} <= set(due)
        # Fair: an agent gets a second task only when every agent with due tasks has one.
        agents = [self.model[task_id].flow[0] for task_id in due]
        served = [record.agent_id for record in leased]
        if len(served) > len(set(served)):
            assert set(served) == set(agents)
        for record in leased:
            assert (record.task_id, record.lease_token) not in self.ever_acked
            task = self.model[record.task_id]
            task.status = "inflight"
            task.deliveries += 1
            assert record.retry_count == task.deliveries - 1
            assert all(record.lease_token != token for _, token in self.tokens)
            task.token, task.ended_by = record.lease_token, ""
            task.deadline_s = self.monotonic_s + lease_s
            task.span_s = lease_s
            self.tokens.append((record.task_id, record.lease_token))

    @rule(data=st.data(), repeated=st.booleans())
    def ack_delivery(self, data: st.DataObject, repeated: bool) -> None:
        delivery = self.draw_delivery(data)
        self.settle_ack(*delivery)
        if repeated:
            self.settle_ack(*delivery)

    @rule(task_id=IDS)
    def ack_unfenced(self, task_id: str) -> None:
        self.settle_ack(task_id, "")

    def settle_ack(self, task_id: str, token: str) -> None:
        verdict = self.may_settle(task_id, token, "ack")
        entries = len(self.driver.journal)
        try:
            self.driver.ack(task_id, token)
        except RefusedError:
            assert verdict == "no"
            return
        assert verdict != "no"
        assert (len(self.driver.journal) > entries) is (verdict == "yes")
        if verdict == "again":
            return
        task = self.model[task_id]
        if task.status == "pending":
            task.deliveries += 1
        task.status, task.deadline_s = "completed", None
        task.ended_by = "ack" if token else "ack unfenced"
        task.finished_at = int(self.driver.now.outcome_s)
        self.completed += 1
        self.ever_acked.add((task_id, task.token))

    @rule(data=st.data(), delay_s=st.sampled_from([0, 10, 100]), repeated=st.booleans())
    def nack_delivery(self, data: st.DataObject, delay_s: int, repeated: bool) -> None:
        delivery = self.draw_delivery(data)
        self.settle_nack(*delivery, delay_s)
        if repeated:
            self.settle_nack(*delivery, delay_s)

    @rule(task_id=IDS, delay_s=st.sampled_from([0, 10, 100]))
    def nack_unfenced(self, task_id: str, delay_s: int) -> None:
        self.settle_nack(task_id, "", delay_s)

    def settle_nack(self, task_id: str, token: str, delay_s: int) -> None:
        verdict = self.may_settle(task_id, token, "nack")
        entries = len(self.driver.journal)
        try:
            self.driver.nack(task_id, token, delay_s=delay_s)
        except RefusedError:
            assert verdict == "no"
            return
        assert verdict != "no"
        assert (len(self.driver.journal) > entries) is (verdict == "yes")
        if verdict == "yes":
            task = self.model[task_id]
            if task.status == "pending":
                task.deliveries += 1
            self.give_up(task, "nack", delay_s)

    @rule(data=st.data(), lease_s=st.sampled_from([5, 60]))
    def extend(self, data: st.DataObject, lease_s: int) -> None:
        task_id, token = self.draw_delivery(data)
        task = self.model.get(task_id)
        holds = task is not None and task.status == "inflight" and task.token == token
        try:
            self.driver.extend(task_id, token, lease_s)
        except RefusedError:
            assert not holds
            return
        assert task is not None
        assert holds
        task.deadline_s = self.monotonic_s + lease_s
        task.span_s = lease_s

    @rule()
    def expire(self) -> None:
        over = {
            task_id
            for task_id, task in self.model.items()
            if task.status == "inflight" and (task.deadline_s or 0) <= self.monotonic_s
        }
        assert {record.task_id for record in self.driver.expire()} == over
        for task_id in over:
            self.give_up(self.model[task_id], "expired")

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        task_id, token = self.draw_delivery(data)
        task = self.model.get(task_id)
        holds = task is not None and task.status == "inflight" and task.token == token
        book = self.driver.book
        released = self.driver.turn(
            lambda change: deliveries.release(book, change, task_id, token, reason="x")
        )
        assert released is holds
        if holds and task is not None:
            self.give_up(task, "expired")

    @rule(data=st.data())
    def lease_and_settle(self, data: st.DataObject) -> None:
        self.lease_some(2, 30, {})
        if data.draw(st.booleans()):
            self.settle_ack(*self.draw_delivery(data))
        else:
            self.settle_nack(*self.draw_delivery(data), data.draw(st.sampled_from([0, 10])))

    @rule(task_id=IDS, repeated=st.booleans())
    def cancel(self, task_id: str, repeated: bool) -> None:
        for _ in range(1 + repeated):
            task = self.model.get(task_id)
            may = task is not None and task.status not in ("completed", "dead")
            entries = len(self.driver.journal)
            try:
                self.driver.cancel(task_id)
            except RefusedError:
                assert not may
                return
            assert may
            assert task is not None
            is_new = task.status != "cancelled"
            assert (len(self.driver.journal) > entries) is is_new
            if is_new:
                if task.status == "inflight":
                    task.ended_by = "cancelled"
                task.status, task.deadline_s = "cancelled", None
                task.visible_at = task.span_s = 0
                task.finished_at = int(self.driver.now.outcome_s)

    @rule(task_id=IDS, in_s=st.sampled_from([None, -5, 20]), repeated=st.booleans())
    def requeue(self, task_id: str, in_s: int | None, repeated: bool) -> None:
        at = 0 if in_s is None else int(self.wall_s) + in_s
        for _ in range(1 + repeated):
            task = self.model.get(task_id)
            may = task is not None and task.status != "completed"
            entries = len(self.driver.journal)
            try:
                self.driver.requeue(task_id, at)
            except RefusedError:
                assert not may
                return
            assert may
            assert task is not None
            is_new = task.status in ("dead", "cancelled")
            assert (len(self.driver.journal) > entries) is is_new
            if is_new:
                when = at or int(self.wall_s)
                attempts = task.max_attempts
                self.model[task_id] = Model("pending", task.flow, task.payload, when, attempts)

    @rule()
    def retire(self) -> None:
        kept = sorted(
            (task.finished_at, task_id)
            for task_id, task in self.model.items()
            if task.status in ("completed", "cancelled")
        )
        until = int(self.driver.now.age_s) - LIMITS.retention_s
        due = sum(at <= until for at, _ in kept)
        dropped = self.driver.retire()
        assert len(dropped) == max(due, len(kept) - LIMITS.completed_max, 0)
        for task_id in dropped:
            if self.model.pop(task_id).status == "cancelled":
                self.scheduled -= 1
                self.deleted += 1

    @rule(agent=AGENTS, really=st.sampled_from([False, False, False, True]))
    def delete_agent(self, agent: str, really: bool) -> None:
        if not really:
            return
        book = self.driver.book
        cursor: tuple[int, str] | None = (0, "")
        while cursor is not None:
            at = cursor
            cursor = self.driver.turn(
                lambda change, at=at: retirement.delete_agent(
                    book, change, agent, cursor=at, limit=1
                )  # type: ignore[misc]
            )
        for task_id, task in list(self.model.items()):
            if task.flow[0] == agent and task.status != "completed":
                del self.model[task_id]
                self.scheduled -= 1
                self.deleted += 1

    # ----------------------------------------------------------------- time

    @rule(seconds=st.sampled_from([0.5, 1, 5, 30, 130]))
    def sleep(self, seconds: float) -> None:
        self.driver.sleep(seconds)
        self.time_passes()

    @rule(seconds=st.sampled_from([-3600, -20, 20, 3600]))
    def jump(self, seconds: int) -> None:
        self.driver.wall_s += seconds

    # ------------------------------------------------- snapshots and restarts

    @rule(count=st.integers(1, 20))
    def undo_and_apply_again(self, count: int) -> None:
        """What the store refuses together is undone together, whatever time has passed."""
        with self.driver.without_the_last(count):
            assert_audited(self.driver)

    @precondition(lambda self: self.cutting is None)
    @rule(rows=st.integers(1, 3))
    def begin_snapshot(self, rows: int) -> None:
        self.cut_at = self.driver.book.sequence
        self.chunks = []
        self.cutting = snapshot_chunks(self.driver.book, rows_per_chunk=rows)

    @precondition(lambda self: self.cutting is not None)
    @rule(chunks=st.integers(1, 4))
    def cut(self, chunks: int) -> None:
        assert self.cutting is not None
        for _ in range(chunks):
            chunk = next(self.cutting, None)
            if chunk is None:
                self.snapshot = (self.cut_at, self.chunks)
                self.cutting = None
                return
            self.chunks.append(chunk)

    @rule()
    def restart(self) -> None:
        self.time_passes()
        self.check_recovery()
        self.cutting = None
        if self.snapshot is None:
            self.driver.restart()
        else:
            at, chunks = self.snapshot
            journal = self.driver.journal[at:]
            self.driver.restart(chunks, journal)
        for task in self.model.values():
            if task.status == "inflight":
                task.deadline_s = self.monotonic_s + task.span_s
            elif task.status == "pending":
                left_s = min(task.visible_at - self.wall_s, task.span_s)
                task.deadline_s = self.monotonic_s + left_s if left_s > 0 else None

    def check_recovery(self) -> None:
        driver = self.driver
        live = durable_state(driver.book)
        assert durable_state(recovered([], driver.journal, driver.now, LIMITS)) == live
        if self.snapshot is not None:
            at, chunks = self.snapshot
            again = recovered(chunks, driver.journal[at:], driver.now, LIMITS)
            assert durable_state(again) == live
            assert again.counters().balanced

    def teardown(self) -> None:
        self.check_recovery()

    # ----------------------------------------------------------- always true

    @invariant()
    def agrees(self) -> None:
        driver, book = self.driver, self.driver.book
        book.advance(driver.now, limit=10**9)
        self.time_passes()
        assert len(book) == len(self.model)
        for task_id, task in self.model.items():
            record = driver.record(task_id)
            assert (record.status.text, record.deliveries, record.scheduled_at) == (
                task.status,
                task.deliveries,
                task.scheduled_at,
            )
        due = {record.task_id for record in due_tasks(book, until=int(self.wall_s))}
        assert due == {task_id for task_id, task in self.model.items() if self.is_due(task)}
        assert {task_id for _, task_id in book.index.due.select()} == due
        counters = book.counters()
        assert counters.balanced
        assert (counters.scheduled, counters.completed, counters.deleted) == (
            self.scheduled,
            self.completed,
            self.deleted,
        )
        cancelled = sum(task.status == "cancelled" for task in self.model.values())
        assert counters.cancelled == cancelled

    @rule()
    def audit(self) -> None:
        assert_audited(self.driver)


TestTaskMachine = TaskMachine.TestCase
TestTaskMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
