"""The scheduler: its parts, and the clock that makes the actor do what time brings.

The scheduler routes messages to its actor (`host`) and is the actor's only clock. One task sleeps
until something falls due, a lease ends, a subscriber can be served, or a slice of background work
is to be done. Every piece of that is bounded, and other tasks run between two pieces.

Calls go one way. The scheduler calls the host, the subscribers and the actor; the actor writes into
its context (`context`), which the scheduler reads; nothing calls the scheduler but the service.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, Final

import trio
from trio_util import AsyncValue

from dbos_actors.actors.listings import Room
from dbos_actors.actors.tasks.actor import ADVANCED_AT_ONCE, SchedulerActor
from dbos_actors.actors.tasks.alarm import Alarm
from dbos_actors.actors.tasks.audits import Audits
from dbos_actors.actors.tasks.clocks import TaskClock
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.context import SchedulerContext
from dbos_actors.actors.tasks.host import ActorHost
from dbos_actors.actors.tasks.listings import TaskListings
from dbos_actors.actors.tasks.messages import (
    Bury,
    Expire,
    ForgetTasks,
    OwnCall,
    Release,
    Requeue,
    Retire,
)
from dbos_actors.actors.tasks.pushing import PushCall, Releases
from dbos_actors.actors.tasks.responses import DEFAULT_LEASE_S
from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.actors.tasks.snapshots import Snapshots
from dbos_actors.actors.tasks.statistics import SchedulerStatistics
from dbos_actors.actors.tasks.subscribers import DEFAULT_IN_FLIGHT, Subscriber, Subscribers
from dbos_actors.api.messages import (
    GetTaskRequest,
    GetTaskResponse,
    ListDueTasksRequest,
    RequeueTaskRequest,
    SubscribeTasksRequest,
)
from dbos_actors.clock import Clock
from dbos_actors.domain.tasks import retirement
from dbos_actors.domain.tasks.audit import imbalance
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.limits import LEASE_S_MAX
from dbos_actors.domain.tasks.states import UnknownTaskError
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import InvalidFieldError
from dbos_actors.runtime import Call, Waiter
from dbos_actors.store import Store, StoreState

IN_FLIGHT_MAX: Final = 10_000
"""Of one subscriber: what it loses at once if it vanishes."""

BURIED_AT_ONCE: Final = 200
"""Damaged tasks that die in one turn, each with an event: 5 ms."""

_RETRY_S = 1.0
"""Before what Redis or a full queue did not allow is tried again."""

_PUSHES_AT_ONCE = 10
"""Turns before other tasks run: some 10 ms at most."""

_NAP_S = 0.001
"""The shortest sleep: what is due within it is served together."""


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
        self._alarm = Alarm()
        self._clock = TaskClock(clock)
        self._subscribers = Subscribers(self._alarm, clock)
        self._context = SchedulerContext(
            store=store,
            clock=self._clock,
            alarm=self._alarm,
            random=random,
            limits=settings.limits(),
            due_lease_s=min(math.ceil(settings.due_lease_s), LEASE_S_MAX),
            events_max=settings.events_max,
            message_bytes_max=settings.message_bytes_max,
            subscribers=self._subscribers,
        )
        self._host = ActorHost(self._context, clock=clock, size_of=size_of)
        self._releases = Releases(self._host.deliver, self._alarm)
        self._snapshots = Snapshots(self._host, self._context, settings)
        self._audits = Audits(self._host, self._context)
        self.listings = TaskListings(
            store=store,
            commands=TaskCommands(store.keys),
            deliver=self._host.deliver,
            damaged=self._context.found_damaged,
            loaded_book=self._host.loaded_book,
            now=self._clock.now,
            message_bytes_max=settings.message_bytes_max,
            leases=settings.due_lease_s > 0,
        )
        self.deliver: Callable[[Call], None] = self._host.deliver
        """Hand the actor a message: a request of the contract, or one of `messages`."""

    # ---------------------------------------------------------------- messages

    @property
    def actor(self) -> SchedulerActor | None:
        """The incarnation in force; None while the book is read back."""
        return self._host.actor

    @property
    def readable(self) -> AsyncValue[bool]:
        """Whether the tasks in the store can be read; if not, every call is refused."""
        return self._context.readability.value

    @property
    def refusal(self) -> str:
        """Why the tasks are not served; empty if they are."""
        return self._context.readability.refusal

    def require_readable(self) -> None:
        """Raise `UnavailableError` if the tasks in the store cannot be read."""
        self._context.readability.require()

    async def forget_agent(self, agent_id: str) -> None:
        """Delete an agent's tasks, except completed ones, in bounded steps.

        Raises `UnavailableError` or `OverloadedError`; then some may be left.
        """
        cursor: tuple[int, str] | None = (0, "")
        while cursor is not None:
            waiter = Waiter(ForgetTasks(agent_id, cursor))
            self.deliver(waiter)
            cursor = await waiter.wait()

    async def requeue(self, request: RequeueTaskRequest, room: Room) -> bytes:
        """Make a dead or cancelled task pending again: read it, then write it with its new time.

        Returns the serialised response. Raises `RefusedError`, `UnavailableError` or
        `OverloadedError`. If cancelled, the task may be requeued or not.
        """
        await room.reserve(self._context.message_bytes_max)
        waiter = Waiter(GetTaskRequest(task_id=request.task_id))
        self.deliver(waiter)
        answer = await waiter.wait()
        if isinstance(answer, GetTaskResponse):
            raise UnknownTaskError(request.task_id)
        found = GetTaskResponse.FromString(answer)
        waiter = Waiter(Requeue(found.task, request.scheduled_at))
        self.deliver(waiter)
        response: bytes = await waiter.wait()
        return response

    def is_brief(self, request: ListDueTasksRequest) -> bool:
        """Whether ListDueTasks is to be delivered to the actor, not to `listings`."""
        actor = self._host.actor
        return actor is not None and self.listings.is_brief(request, actor.book)

    # ------------------------------------------------------------- subscribers

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
        return self._subscribers.join(
            received,
            agent_id=start.agent_id,
            module_name=start.module_name,
            lease_s=lease_s,
            max_in_flight=max_in_flight,
            worker_id=start.worker_id,
        )

    def stop_pushing(self, subscriber: Subscriber) -> None:
        """Push nothing more to a subscriber; it keeps what it holds until `unsubscribe`."""
        self._subscribers.close(subscriber)

    def unsubscribe(self, subscriber: Subscriber, *, keep_leases: bool = False) -> None:
        """Push nothing more, and return soon what the subscriber holds.

        What was not handed over to it counts as never delivered. ``keep_leases`` leaves the rest
        to its worker, who is alive and may settle it elsewhere.
        """
        self._subscribers.close(subscriber)
        held = self._subscribers.forget(subscriber)
        unsent = {
            task_id: token
            for task_id, token in subscriber.unsent.items()
            if held.get(task_id) == token
        }
        for task_id in unsent:
            del held[task_id]
        if unsent:
            self._releases.add(Release(unsent, "it was not sent", was_sent=False))
        if held and not keep_leases:
            reason = f"{subscriber.worker_id or 'a worker'} vanished"
            self._releases.add(Release(held, reason, was_sent=True))

    async def wait_released(self) -> None:
        """Wait until the leases of all subscribers that have gone are returned, and committed."""
        await self._releases.wait()

    # ------------------------------------------------------------------- time

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover, then do what time brings until cancelled.

        Started once recovered, or once it is known that the tasks cannot be read.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._host.run)
            nursery.start_soon(self._watch_store)
            await self._host.load()
            task_status.started()
            nursery.start_soon(self._snapshots.run)
            nursery.start_soon(self._audits.run)
            nursery.start_soon(self._audits.warn_of_early_retirement)
            while True:
                pause_s = self._step()
                if pause_s:
                    until_s = self._clock.now().monotonic_s + pause_s
                    await self._alarm.sleep(pause_s, until_s=until_s)
                else:
                    await trio.lowlevel.checkpoint()

    def reload(self) -> None:
        """The store is not where we left it: start again from it."""
        self._host.reload()

    async def take_snapshot(self) -> None:
        """Take a snapshot now. Raises `UnavailableError` or `OverloadedError`."""
        await self._snapshots.take()

    async def audit(self) -> None:
        """Audit the whole book now."""
        await self._audits.audit()

    async def _watch_store(self) -> None:
        # From here on without a pause: the task is the first to hear of each change.
        async for state, _ in self._store.state.transitions():
            if state is StoreState.CONNECTED:
                self._clock.resume()
            else:
                self._clock.stop()
            self._alarm.ring()

    def _step(self) -> float:
        """Do a little of what is to be done; how long to sleep then, in seconds."""
        actor = self._host.actor
        if actor is None or not actor.is_ready:
            self._alarm.reset()
            self._host.start_loading()
            return _RETRY_S
        if self._store.state.value is not StoreState.CONNECTED:
            # Nothing could be told to anybody; what falls due meanwhile does not run away.
            self._alarm.reset()
            return _RETRY_S
        self._do_postponed()
        self._alarm.reset()
        actor.let_leases_on()
        book, now = actor.book, self._clock.now()
        is_busy = book.advance(now, limit=ADVANCED_AT_ONCE) == ADVANCED_AT_ONCE
        if book.index.fresh:
            self._subscribers.fell_due(book.take_fresh())
        is_paused = self._subscribers.is_paused
        if not is_paused:
            is_busy = self._push(actor) or is_busy
            if not actor.is_ready:
                return 0.0
        if book.has_expired(now):
            self.deliver(OwnCall(Expire()))
            is_busy = True
        if retirement.is_retirement_due(book, now):
            self.deliver(OwnCall(Retire()))
            is_busy = True
        if is_busy or self._context.damaged or self._releases.are_waiting:
            return 0.0
        after_s = book.wake_after_s(now)
        if after_s is None or self._releases.is_refused or is_paused:
            return _RETRY_S
        return max(after_s, _NAP_S)

    def _do_postponed(self) -> None:
        """Return leases that could not be returned before, and have damaged tasks die."""
        if self._releases.is_refused:
            self._releases.retry()
        self._releases.step()
        damaged = self._context.damaged
        if damaged:
            records = damaged[:BURIED_AT_ONCE]
            del damaged[:BURIED_AT_ONCE]
            self.deliver(OwnCall(Bury(records)))

    def _push(self, actor: SchedulerActor) -> bool:
        """Lease due tasks to subscribers with room; whether there may be more to push."""
        for _ in range(_PUSHES_AT_ONCE):
            push = self._subscribers.next_push(actor.book)
            if push is None:
                return False
            self.deliver(PushCall(self._subscribers, *push))
            if not actor.is_ready:
                return False
        return True

    # -------------------------------------------------------------- statistics

    def now(self) -> Now:
        """Both clocks, the monotonic one without the time that Redis was away."""
        return self._clock.now()

    def statistics(self) -> SchedulerStatistics:
        """The ledger now, and counts since the start; all 0 while the book is read back."""
        actor = self._host.actor
        book = TaskBook() if actor is None else actor.book
        counters = book.counters(self._clock.now().wall_s)
        counts, stored = self._context.counts, self._context.stored
        return SchedulerStatistics(
            **counters._asdict(),
            imbalance=imbalance(counters),
            deliveries=counts.deliveries,
            expired=counts.expired,
            released=counts.released,
            taken_back=counts.taken_back,
            retired=counts.retired,
            retired_cancelled=counts.retired_cancelled,
            retired_dead=counts.retired_dead,
            retired_early=counts.retired_early,
            requeued=counts.requeued,
            damaged=counts.damaged,
            lateness_ms_sum=counts.lateness_ms_sum,
            lateness_ms_max=counts.lateness_ms_max,
            subscribers=self._subscribers.count,
            held=len(self._subscribers.holders),
            sequence=book.sequence,
            journal_entries=self._snapshots.journal_entries(book),
            journal_bytes=stored.journal_bytes,
            snapshot_bytes=stored.snapshot_bytes,
            snapshots=self._snapshots.taken,
            snapshot_chunks=self._snapshots.chunks,
            snapshot_slice_ms_max=self._snapshots.slice_s_max * 1000,
            recoveries=counts.recoveries,
            recovery_s=counts.recovery_s,
            rewinds=counts.rewinds,
            audits=self._audits.audits,
            audit_misplaced=self._audits.misplaced,
            audit_strangers=self._audits.strangers,
            audit_imbalances=self._audits.imbalances,
            readable=self.readable.value,
        )
