"""Where each task waits: the indexes that find the tasks which fall due, expire or are retained.

Everything here is derived from the records and can be rebuilt from them. The status of a record
decides in which place it is. It is in exactly one:

| status | place | ordered by |
|---|---|---|
| pending, `scheduled_at` ahead | `waiting` | wall-clock second |
| pending, given back with a delay | `delays` | monotonic tick |
| pending, due | `due` (turns) and `due_order` (age) | turn; wall-clock second |
| inflight | `leases` | monotonic tick |
| completed | `retained` | wall-clock second of the outcome |
| dead | `dead` | wall-clock second of the outcome |
| cancelled | `cancelled` | wall-clock second of the outcome |

Two clocks are used. Only `scheduled_at` and the time of an outcome are times of day. Leases and
retry delays are spans: their ends are ticks of the monotonic clock, rounded up, so that no jump of
the wall clock moves them.

Pending tasks move from `waiting` to `due` when the wall clock passes them. When the wall clock has
jumped back, some tasks in `due` are early. `no_longer_due` finds them, and each change that begins
moves some of them back to `waiting`. While any are left, a lease compares the time of each task
with the clock and takes none early. When the clock jumps forward, the tasks it has passed are due.
"""

from __future__ import annotations

import math
from enum import IntEnum

from dbos_actors.domain.tasks.fair_queue import DueIndex, Flow
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now, TimerHeap

MONOTONIC_TICKS_PER_S = 16
"""A lease ends at most 1/16 s late, and a lease heap has few distinct ticks."""

WALL_CHECK_S = 1.0
"""While anything waits for a time of day, the clock is looked at this often: it may have jumped."""

LATE_S = 60
"""A due task that nobody has taken for longer counts as late."""

RETENTION_BATCH_S = 60.0
"""Nobody waits for an old outcome to be dropped: a minute's worth goes together."""


class Place(IntEnum):
    """Which index a task stands in."""

    WAITING = 1
    DELAYED = 2
    DUE = 3
    LEASED = 4
    RETAINED = 5
    DEAD = 6
    CANCELLED = 7


class TaskIndex:
    """The indexes over the records of one scheduler."""

    __slots__ = (
        "cancelled",
        "dead",
        "deadlines",
        "delays",
        "due",
        "due_order",
        "fresh",
        "leases",
        "retained",
        "waiting",
        "wall_s_seen",
    )

    def __init__(self) -> None:
        self.waiting = TimerHeap()
        self.delays = TimerHeap()
        self.due = DueIndex()
        self.due_order = TimerHeap()  # the same tasks as `due`
        self.leases = TimerHeap()
        self.retained = TimerHeap()
        self.dead = TimerHeap()
        self.cancelled = TimerHeap()
        self.deadlines: dict[str, int] = {}  # task -> its tick in `leases` or `delays`
        self.fresh: dict[Flow, None] = {}  # flows a task fell due in, not yet asked for
        # No task in `due` is scheduled after this wall-clock second. Later than the clock only
        # while tasks that it has made early, by going back, are still to be withdrawn.
        self.wall_s_seen = 0

    def place(self, record: TaskRecord, deadline_s: float | None, now: Now) -> None:
        """Put a task where its status says.

        :param deadline_s: on the monotonic clock, the end of the lease (inflight) or
            of the delay (pending; None for no delay).
        """
        task_id = record.task_id
        if record.status is Status.PENDING:
            if deadline_s is not None and deadline_s > now.monotonic_s:
                tick = self.deadlines[task_id] = monotonic_tick(deadline_s)
                self.delays.add(tick, task_id)
            else:
                self.place_by_wall_clock(record, now)
        elif record.status is Status.INFLIGHT:
            assert deadline_s is not None, "a lease has a deadline"
            tick = self.deadlines[task_id] = monotonic_tick(deadline_s)
            self.leases.add(tick, task_id)
        elif record.status is Status.COMPLETED:
            self.retained.add(record.moment, task_id)
        elif record.status is Status.DEAD:
            self.dead.add(record.moment, task_id)
        else:
            self.cancelled.add(record.moment, task_id)

    def place_by_wall_clock(self, record: TaskRecord, now: Now) -> None:
        """Put a pending task without a delay among the waiting or the due ones."""
        second = int(now.wall_s)
        if record.scheduled_at > second:
            self.waiting.add(record.scheduled_at, record.task_id)
            return
        self.wall_s_seen = max(self.wall_s_seen, second)
        self.due.add(record.flow, record.task_id)
        self.due_order.add(record.scheduled_at, record.task_id)
        self.fresh[record.flow] = None

    def remove(self, record: TaskRecord) -> None:
        """Take a task out of the place its status says."""
        task_id = record.task_id
        if record.status is Status.PENDING:
            tick = self.deadlines.pop(task_id, None)
            if tick is not None:
                self.delays.discard(tick, task_id)
            elif self.due.discard(record.flow, task_id):
                self.due_order.discard(record.scheduled_at, task_id)
            else:
                self.waiting.discard(record.scheduled_at, task_id)
        elif record.status is Status.INFLIGHT:
            self.leases.discard(self.deadlines.pop(task_id), task_id)
        elif record.status is Status.COMPLETED:
            self.retained.discard(record.moment, task_id)
        elif record.status is Status.DEAD:
            self.dead.discard(record.moment, task_id)
        else:
            self.cancelled.discard(record.moment, task_id)

    def places(self, record: TaskRecord) -> list[Place]:
        """Every place a task is found in; the auditor expects exactly one."""
        task_id = record.task_id
        found = []
        if (record.scheduled_at, task_id) in self.waiting:
            found.append(Place.WAITING)
        tick = self.deadlines.get(task_id)
        if tick is not None:
            if (tick, task_id) in self.delays:
                found.append(Place.DELAYED)
            if (tick, task_id) in self.leases:
                found.append(Place.LEASED)
        queued = record.flow.due is not None and task_id in record.flow.due
        if queued and (record.scheduled_at, task_id) in self.due_order:
            found.append(Place.DUE)
        if (record.moment, task_id) in self.retained:
            found.append(Place.RETAINED)
        if (record.moment, task_id) in self.dead:
            found.append(Place.DEAD)
        if (record.moment, task_id) in self.cancelled:
            found.append(Place.CANCELLED)
        return found

    def purge(self, record: TaskRecord) -> None:
        """Take a task out of every place it can be found in; for the auditor."""
        task_id = record.task_id
        tick = self.deadlines.pop(task_id, None)
        if tick is not None:
            self.delays.discard(tick, task_id)
            self.leases.discard(tick, task_id)
        self.waiting.discard(record.scheduled_at, task_id)
        self.due.discard(record.flow, task_id)
        self.due_order.discard(record.scheduled_at, task_id)
        self.retained.discard(record.moment, task_id)
        self.dead.discard(record.moment, task_id)
        self.cancelled.discard(record.moment, task_id)

    def sizes(self) -> dict[Place, int]:
        """How many tasks stand in each place."""
        return {
            Place.WAITING: len(self.waiting),
            Place.DELAYED: len(self.delays),
            Place.DUE: len(self.due),
            Place.LEASED: len(self.leases),
            Place.RETAINED: len(self.retained),
            Place.DEAD: len(self.dead),
            Place.CANCELLED: len(self.cancelled),
        }

    def lateness(self, wall_s: int) -> tuple[int, int]:
        """How many due tasks are late, and for how many seconds the oldest has been due."""
        first = self.due_order.first_tick()
        if first is None:
            return 0, 0
        on_time = self.due_order.count_from(wall_s - LATE_S)
        return len(self.due_order) - on_time, max(0, wall_s - first)

    def may_be_early(self, now: Now) -> bool:
        """Whether a task in `due` may be early, since the wall clock has gone back."""
        return int(now.wall_s) < self.wall_s_seen

    def no_longer_due(self, now: Now, *, limit: int) -> list[tuple[int, str]]:
        """Up to ``limit`` due tasks that a wall clock set back makes early; the caller moves them.

        Costs one comparison unless the clock has gone back.
        """
        second = int(now.wall_s)
        if second >= self.wall_s_seen:
            self.wall_s_seen = second
            return []
        early = self.due_order.following(second + 1, "", limit)
        if len(early) < limit:
            self.wall_s_seen = second
        return early

    def wait_again(self, record: TaskRecord) -> None:
        """Move a due task back to `waiting`."""
        self.due.discard(record.flow, record.task_id)
        self.due_order.discard(record.scheduled_at, record.task_id)
        self.waiting.add(record.scheduled_at, record.task_id)

    def wake_after_s(self, now: Now, *, retention_s: int, dead_retention_s: int) -> float | None:
        """How long nothing will happen by itself, in seconds; None for ever, 0 if work waits."""
        spans: list[float] = []
        first = self.waiting.first_tick()
        if first is not None:
            spans.append(min(first - now.wall_s, WALL_CHECK_S))
        for heap in (self.delays, self.leases):
            first = heap.first_tick()
            if first is not None:
                spans.append(first / MONOTONIC_TICKS_PER_S - now.monotonic_s)
        for heap, kept_s in (
            (self.retained, retention_s),
            (self.cancelled, retention_s),
            (self.dead, dead_retention_s),
        ):
            first = heap.first_tick()
            if first is not None:
                overdue_in_s = first + kept_s + RETENTION_BATCH_S - now.age_s
                spans.append(min(overdue_in_s, RETENTION_BATCH_S))
        if self.may_be_early(now):
            return 0.0
        if self.due:
            spans.append(WALL_CHECK_S)  # it may jump back, and they must not be early then
        return max(0.0, min(spans)) if spans else None


def monotonic_tick(deadline_s: float) -> int:
    """The first tick that is not before ``deadline_s``."""
    return math.ceil(deadline_s * MONOTONIC_TICKS_PER_S)


def monotonic_ticks_passed(now: Now) -> int:
    """The last tick that has passed."""
    return math.floor(now.monotonic_s * MONOTONIC_TICKS_PER_S)
