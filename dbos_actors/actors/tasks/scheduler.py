"""The scheduler: keeps the actor that owns all tasks, and does what time brings.

It routes messages to the actor (`scheduler_turns`), which runs in a cell of its
own, and is its only clock: one task sleeps until something falls due, a lease
ends, a subscriber can be served, or a slice of background work is to be done.
Every piece of that is bounded, and other tasks run between two of them.

The cell is never idle for its supervisor: it leaves memory only to be loaded
again, when the store has refused a commit or has gone back in time.

Time stands still for leases and retry delays while Redis is away: nobody could
settle or extend anything, so our absence must not count against anyone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from time import process_time
from typing import Any, Final

import structlog
import trio
from trio_util import AsyncValue

from dbos_actors.actors.tasks.actor import (
    ADVANCED_AT_ONCE,
    BURIED_AT_ONCE,
    DEFAULT_LEASE_S,
    Barrier,
    Bury,
    Expire,
    ForgetTasks,
    Push,
    Release,
    Retire,
    SchedulerActor,
    SchedulerContext,
)
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.listings import TaskListings
from dbos_actors.actors.tasks.subscribers import DEFAULT_IN_FLIGHT, Subscriber, Subscribers
from dbos_actors.api.messages import ListDueTasksRequest, SubscribeTasksRequest
from dbos_actors.clock import AgeClock, Clock
from dbos_actors.domain.tasks import retirement
from dbos_actors.domain.tasks.audit import Audit
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.journal import JournalError
from dbos_actors.domain.tasks.limits import LEASE_S_MAX, TaskLimits
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.snapshot import ROWS_PER_CHUNK, snapshot_chunks
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import (
    InvalidFieldError,
    OverloadedError,
    UnavailableError,
)
from dbos_actors.runtime import ActorCell, Call, State, Supervisor, SupervisorLimits, Waiter
from dbos_actors.store import OwnCommit, Store, StoreState

logger = structlog.get_logger(__name__)

_ACTOR: Final = "the scheduler"

JOURNAL_ENTRIES_MIN: Final = 100_000
"""A snapshot is due when the journal is longer than this and than half the number of tasks: then
what is written for snapshots stays in proportion to what is written anyway, and a recovery reads
at most so many entries, each ten times as dear as a row of the snapshot."""

JOURNAL_BYTES_MIN: Final = 64 << 20
"""A snapshot is also due when the journal has more bytes than this and than the last snapshot: a
turn that gives 200 tasks back with long errors writes 120 KB. Redis holds at most as much again,
and what is written while the snapshot is taken."""

IN_FLIGHT_MAX: Final = 10_000
"""Of one subscriber: what it loses at once if it vanishes."""

_RETRY_S = 1.0
"""Before what Redis or a full queue did not allow is tried again."""

_SNAPSHOT_RETRY_S = 30.0
_SLICES_UNDER_WAY = 4
"""Slices of a snapshot that wait for their commit: a million tasks need 500 of them."""

_AUDIT_EVERY_S = 600.0
_AUDIT_PAUSE_S = 0.02
"""Between two steps of an audit, each 1 to 4 ms at a million tasks."""

_EARLY_TOLD_EVERY_S = 60.0

_PUSHES_AT_ONCE = 10
"""Turns before other tasks run: some 10 ms at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What an operator decides about tasks."""

    max_attempts: int = 5
    retention_s: float = 24 * 3600.0
    """How long completed tasks are kept; 0 is for ever."""

    dead_retention_s: float = 30 * 24 * 3600.0
    """How long dead tasks are kept; 0 is for ever."""

    tasks_max: int = 5_000_000
    completed_max: int = 1_000_000
    dead_max: int = 1_000_000
    """Tasks kept at most, in all and of these states."""

    due_lease_s: float = 0.0
    """For how long ListDueTasks leases what it lists; 0: it only reads."""

    events_max: int = 100_000
    message_bytes_max: int = 4 << 20
    journal_entries_min: int = JOURNAL_ENTRIES_MIN
    journal_bytes_min: int = JOURNAL_BYTES_MIN
    snapshot_rows: int = ROWS_PER_CHUNK
    """Rows in a slice of a snapshot, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """The ledger, and what has happened since the start."""

    scheduled: int
    pending: int
    inflight: int
    completed: int
    dead: int
    deleted: int
    due: int
    completed_kept: int
    imbalance: int
    """`scheduled - (pending + inflight + completed + dead)`; anything but 0 is a defect."""
    deliveries: int
    expired: int
    released: int
    taken_back: int
    """Of the deliveries, those that were ended before they were sent."""
    retired: int
    retired_dead: int
    retired_early: int
    """Of both, those that went before their age because there were too many."""
    damaged: int
    """Tasks that died because their record cannot be read."""
    lateness_ms_sum: int
    lateness_ms_max: int
    subscribers: int
    held: int
    """Tasks pushed and not settled."""
    sequence: int
    journal_entries: int
    journal_bytes: int
    snapshot_bytes: int
    snapshots: int
    snapshot_chunks: int
    snapshot_slice_ms_max: float
    recoveries: int
    recovery_s: float
    """What the last one took."""
    audits: int
    audit_misplaced: int
    audit_strangers: int
    audit_imbalances: int
    readable: bool
    """Whether tasks are served; all counts are 0 if not."""


class Scheduler:
    """Tasks: their actor, their clock, their subscribers."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        random: Random,
        settings: SchedulerSettings,
        size_of: Callable[[Any], int] = lambda _: 0,
    ) -> None:
        """``size_of`` gives the bytes that a waiting request holds."""
        self._store = store
        self._clock = clock
        self._age_clock = AgeClock(clock)
        self._settings = settings
        self._commands = TaskCommands(store.keys)
        self._context = SchedulerContext(
            store=store,
            keeper=self,
            now=self.now,
            random=random,
            limits=TaskLimits(
                tasks_max=settings.tasks_max,
                completed_max=settings.completed_max,
                retention_s=int(settings.retention_s) or _FOR_EVER_S,
                dead_max=settings.dead_max,
                dead_retention_s=int(settings.dead_retention_s) or _FOR_EVER_S,
                max_attempts=settings.max_attempts,
            ),
            due_lease_s=min(math.ceil(settings.due_lease_s), LEASE_S_MAX),
            events_max=settings.events_max,
            message_bytes_max=settings.message_bytes_max,
        )
        self._supervisor = Supervisor(
            make=self._make,
            log=store,
            clock=clock,
            limits=SupervisorLimits(max_resident=1, idle_s=math.inf),
            size_of=size_of,
        )
        self.listings = TaskListings(
            store=store,
            commands=self._commands,
            deliver=self.deliver,
            damaged=self.damaged,
            loaded_book=self._loaded_book,
            now=self.now,
            message_bytes_max=settings.message_bytes_max,
            leases=settings.due_lease_s > 0,
        )
        # The incarnation whose book is complete.
        self._actor: SchedulerActor | None = None
        self._subscribers = Subscribers(self._wake)
        # Nothing is pushed before: a store that has just refused would refuse that too.
        self._push_after_s = 0.0
        # What every call is told while the tasks in the store cannot be read.
        self._refusal = ""
        self._readable = AsyncValue(True)
        # Leases of vanished subscribers that could not be ended yet.
        self._releases: list[Release] = []
        # Those that wait for their commit.
        self._releasing = 0
        self._all_released = trio.lowlevel.ParkingLot()
        # Tasks whose record cannot be read, and that live.
        self._damaged: list[TaskRecord] = []
        self._woken = trio.Event()
        # When the clock's task will look again by itself, on its monotonic clock.
        self._planned_s = math.inf
        # How long Redis has been away in all, and since when it is now.
        self._away_s = 0.0
        self._away_since_s: float | None = None
        # The last write of a snapshot; a recovery waits for it, lest it reads in between.
        self._writing: OwnCommit | None = None
        self._generation = 0
        self._snapshot_sequence = 0
        self._snapshot_bytes = 0
        self._journal_bytes = 0  # after the snapshot
        self._snapshots = 0
        self._snapshot_chunks = 0
        self._snapshot_slice_s = 0.0
        self._recoveries = 0
        self._recovery_began_s = 0.0
        self._recovery_began_cpu_s = 0.0
        self._recovery_s = 0.0
        self._audits = 0
        self._misplaced = 0
        self._strangers = 0
        self._imbalances = 0

    # ---------------------------------------------------------------- messages

    def deliver(self, call: Call) -> None:
        """Hand the actor a message: a request of the contract, or one of `scheduler_turns`."""
        if self._refusal:
            call.fail(UnavailableError(self._refusal))
        else:
            self._supervisor.deliver(_ACTOR, call)

    @property
    def readable(self) -> AsyncValue[bool]:
        """Whether the tasks in the store can be read; if not, every call is refused."""
        return self._readable

    def require_readable(self) -> None:
        """Raise `UnavailableError` if the tasks in the store cannot be read."""
        if self._refusal:
            raise UnavailableError(self._refusal)

    async def forget_agent(self, agent_id: str) -> None:
        """Delete an agent's tasks, except completed ones, in bounded steps.

        Raises `UnavailableError` or `OverloadedError`; then some may be left.
        """
        cursor: tuple[int, str] | None = (0, "")
        while cursor is not None:
            waiter = Waiter(ForgetTasks(agent_id, cursor))
            self.deliver(waiter)
            cursor = await waiter.wait()

    def subscribe(
        self,
        start: SubscribeTasksRequest.Start,
        received: Callable[[bytes, dict[str, str]], None],
    ) -> Subscriber:
        """Have due tasks pushed; ``received`` gets serialised responses and their leases.

        Call `unsubscribe` in the end. Raises `InvalidFieldError`, `UnavailableError`.
        """
        self.require_readable()
        lease_s = start.lease_seconds or DEFAULT_LEASE_S
        if not 1 <= lease_s <= LEASE_S_MAX:
            raise InvalidFieldError("start.lease_seconds", f"must be between 0 and {LEASE_S_MAX}")
        max_in_flight = start.max_in_flight or DEFAULT_IN_FLIGHT
        if not 1 <= max_in_flight <= IN_FLIGHT_MAX:
            raise InvalidFieldError("start.max_in_flight", f"must be between 0 and {IN_FLIGHT_MAX}")
        return Subscriber(
            self._subscribers,
            received,
            agent_id=start.agent_id,
            module_name=start.module_name,
            lease_s=lease_s,
            max_in_flight=max_in_flight,
            worker_id=start.worker_id,
        )

    def unsubscribe(self, subscriber: Subscriber, *, keep_leases: bool = False) -> None:
        """Push nothing more, and return what the subscriber holds at once.

        What was not handed over to it counts as never delivered. ``keep_leases`` leaves the rest
        to its worker, who is alive and may settle it elsewhere.
        """
        subscriber.close()
        held = self._subscribers.forget(subscriber)
        unsent = {
            task_id: token
            for task_id, token in subscriber.unsent.items()
            if held.get(task_id) == token
        }
        for task_id in unsent:
            del held[task_id]
        if unsent:
            self._release(Release(unsent, "it was not sent", was_sent=False))
        if held and not keep_leases:
            reason = f"{subscriber.worker_id or 'a worker'} vanished"
            self._release(Release(held, reason, was_sent=True))

    def _release(self, release: Release) -> None:
        self._releasing += 1
        self.deliver(_ReleaseCall(self, release))

    def released(self) -> None:
        """A release is committed."""
        self._releasing -= 1
        if not self._releasing:
            self._all_released.unpark_all()

    def release_failed(self, release: Release) -> None:
        """Try again later."""
        self._releasing -= 1
        self._releases.append(release)

    def push_refused(self) -> None:
        """The store or a full queue did not allow a push: none is tried again at once."""
        self._push_after_s = self._clock.monotonic_s() + _RETRY_S

    async def wait_released(self) -> None:
        """Wait until the leases of all subscribers that have gone are returned, and committed."""
        while self._releasing or self._releases:
            await self._all_released.park()

    # ----------------------------------------------------------------- listing

    def is_brief(self, request: ListDueTasksRequest) -> bool:
        """Whether ListDueTasks is to be delivered to the actor, not to `listings`."""
        return self._actor is not None and self.listings.is_brief(request, self._actor.book)

    async def _loaded_book(self) -> TaskBook:
        if self._actor is None:
            waiter = Waiter(Barrier())
            self.deliver(waiter)
            await waiter.wait()
        actor = self._actor
        if actor is None:
            raise UnavailableError("the scheduler is starting again")
        return actor.book

    # ------------------------------------------------- what the actor tells us

    def _make(self, _: str, cell: ActorCell) -> SchedulerActor:
        self._recovery_began_s = self._clock.monotonic_s()
        self._recovery_began_cpu_s = process_time()
        return SchedulerActor(cell, self._context)

    async def wait_written(self) -> None:
        writing = self._writing
        if writing is not None:
            with suppress(UnavailableError):
                await writing.wait()

    def loaded(self, actor: SchedulerActor) -> None:
        self._actor = actor
        self._generation = actor.recovered.generation
        self._snapshot_sequence = actor.recovered.sequence
        self._snapshot_bytes = actor.recovered.snapshot_bytes
        self._journal_bytes = actor.recovered.journal_bytes
        self._recoveries += 1
        self._recovery_s = self._clock.monotonic_s() - self._recovery_began_s
        self._subscribers.reloaded(actor.book)
        logger.info(
            "tasks_recovered",
            tasks=len(actor.book),
            journal_entries=actor.book.sequence - self._snapshot_sequence,
            seconds=round(self._recovery_s, 3),
            cpu_seconds=round(process_time() - self._recovery_began_cpu_s, 3),
        )
        self._wake()

    def lease_answered(self) -> None:
        self._wake()

    def damaged(self, records: Sequence[TaskRecord]) -> None:
        # From within a commit's or a read's end, where nothing may be submitted.
        self._damaged.extend(records)
        self._wake()

    def unloaded(self, actor: SchedulerActor) -> None:
        if self._actor is actor:
            self._actor = None
        self._push_after_s = self._clock.monotonic_s() + _RETRY_S
        self._wake()

    def unreadable(self, error: JournalError) -> UnavailableError:
        self._refusal = (
            f"tasks are not served, because what Redis holds of them is damaged: {error}. "
            "Stop the server and run 'dbos-actors repair'"
        )
        self._readable.value = False
        logger.error("tasks_unreadable", error=str(error), remedy="dbos-actors repair")
        self._wake()
        return UnavailableError(self._refusal)

    def applied(self, change: Change) -> None:
        self._journal_bytes += change.size_bytes
        counts = self._context.counts
        for outcome in change.outcomes:
            if outcome.status is not Status.GONE:
                counts.lateness_ms_sum += outcome.lateness_ms
                counts.lateness_ms_max = max(counts.lateness_ms_max, outcome.lateness_ms)
        self._subscribers.applied(change)
        actor = self._actor
        if actor is None:
            return
        book = actor.book
        if book.index.fresh:
            self._subscribers.fell_due(book.take_fresh())
        if self._planned_s > change.now.monotonic_s:
            after_s = book.wake_after_s(change.now)
            if after_s is not None and change.now.monotonic_s + after_s < self._planned_s:
                self._wake()

    # ------------------------------------------------------------------- time

    def now(self) -> Now:
        """Both clocks, the monotonic one without the time that Redis was away."""
        monotonic_s = self._clock.monotonic_s()
        if self._away_since_s is not None:
            monotonic_s = self._away_since_s
        unjumped_s = self._age_clock.unjumped_s()
        return Now(self._clock.wall_s(), monotonic_s - self._away_s, unjumped_s)

    async def _watch_store(self) -> None:
        # From here on without a pause: the task is the first to hear of each change.
        async for state, _ in self._store.state.transitions():
            now_s = self._clock.monotonic_s()
            if state is not StoreState.CONNECTED:
                if self._away_since_s is None:
                    self._away_since_s = now_s
            elif self._away_since_s is not None:
                self._away_s += now_s - self._away_since_s
                self._away_since_s = None
            self._wake()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover, then do what time brings until cancelled.

        Started once recovered, or once it is known that the tasks cannot be read.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._supervisor.run)
            nursery.start_soon(self._watch_store)
            await self._recover()
            task_status.started()
            nursery.start_soon(self._take_snapshots)
            nursery.start_soon(self._audit)
            nursery.start_soon(self._tell_of_early_retirement)
            while True:
                pause_s = await self._step()
                if pause_s:
                    await self._sleep(pause_s)
                else:
                    await trio.lowlevel.checkpoint()

    def reload(self) -> None:
        """The store is not where we left it: start again from it."""
        self._refusal = ""
        self._readable.value = True
        self._wake()
        self._supervisor.reload_all()

    async def _recover(self) -> None:
        """Have the actor loaded, if it can be."""
        while self._actor is None and not self._refusal:
            waiter = Waiter(Barrier())
            self.deliver(waiter)
            try:
                await waiter.wait()
            except (UnavailableError, OverloadedError):
                if not self._refusal:
                    await trio.sleep(_RETRY_S)

    async def _step(self) -> float:
        """Do a little of what is to be done; how long to sleep then, in seconds."""
        actor = self._actor
        if actor is None or actor.cell.state is not State.READY:
            self._woken = trio.Event()
            if self._supervisor.get(_ACTOR) is None:
                self.deliver(_Quiet(Barrier()))
            return _RETRY_S
        if self._store.state.value is not StoreState.CONNECTED:
            # Nothing could be told to anybody; what falls due meanwhile does not run away.
            self._woken = trio.Event()
            return _RETRY_S
        if self._releases:
            releases, self._releases = self._releases, []
            for release in releases:
                self._release(release)
        if self._damaged:
            damaged, self._damaged = self._damaged[:BURIED_AT_ONCE], self._damaged[BURIED_AT_ONCE:]
            self.deliver(_Quiet(Bury(damaged)))
        self._woken = trio.Event()
        actor.let_leases_on()
        book = actor.book
        now = self.now()
        is_busy = book.advance(now, limit=ADVANCED_AT_ONCE) == ADVANCED_AT_ONCE
        if book.index.fresh:
            self._subscribers.fell_due(book.take_fresh())
        may_push = self._clock.monotonic_s() >= self._push_after_s
        for _ in range(_PUSHES_AT_ONCE):
            push = self._subscribers.next_push(book) if may_push else None
            if push is None:
                break
            self.deliver(_PushCall(self, *push))
            if self._actor is not actor or actor.cell.state is not State.READY:
                return 0.0
        else:
            is_busy = True
        if book.has_expired(now):
            self.deliver(_Quiet(Expire()))
            is_busy = True
        if retirement.is_retirement_due(book, now):
            self.deliver(_Quiet(Retire()))
            is_busy = True
        if is_busy or self._damaged:
            return 0.0
        after_s = book.wake_after_s(now)
        if after_s is None or self._releases or not may_push:
            return _RETRY_S
        return max(after_s, _NAP_S)

    async def _sleep(self, pause_s: float) -> None:
        now_s = self._clock.monotonic_s()
        self._planned_s = self.now().monotonic_s + pause_s
        with trio.CancelScope(deadline=now_s + pause_s):
            await self._woken.wait()
        self._planned_s = -math.inf

    def _wake(self) -> None:
        self._woken.set()

    # --------------------------------------------------------------- snapshots

    async def _take_snapshots(self) -> None:
        while True:
            await trio.sleep(_RETRY_S)
            actor = self._actor
            if actor is None or self._store.state.value is not StoreState.CONNECTED:
                continue
            if not self._is_snapshot_due(actor.book):
                continue
            try:
                await self.take_snapshot()
            except (UnavailableError, OverloadedError) as error:
                logger.warning("snapshot_failed", error=str(error))
                await trio.sleep(_SNAPSHOT_RETRY_S)

    def _is_snapshot_due(self, book: TaskBook) -> bool:
        settings = self._settings
        entries_max = max(settings.journal_entries_min, len(book) // 2)
        bytes_max = max(settings.journal_bytes_min, self._snapshot_bytes)
        return self._journal_entries(book) > entries_max or self._journal_bytes > bytes_max

    def _journal_entries(self, book: TaskBook) -> int:
        return book.sequence - self._snapshot_sequence

    async def take_snapshot(self) -> None:
        """Write the book beside the snapshot in force, slice by slice, then switch.

        One at a time. Raises `UnavailableError` or `OverloadedError`; then the old one stays
        in force.
        """
        actor = self._actor
        if actor is None:
            raise UnavailableError("the scheduler is starting again")
        book = actor.book
        generation = self._generation + 1
        sequence, journal_bytes = book.sequence, self._journal_bytes
        size_bytes = 0
        commands = self._commands
        chunks = snapshot_chunks(book, self._settings.snapshot_rows)
        is_first = True
        written: deque[OwnCommit] = deque()
        while True:
            # One step without a pause, so that a chunk follows in the store what it contains.
            began_s = self._clock.monotonic_s()
            self._require(actor)
            chunk = next(chunks, None)
            if chunk is None:
                break
            size_bytes += len(chunk)
            written.append(self._submit(commands.add_chunk(generation, chunk, is_first=is_first)))
            self._snapshot_slice_s = max(
                self._snapshot_slice_s, self._clock.monotonic_s() - began_s
            )
            self._snapshot_chunks += 1
            is_first = False
            await trio.lowlevel.checkpoint()
            if len(written) == _SLICES_UNDER_WAY:
                await written.popleft().wait()
        for writing in written:
            await writing.wait()
        # All chunks are committed and the actor is still the same: so is all they contain.
        self._require(actor)
        await self._submit(commands.switch(generation, sequence)).wait()
        self._require(actor)
        self._generation = generation
        self._snapshot_sequence = sequence
        self._snapshot_bytes = size_bytes
        self._journal_bytes -= journal_bytes
        self._snapshots += 1
        logger.info("snapshot_taken", tasks=len(book), sequence=sequence)

    def _require(self, actor: SchedulerActor) -> None:
        if self._actor is not actor or actor.cell.state is not State.READY:
            raise UnavailableError("the scheduler has started again meanwhile")

    def _submit(self, commands: Sequence[bytes]) -> OwnCommit:
        """Begin a commit of the snapshot's.

        It is no commit of the actor's: when Redis has no room for it, the book is still right.
        What becomes of it has to be known, so it is waited for while Redis is away.
        """
        self._writing = self._store.begin_commit(
            *commands, name="the tasks' snapshot", gives_up=False
        )
        return self._writing

    # ------------------------------------------------------------------ audits

    async def _audit(self) -> None:
        while True:
            await trio.sleep(_AUDIT_EVERY_S)
            await self.audit()

    async def audit(self) -> None:
        """Go through the whole book once and report what does not fit."""
        actor = self._actor
        if actor is None:
            return
        audit = Audit(actor.book)
        while True:
            if self._actor is not actor or not audit.step(self.now()):
                break
            await trio.sleep(_AUDIT_PAUSE_S)
        findings = audit.findings
        self._audits += 1
        self._misplaced += findings.misplaced
        self._strangers += findings.strangers
        self._imbalances += bool(findings.imbalance)
        if not findings.clean:
            logger.error(
                "tasks_misplaced",
                misplaced=findings.misplaced,
                strangers=findings.strangers,
                imbalance=findings.imbalance,
                examples=findings.examples,
            )

    async def _tell_of_early_retirement(self) -> None:
        """Say once a minute that tasks are dropped before their age, while they are."""
        told = 0
        while True:
            await trio.sleep(_EARLY_TOLD_EVERY_S)
            early = self._context.counts.retired_early
            if early > told:
                limits = self._context.limits
                logger.warning(
                    "tasks_retired_early",
                    count=early - told,
                    completed_max=limits.completed_max,
                    dead_max=limits.dead_max,
                )
                told = early

    # -------------------------------------------------------------- statistics

    def statistics(self) -> SchedulerStatistics:
        """The ledger now, and counts since the start; all 0 while the book is read back."""
        book = TaskBook() if self._actor is None else self._actor.book
        counters = book.counters()
        counts = self._context.counts
        return SchedulerStatistics(
            **counters._asdict(),
            imbalance=counters.scheduled
            - (counters.pending + counters.inflight + counters.completed + counters.dead),
            deliveries=counts.deliveries,
            expired=counts.expired,
            released=counts.released,
            taken_back=counts.taken_back,
            retired=counts.retired,
            retired_dead=counts.retired_dead,
            retired_early=counts.retired_early,
            damaged=counts.damaged,
            lateness_ms_sum=counts.lateness_ms_sum,
            lateness_ms_max=counts.lateness_ms_max,
            subscribers=self._subscribers.subscribers,
            held=len(self._subscribers.holders),
            sequence=book.sequence,
            journal_entries=self._journal_entries(book),
            journal_bytes=self._journal_bytes,
            snapshot_bytes=self._snapshot_bytes,
            snapshots=self._snapshots,
            snapshot_chunks=self._snapshot_chunks,
            snapshot_slice_ms_max=self._snapshot_slice_s * 1000,
            recoveries=self._recoveries,
            recovery_s=self._recovery_s,
            audits=self._audits,
            audit_misplaced=self._misplaced,
            audit_strangers=self._strangers,
            audit_imbalances=self._imbalances,
            readable=self._readable.value,
        )


_FOR_EVER_S = 100 * 365 * 86400

_NAP_S = 0.001
"""The shortest sleep: what is due within it is served together."""


class _Quiet:
    """A message of our own whose answer nobody awaits: what fails is tried again by the clock."""

    __slots__ = ("answered", "deadline", "request")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.deadline: float | None = None
        self.answered = False

    def reply(self, message: Any) -> None:
        """Nobody waits."""

    def fail(self, error: Exception) -> None:
        """Nobody waits."""


class _PushCall(_Quiet):
    """Asks for tasks for a subscriber."""

    __slots__ = ("_is_refused", "_scheduler", "_subscriber")

    def __init__(self, scheduler: Scheduler, subscriber: Subscriber, limit: int) -> None:
        super().__init__(Push(subscriber, limit))
        self._scheduler = scheduler
        self._subscriber = subscriber
        self._is_refused = False

    def reply(self, message: Any) -> None:
        push = self.request
        if not push.leases:
            return
        if self._is_refused:
            # Committed after all, when that was no more to be expected.
            self._subscriber.hold_again(push)
        self._subscriber.receive(push, message)

    def fail(self, error: Exception) -> None:  # noqa: ARG002
        self._scheduler.push_refused()
        if self.request.leases and not self._is_refused:
            self._is_refused = True
            self._subscriber.refused(self.request)


class _ReleaseCall(_Quiet):
    """Returns tasks of a subscriber that has gone."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler, release: Release) -> None:
        super().__init__(release)
        self._scheduler = scheduler

    def reply(self, message: Any) -> None:  # noqa: ARG002
        if not self.answered:
            self.answered = True
            self._scheduler.released()

    def fail(self, error: Exception) -> None:  # noqa: ARG002
        if not self.answered:
            self.answered = True
            self._scheduler.release_failed(self.request)
