"""The scheduler's actor: a task book bound to the store, as turns.

The actor runs in a cell of the actor runtime, which applies its turns. A turn is one `Change`:
sealed into a journal entry, submitted, and applied to the book, in one synchronous step. The book
is then ahead of the store by what is submitted and not yet committed. Every answer waits for its
own commit, and a read waits for all commits before it, so nobody is shown what a crash could undo.
When the store refuses a commit, the incarnation ends. The next one takes its book over and undoes
what was refused (`rewind`), or reads everything back where that is not enough.

Payloads are not resident. The commit that leases tasks also reads their payloads.

The actor calls nobody but the store and what its context holds. It never calls the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from time import process_time
from typing import Any, Final

from dbos_actors.actors.tasks import interventions, settlements
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.context import SchedulerContext
from dbos_actors.actors.tasks.messages import (
    Barrier,
    Bury,
    ForgetTasks,
    GetAgain,
    LeaseListed,
    Push,
    Retire,
)
from dbos_actors.actors.tasks.reads import TaskReads
from dbos_actors.actors.tasks.recovery import Recovered, recover
from dbos_actors.actors.tasks.responses import (
    DEFAULT_LEASE_S,
    DEFAULT_LEASES,
    SCHEDULED,
    due_limit,
    fitting_tasks,
    listed,
    room_for_tasks,
)
from dbos_actors.actors.tasks.rewind import undo
from dbos_actors.actors.tasks.turn_maker import CHANGE, TurnMaker
from dbos_actors.api.messages import (
    GetTaskRequest,
    GetTaskResponse,
    LeaseTasksRequest,
    ListDueTasksRequest,
    ScheduleTaskRequest,
)
from dbos_actors.domain.tasks import deliveries, leasing, retirement, scheduling
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.claims import identity_of
from dbos_actors.domain.tasks.journal import JournalError
from dbos_actors.domain.tasks.limits import LEASE_LIMIT_MAX
from dbos_actors.domain.tasks.record import TOKEN_BITS, TaskRecord, payload_digest
from dbos_actors.domain.tasks.scan import oldest_tasks
from dbos_actors.domain.tasks.states import UnknownTaskError
from dbos_actors.errors import UnavailableError
from dbos_actors.loggers import get_logger
from dbos_actors.runtime import ActorCell, State, Turn

logger = get_logger(__name__)

ADVANCED_AT_ONCE: Final = 500
"""Tasks that fall due in one step: 3 ms."""

RETIRED_AT_ONCE: Final = 1_000
"""Completed tasks dropped in one turn; bounded by what one freeing command may name."""

_READING_BYTES_MAX: Final = 8 << 20
"""Payloads that commits under way read for leases and pushes: two responses of the default limit.
A commit that reads more would hold up everyone else in it, and Redis, by 0.5 ms for each MiB.
The next leases wait, in their order, until some have been answered; other messages do not."""

_FORGOTTEN_AT_ONCE = 500
"""Tasks of a deleted agent looked at in one turn."""

_DROPPED_BY_COMMAND = 1_000

_UNREADABLE: Final = "what Redis holds of it cannot be read"

# Parts of the state, beside `CHANGE`.
_PUSHED: Final = 1
_READING: Final = 2


class SchedulerActor:
    """One incarnation of the scheduler; a `runtime.Behaviour`."""

    __slots__ = (
        "_book",
        "_cell",
        "_commands",
        "_context",
        "_is_loaded",
        "_leases_wait",
        "_reading_bytes",
        "_reads",
        "_turns",
    )

    def __init__(self, cell: ActorCell, context: SchedulerContext) -> None:
        self._cell = cell
        self._context = context
        self._commands = TaskCommands(context.store.keys)
        self._reads = TaskReads(
            context.store, self._commands, deliver=cell.deliver, damaged=context.found_damaged
        )
        self._take(TaskBook(context.limits))
        self._is_loaded = False
        # Of payloads that commits under way read; and whom to tell when it is less again.
        self._reading_bytes = 0
        self._leases_wait: Callable[[UnavailableError | None], None] | None = None

    @property
    def book(self) -> TaskBook:
        return self._book

    @property
    def is_loaded(self) -> bool:
        """Whether its book is complete and still the one in force."""
        return self._is_loaded

    @property
    def is_ready(self) -> bool:
        """Whether a message that is delivered now has its turn at once."""
        return self._is_loaded and self._cell.state is State.READY

    # ------------------------------------------------------- the actor's state

    async def load(self) -> None:
        context = self._context
        began_s, began_cpu_s = context.clock.monotonic_s(), process_time()
        await context.stored.wait_written()
        book = await self._rewound()
        if book is None:
            recovered = await self._recovered()
            book = recovered.book
            context.counts.recovery_s = context.clock.monotonic_s() - began_s
            logger.info(
                "tasks_recovered",
                tasks=len(book),
                journal_entries=book.sequence - recovered.sequence,
                seconds=round(context.counts.recovery_s, 3),
                cpu_seconds=round(process_time() - began_cpu_s, 3),
            )
        self._take(book)
        self._is_loaded = True
        context.subscribers.reloaded(book)
        context.alarm.ring()

    async def _rewound(self) -> TaskBook | None:
        """The book of the incarnation before, if without what was refused it is the store's."""
        context = self._context
        stored = context.stored
        undoing = context.rewind.take()
        if undoing is None:
            return None
        (generation,) = await context.store.read(self._commands.generation())
        if generation != (b"%d" % stored.generation if stored.generation else None):
            return None
        stored.journal_bytes -= await undo(undoing, context.clock.now)
        context.counts.rewinds += 1
        logger.info("tasks_rewound", changes=len(undoing.changes))
        return undoing.book

    async def _recovered(self) -> Recovered:
        context = self._context
        try:
            recovered = await recover(context.store, context.limits, context.clock.now())
        except JournalError as error:
            context.alarm.ring()
            raise context.readability.refuse(error) from error
        context.stored.recovered(recovered)
        context.counts.recoveries += 1
        return recovered

    def _take(self, book: TaskBook) -> None:
        self._book = book
        self._turns = TurnMaker(self._context, self._commands, book)

    def missing(self, request: Any) -> Hashable | None:
        """What a lease waits for while those before it read too much; all else is resident."""
        if self._reading_bytes < _READING_BYTES_MAX or type(request) not in _LEASING:
            return None
        return _READING

    def fetch(self, part: Hashable, arrived: Callable[[UnavailableError | None], None]) -> None:
        assert part is _READING, "nothing else is ever missing"
        self._leases_wait = arrived

    def let_leases_on(self) -> None:
        """Take the leases that waited for others to be answered; called by the clock."""
        arrived = self._leases_wait
        if arrived is not None and self._reading_bytes < _READING_BYTES_MAX:
            self._leases_wait = None
            arrived(None)

    def apply(self, part: Hashable, value: Any) -> None:
        if part is CHANGE:
            with self._context.rewind:
                self._book.apply(value)
            self._applied(value)
        elif part is _READING:
            self._reading_bytes += value
        else:
            push, records = value
            push.leases = {record.task_id: record.lease_token for record in records}
            push.size_bytes = sum(record.size_bytes_max for record in records)
            self._context.subscribers.hold(push.subscriber, push.leases, push.size_bytes)

    def _applied(self, change: Change) -> None:
        """Tell everybody whom a change concerns."""
        context, book = self._context, self._book
        context.stored.journal_bytes += change.size_bytes
        context.counts.applied(change)
        context.subscribers.applied(change)
        if book.index.fresh:
            context.subscribers.fell_due(book.take_fresh())
        monotonic_s, planned_s = change.now.monotonic_s, context.alarm.planned_s
        if planned_s > monotonic_s:
            after_s = book.wake_after_s(change.now)
            if after_s is not None and monotonic_s + after_s < planned_s:
                context.alarm.ring()

    def released(self) -> None:
        if self._is_loaded:
            self._context.rewind.leave(self._book)
        self._is_loaded = False
        # A store that has just refused a commit would refuse a push too.
        self._context.subscribers.pause()
        self._context.alarm.ring()

    # ----------------------------------------------------------------- turns

    def handle(self, request: Any) -> Turn:
        with self._context.rewind:
            handler = _HANDLERS.get(type(request))
            if handler is not None:
                return handler(self, request)
            return _TURNS[type(request)](self._turns, request)

    def barrier(self, request: Barrier) -> Turn:
        if request.book is not None and request.book is not self._book:
            raise UnavailableError("the scheduler has started again meanwhile")
        return Turn(None)

    # ------------------------------------------------------------- scheduling

    def schedule(self, request: ScheduleTaskRequest) -> Turn:
        change = self._turns.begin()
        task = request.task
        changed = scheduling.schedule(
            self._book,
            change,
            task_id=task.id,
            agent_id=task.agent_id,
            module_name=task.module_name,
            payload_digest=payload_digest(task.payload),
            scheduled_at=task.scheduled_at,
            max_attempts=task.max_attempts,
            revive=request.revive,
        )
        if not changed:
            return Turn(SCHEDULED)
        record = change.records[task.id]
        assert record is not None
        kept = self._turns.keep(
            task,
            scheduled_at=record.scheduled_at,
            created_at=task.created_at or int(change.now.wall_s),
        )
        return self._turns.make(change, SCHEDULED, commands=[kept])

    def forget(self, request: ForgetTasks) -> Turn:
        change = self._turns.begin()
        cursor = retirement.delete_agent(
            self._book, change, request.agent_id, cursor=request.cursor, limit=_FORGOTTEN_AT_ONCE
        )
        return self._dropping(change, cursor)

    def retire(self, _: Retire) -> Turn:
        change = self._turns.begin()
        retired = retirement.retire(self._book, change, limit=RETIRED_AT_ONCE)
        counts = self._context.counts
        counts.retired += len(retired.completed)
        counts.retired_cancelled += len(retired.cancelled)
        counts.retired_dead += len(retired.dead)
        counts.retired_early += retired.early
        return self._dropping(change, None)

    def _dropping(self, change: Change, answer: Any) -> Turn:
        gone = list(change.records)
        return self._turns.make(
            change,
            answer,
            commands=[
                self._commands.forget(gone[start : start + _DROPPED_BY_COMMAND])
                for start in range(0, len(gone), _DROPPED_BY_COMMAND)
            ],
            frees_memory=True,
        )

    # ---------------------------------------------------------------- reading

    def get(self, request: GetTaskRequest) -> Turn:
        record = self._book.get(request.task_id)
        if record is None:
            return Turn(GetTaskResponse(error=str(UnknownTaskError(request.task_id))))
        return Turn(None, then=partial(self._reads.answer_one, record))

    def get_again(self, request: GetAgain) -> Turn:
        record = self._book.get(request.task_id)
        if record is None:
            raise UnknownTaskError(request.task_id)
        return self._reads.in_commit(record)

    def bury(self, request: Bury) -> Turn:
        change = self._turns.begin()
        buried = [
            record.task_id
            for record in request.records
            if deliveries.bury(self._book, change, record, error=_UNREADABLE)
        ]
        if buried:
            self._context.counts.damaged += len(buried)
            logger.error("tasks_damaged", count=len(buried), examples=buried[:10])
        return self._turns.make(change, None)

    def list_due(self, request: ListDueTasksRequest) -> Turn:
        """A ListDueTasks that looks at few rows; `listings` answers the others."""
        limit = due_limit(request)
        now_s = int(self._context.clock.now().wall_s)
        until = request.timestamp or now_s
        if self._context.due_lease_s:
            until = min(until, now_s)
        steps = oldest_tasks(
            self._book,
            until=until,
            agent_id=request.agent_id,
            module_name=request.module_name,
            wanted=limit,
        )
        found = [record for step in steps for record in step.records][:limit]
        if self._context.due_lease_s:
            return self.lease_listed(LeaseListed([record.task_id for record in found]))
        records, _ = fitting_tasks(found, self._room_bytes)
        if not records:
            return Turn(b"")
        return Turn(None, then=partial(self._reads.answer_many, records))

    def lease_listed(self, request: LeaseListed) -> Turn:
        return self._lease(
            limit=LEASE_LIMIT_MAX,
            lease_s=self._context.due_lease_s,
            worker_id="ListDueTasks",
            task_ids=request.task_ids,
        )

    @property
    def _room_bytes(self) -> int:
        return room_for_tasks(self._context.message_bytes_max)

    # ---------------------------------------------------------------- leasing

    def lease(self, request: LeaseTasksRequest) -> Turn:
        identity = b""
        if request.request_key:
            identity = identity_of(
                request.request_key, request.worker_id, request.agent_id, request.module_name
            )
            records = leasing.leased_again(self._book, identity, self._context.clock.now())
            if records is not None:
                return (
                    Turn(None, then=partial(self._reads.answer_many, records))
                    if records
                    else Turn(b"")
                )
        return self._lease(
            agent_id=request.agent_id,
            module_name=request.module_name,
            limit=request.limit or DEFAULT_LEASES,
            lease_s=request.lease_seconds or DEFAULT_LEASE_S,
            worker_id=request.worker_id,
            identity=identity,
        )

    def push(self, request: Push) -> Turn:
        subscriber = request.subscriber
        if subscriber.closed:
            return Turn(b"")
        return self._lease(
            agent_id=subscriber.agent_id,
            module_name=subscriber.module_name,
            limit=request.limit,
            lease_s=subscriber.lease_s,
            worker_id=subscriber.worker_id,
            push=request,
        )

    def _lease(
        self,
        *,
        agent_id: str = "",
        module_name: str = "",
        limit: int,
        lease_s: int,
        worker_id: str,
        task_ids: Sequence[str] | None = None,
        push: Push | None = None,
        identity: bytes = b"",
    ) -> Turn:
        book = self._book
        context = self._context
        change = Change(context.clock.now())
        room_bytes = self._room_bytes
        if push is None:
            book.advance(change.now, limit=ADVANCED_AT_ONCE)
        else:
            # The scheduler has just advanced the book, to find out that there is something to push.
            room_bytes = min(room_bytes, push.subscriber.room_bytes)
        records = leasing.lease(
            book,
            change,
            limit=limit,
            lease_s=lease_s,
            worker_id=worker_id,
            token=context.random.getrandbits(TOKEN_BITS),
            agent_id=agent_id,
            module_name=module_name,
            bytes_max=room_bytes,
            task_ids=task_ids,
            identity=identity,
        )
        if not records:
            return Turn(b"")
        context.counts.deliveries += len(records)
        size_bytes = sum(record.size_bytes_max for record in records)
        changes: list[tuple[Hashable, Any]] = [(_READING, size_bytes)]
        if push is not None:
            changes.append((_PUSHED, (push, records)))
        return self._turns.make(
            change,
            None,
            commands=[self._commands.fetch(records)],
            changes=changes,
            then=partial(self._leased, records, size_bytes),
        )

    def _leased(
        self,
        records: list[TaskRecord],
        size_bytes: int,
        turn: Turn,
        replies: Sequence[object] | None,
    ) -> Any:
        """The response of a lease that is committed; its payloads came with the commit."""
        self._reading_bytes -= size_bytes
        if self._leases_wait is not None:
            self._context.alarm.ring()
        if replies is None:
            return self._reads.answer_many(records, turn, replies)
        kept = replies[0]
        assert isinstance(kept, list)
        response, damaged = listed(records, kept)
        # Read by the commit that leased them, so what is gone is lost.
        damaged += [record for record, task in zip(records, kept, strict=True) if task is None]
        self._context.found_damaged(damaged)
        return response


_LEASING: Final = (LeaseTasksRequest, Push, LeaseListed)

_HANDLERS: Final[dict[type, Callable[[SchedulerActor, Any], Turn]]] = {
    ScheduleTaskRequest: SchedulerActor.schedule,
    GetTaskRequest: SchedulerActor.get,
    ListDueTasksRequest: SchedulerActor.list_due,
    LeaseTasksRequest: SchedulerActor.lease,
    Barrier: SchedulerActor.barrier,
    Bury: SchedulerActor.bury,
    GetAgain: SchedulerActor.get_again,
    Retire: SchedulerActor.retire,
    Push: SchedulerActor.push,
    ForgetTasks: SchedulerActor.forget,
    LeaseListed: SchedulerActor.lease_listed,
}

_TURNS: Final = settlements.HANDLERS | interventions.HANDLERS
"""Those that need only the book."""
