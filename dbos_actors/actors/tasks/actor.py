"""The scheduler actor: a task book bound to the store, as turns.

One incarnation; it runs in a cell of the actor runtime, which carries its turns
out. A turn is one `Change`: sealed into a journal entry, submitted, and applied
to the book, in one synchronous step. The book is then ahead of the store by what
is submitted and not yet committed; every answer waits for its own commit, and a
read for all commits before it, so nobody is shown what a crash could take back.
When the store refuses a commit the whole incarnation is dropped and read back.

Payloads are not resident. What a lease hands out is read by the very commit that
leases it.

Messages are the contract's own requests, validated before they are sent here,
and the classes below.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, Protocol

import structlog
from google.protobuf.message import DecodeError

from dbos_actors.actors.agents.actor import embedded, found, guarded
from dbos_actors.actors.event_log import EventLog
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.recovery import Recovered, listed, overlaid, recover
from dbos_actors.api.messages import (
    AckTaskRequest,
    AckTaskResponse,
    ExtendLeaseRequest,
    ExtendLeaseResponse,
    GetTaskRequest,
    GetTaskResponse,
    LeaseTasksRequest,
    ListDueTasksRequest,
    NackTaskRequest,
    NackTaskResponse,
    ScheduleTaskRequest,
    ScheduleTaskResponse,
    SubscribeTasksRequest,
    SubscribeTasksResponse,
    Task,
)
from dbos_actors.domain import events
from dbos_actors.domain.tasks import deliveries, leasing, retirement, scheduling, settling
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change, Outcome
from dbos_actors.domain.tasks.claims import identity_of
from dbos_actors.domain.tasks.journal import JournalError
from dbos_actors.domain.tasks.limits import LEASE_LIMIT_MAX, TaskLimits
from dbos_actors.domain.tasks.record import TOKEN_BITS, TaskRecord, payload_digest
from dbos_actors.domain.tasks.scan import oldest_tasks
from dbos_actors.domain.tasks.states import DamagedTaskError, Status, UnknownTaskError
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import InvalidFieldError, RefusedError, UnavailableError
from dbos_actors.runtime import DEFERRED, ActorCell, Call, Refusal, Turn
from dbos_actors.store import Store

logger = structlog.get_logger(__name__)

SCHEDULED: Final = ScheduleTaskResponse(success=True).SerializeToString()
ACKNOWLEDGED: Final = AckTaskResponse(success=True).SerializeToString()
GIVEN_BACK: Final = NackTaskResponse(success=True).SerializeToString()
EXTENDED: Final = ExtendLeaseResponse(success=True).SerializeToString()

DEFAULT_LEASE_S: Final = 60
DEFAULT_LEASES: Final = 100
"""For requests that do not say; both are part of the contract."""

ADVANCED_AT_ONCE: Final = 500
"""Tasks that fall due in one step: 3 ms."""

EXPIRED_AT_ONCE: Final = 200
"""Leases ended in one turn, each perhaps with an event: 5 ms."""

RETIRED_AT_ONCE: Final = 1_000
"""Completed tasks dropped in one turn; bounded by what one freeing command may name."""

BURIED_AT_ONCE: Final = 200
"""Damaged tasks that die in one turn, each with an event: 5 ms."""

_READING_BYTES_MAX: Final = 8 << 20
"""Payloads that commits under way read for leases and pushes: two responses of the default limit.
A commit that reads more would hold up everyone else in it, and Redis, by 0.5 ms for each MiB.
The next leases wait, in their order, until some have been answered; other messages do not."""

_RESPONSE_ENVELOPE_BYTES = 64

# Parts of the state.
_CHANGE: Final = 0
_HOLDER: Final = 1
_READING: Final = 2


class Holder(Protocol):
    """Who is told of the tasks pushed to it; see `scheduler_push`."""

    agent_id: str
    module_name: str
    lease_s: int
    worker_id: str
    closed: bool

    @property
    def room_bytes(self) -> int:
        """How many bytes of tasks it may be given."""
        ...

    def hold(self, push: Push) -> None:
        """What ``push`` names is leased to it; the commit is under way."""
        ...


class Barrier:
    """Answered once everything before it is committed."""

    __slots__ = ("book",)

    def __init__(self, book: TaskBook | None = None) -> None:
        """Refused as unavailable if ``book`` is given and no longer the actor's."""
        self.book = book


class Expire:
    """End leases whose time is up."""

    __slots__ = ()


class Retire:
    """Drop completed and dead tasks beyond retention."""

    __slots__ = ()


class Bury:
    """Let tasks die whose record cannot be read, unless they have changed since."""

    __slots__ = ("records",)

    def __init__(self, records: Sequence[TaskRecord]) -> None:
        self.records = records


class GetAgain:
    """Read a task in order with the commits before: a plain read was not what the book says."""

    __slots__ = ("task_id",)

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id


class Push:
    """Lease up to ``limit`` tasks for a holder."""

    __slots__ = ("holder", "leases", "limit", "size_bytes")

    def __init__(self, holder: Holder, limit: int) -> None:
        self.holder = holder
        self.limit = limit
        self.leases: dict[str, str] = {}
        """What was leased: task id -> token."""
        self.size_bytes = 0
        """Of these tasks, at most."""


class Settle:
    """Acknowledgements, returns and extensions of one stream, in its order.

    The answer is a serialised response with their outcomes.
    """

    __slots__ = ("requests",)

    def __init__(self, requests: Sequence[SubscribeTasksRequest]) -> None:
        self.requests = requests


class Release:
    """End leases (task id -> token) at once: their worker is gone, or was not sent them."""

    __slots__ = ("leases", "reason", "was_sent")

    def __init__(self, leases: dict[str, str], reason: str, *, was_sent: bool) -> None:
        self.leases = leases
        self.reason = reason
        self.was_sent = was_sent


class LeaseListed:
    """Lease those of these tasks that are still due, for a ListDueTasks that leases."""

    __slots__ = ("task_ids",)

    def __init__(self, task_ids: Sequence[str]) -> None:
        self.task_ids = task_ids


class ForgetTasks:
    """Delete an agent's tasks in one bounded step; the answer is the next cursor or None."""

    __slots__ = ("agent_id", "cursor")

    def __init__(self, agent_id: str, cursor: tuple[int, str]) -> None:
        self.agent_id = agent_id
        self.cursor = cursor


_FORGOTTEN_AT_ONCE = 500


@dataclass(slots=True)
class TaskCounts:
    """Counts since the start."""

    deliveries: int = 0
    expired: int = 0
    released: int = 0
    taken_back: int = 0
    retired: int = 0
    retired_dead: int = 0
    retired_early: int = 0
    damaged: int = 0
    completed: int = 0
    died: int = 0
    lateness_ms_sum: int = 0
    lateness_ms_max: int = 0
    """Of the tasks that ended, from falling due to their first delivery."""


class Keeper(Protocol):
    """What an incarnation asks of who keeps it."""

    async def wait_written(self) -> None:
        """Wait until nothing that concerns the book is on its way to the store but turns."""
        ...

    def loaded(self, actor: SchedulerActor) -> None:
        """The book is complete; turns begin."""
        ...

    def lease_answered(self) -> None:
        """Leases that wait may go on: have `SchedulerActor.let_leases_on` called, later."""
        ...

    def damaged(self, records: Sequence[TaskRecord]) -> None:
        """These are to be handed out and cannot be read: have them die, later."""
        ...

    def unloaded(self, actor: SchedulerActor) -> None:
        """The incarnation is dropped."""
        ...

    def applied(self, change: Change) -> None:
        """The book has changed."""
        ...

    def unreadable(self, error: JournalError) -> UnavailableError:
        """What is stored cannot be read, until the store is another; what to tell callers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerContext:
    """What all incarnations share."""

    store: Store
    keeper: Keeper
    now: Callable[[], Now]
    random: Random
    """Of lease tokens."""

    limits: TaskLimits
    due_lease_s: int
    """For how long ListDueTasks leases what it lists; 0: it only reads."""

    events_max: int
    message_bytes_max: int
    """Of a response."""

    counts: TaskCounts = field(default_factory=TaskCounts)


class SchedulerActor:
    """One incarnation of the scheduler; a `runtime.Behaviour`."""

    __slots__ = (
        "_book",
        "_cell",
        "_commands",
        "_context",
        "_leases_wait",
        "_log",
        "_reading_bytes",
        "recovered",
    )

    recovered: Recovered

    def __init__(self, cell: ActorCell, context: SchedulerContext) -> None:
        self._cell = cell
        self._context = context
        self._commands = TaskCommands(context.store.keys)
        self._log = EventLog(context.store, events_max=context.events_max)
        self._book = TaskBook(context.limits)
        # Of payloads that commits under way read; and whom to tell when it is less again.
        self._reading_bytes = 0
        self._leases_wait: Callable[[UnavailableError | None], None] | None = None

    @property
    def book(self) -> TaskBook:
        return self._book

    @property
    def cell(self) -> ActorCell:
        return self._cell

    # ------------------------------------------------------- the actor's state

    async def load(self) -> None:
        context = self._context
        await context.keeper.wait_written()
        try:
            self.recovered = await recover(context.store, context.limits, context.now())
        except JournalError as error:
            raise context.keeper.unreadable(error) from error
        self._book = self.recovered.book
        context.keeper.loaded(self)

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
        if part is _CHANGE:
            self._book.apply(value)
            self._context.keeper.applied(value)
        elif part is _READING:
            self._reading_bytes += value
        else:
            push, records = value
            push.leases = {record.task_id: record.lease_token for record in records}
            push.size_bytes = sum(record.size_bytes_max for record in records)
            push.holder.hold(push)

    def released(self) -> None:
        self._context.keeper.unloaded(self)

    # ----------------------------------------------------------------- turns

    def handle(self, request: Any) -> Turn:
        return _HANDLERS[type(request)](self, request)

    def _turn(
        self,
        change: Change,
        answer: Any,
        *,
        commands: Iterable[bytes] = (),
        changes: Sequence[tuple[Hashable, Any]] = (),
        then: Callable[[Turn, Sequence[object] | None], Any] | None = None,
        frees_memory: bool = False,
    ) -> Turn:
        """The turn that makes ``change``; its own ``commands`` come first in it."""
        if not change:
            return Turn(answer)
        entry = self._book.seal(change)
        written = [*commands, self._commands.journal(change.sequence, entry)]
        written += self._events(change)
        return Turn(
            answer,
            commands=written,
            changes=((_CHANGE, change), *changes),
            then=then,
            frees_memory=frees_memory,
        )

    def _events(self, change: Change) -> Iterable[bytes]:
        now_s = int(change.now.wall_s)
        appended = self._log.appended
        return [
            appended(_event(outcome, now_s))
            for outcome in change.outcomes
            if outcome.status is not Status.GONE
        ]

    def _begin(self) -> Change:
        return self._book.begin(self._context.now())

    def barrier(self, request: Barrier) -> Turn:
        if request.book is not None and request.book is not self._book:
            raise UnavailableError("the scheduler has started again meanwhile")
        return Turn(None)

    # ------------------------------------------------------------- scheduling

    def schedule(self, request: ScheduleTaskRequest) -> Turn:
        change = self._begin()
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
        kept = Task(
            id=task.id,
            agent_id=task.agent_id,
            module_name=task.module_name,
            payload=task.payload,
            scheduled_at=record.scheduled_at,
            created_at=task.created_at or int(change.now.wall_s),
        )
        return self._turn(change, SCHEDULED, commands=[self._commands.keep(kept)])

    def forget(self, request: ForgetTasks) -> Turn:
        change = self._begin()
        cursor = retirement.delete_agent(
            self._book, change, request.agent_id, cursor=request.cursor, limit=_FORGOTTEN_AT_ONCE
        )
        return self._dropping(change, cursor)

    def retire(self, _: Retire) -> Turn:
        change = self._begin()
        retired = retirement.retire(self._book, change, limit=RETIRED_AT_ONCE)
        counts = self._context.counts
        counts.retired += len(retired.completed)
        counts.retired_dead += len(retired.dead)
        counts.retired_early += retired.early
        return self._dropping(change, None)

    def _dropping(self, change: Change, answer: Any) -> Turn:
        gone = list(change.records)
        return self._turn(
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
        return Turn(None, then=partial(self._read_task, record))

    def _read_task(self, record: TaskRecord, turn: Turn, replies: object) -> Any:  # noqa: ARG002
        call = turn.call

        def on_replies(replies: Any) -> None:
            if isinstance(replies, UnavailableError):
                call.fail(replies)
                return
            kept = replies[0][0]
            if kept is not None and _is_of(kept, record):
                call.reply(found(overlaid(kept, record)))
            else:
                # Changed or deleted since, or damaged.
                self._cell.deliver(_Redirected(call, GetAgain(record.task_id)))

        self._context.store.submit_read(
            [self._commands.fetch([record])], guarded(call, on_replies), deadline_s=call.deadline
        )
        return DEFERRED

    def get_again(self, request: GetAgain) -> Turn:
        record = self._book.get(request.task_id)
        if record is None:
            raise UnknownTaskError(request.task_id)
        # A read that is part of a commit sees what exactly this turn's book stands for.
        return Turn(
            None,
            commands=[self._commands.fetch([record])],
            then=partial(self._compared, record),
        )

    @staticmethod
    def _compared(record: TaskRecord, _: Turn, replies: Sequence[Any] | None) -> bytes | Refusal:
        if replies is None:
            lost = "the connection to Redis was lost while the task was read"
            return Refusal(UnavailableError(lost))
        (kept,) = replies[0]
        if kept is None or not _is_of(kept, record):
            return Refusal(DamagedTaskError(record.task_id))
        return found(overlaid(kept, record))

    def bury(self, request: Bury) -> Turn:
        change = self._begin()
        buried = [
            record.task_id
            for record in request.records
            if deliveries.bury(
                self._book, change, record, error="what Redis holds of it cannot be read"
            )
        ]
        if buried:
            self._context.counts.damaged += len(buried)
            logger.error("tasks_damaged", count=len(buried), examples=buried[:10])
        return self._turn(change, None)

    def list_due(self, request: ListDueTasksRequest) -> Turn:
        """One that looks at few rows; `task_listings` has the others."""
        limit = due_limit(request)
        now_s = int(self._context.now().wall_s)
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
        return Turn(None, then=partial(self._read_tasks, records))

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
            records = leasing.leased_again(self._book, identity, self._context.now())
            if records is not None:
                return Turn(None, then=partial(self._read_tasks, records)) if records else Turn(b"")
        return self._lease(
            agent_id=request.agent_id,
            module_name=request.module_name,
            limit=request.limit or DEFAULT_LEASES,
            lease_s=request.lease_seconds or DEFAULT_LEASE_S,
            worker_id=request.worker_id,
            identity=identity,
        )

    def push(self, request: Push) -> Turn:
        holder = request.holder
        if holder.closed:
            return Turn(b"")
        return self._lease(
            agent_id=holder.agent_id,
            module_name=holder.module_name,
            limit=request.limit,
            lease_s=holder.lease_s,
            worker_id=holder.worker_id,
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
        change = self._begin()
        book.advance(change.now, limit=ADVANCED_AT_ONCE)
        room_bytes = self._room_bytes
        if push is not None:
            room_bytes = min(room_bytes, push.holder.room_bytes)
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
            changes.append((_HOLDER, (push, records)))
        return self._turn(
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
            self._context.keeper.lease_answered()
        if replies is None:
            return self._read_tasks(records, turn, replies)
        kept = replies[0]
        assert isinstance(kept, list)
        response, damaged = listed(records, kept)
        # Read by the commit that leased them, so what is gone is lost.
        damaged += [record for record, task in zip(records, kept, strict=True) if task is None]
        if damaged:
            self._context.keeper.damaged(damaged)
        return response

    def _read_tasks(self, records: Sequence[TaskRecord], turn: Turn, replies: object) -> Any:  # noqa: ARG002
        """Answer with ``records``, their payloads read now."""
        call = turn.call

        def on_replies(replies: Any) -> None:
            if isinstance(replies, UnavailableError):
                call.fail(replies)
                return
            response, damaged = listed(records, replies[0])
            if damaged:
                self._context.keeper.damaged(damaged)
            call.reply(response)

        self._context.store.submit_read(
            [self._commands.fetch(records)], guarded(call, on_replies), deadline_s=call.deadline
        )
        return DEFERRED

    # --------------------------------------------------------------- settling

    def ack(self, request: AckTaskRequest) -> Turn:
        change = self._begin()
        settling.ack(self._book, change, request.task_id, request.lease_token)
        return self._turn(change, ACKNOWLEDGED)

    def nack(self, request: NackTaskRequest) -> Turn:
        change = self._begin()
        settling.nack(
            self._book,
            change,
            request.task_id,
            request.lease_token,
            delay_s=request.retry_delay_seconds,
            reason=request.reason,
        )
        return self._turn(change, GIVEN_BACK)

    def extend(self, request: ExtendLeaseRequest) -> Turn:
        change = self._begin()
        settling.extend(
            self._book,
            change,
            request.task_id,
            request.lease_token,
            lease_s=request.lease_seconds or DEFAULT_LEASE_S,
        )
        return self._turn(change, EXTENDED)

    def settle(self, request: Settle) -> Turn:
        change = self._begin()
        outcomes: list[bytes] = []
        for one in request.requests:
            task_id, error = self._settle_one(change, one)
            outcomes.append(outcome_bytes(task_id, error))
        return self._turn(change, b"".join(outcomes))

    def _settle_one(self, change: Change, request: SubscribeTasksRequest) -> tuple[str, str]:
        """Task id and error, if it is refused."""
        book = self._book
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

    def expire(self, _: Expire) -> Turn:
        change = self._begin()
        self._context.counts.expired += len(
            deliveries.expire(self._book, change, limit=EXPIRED_AT_ONCE)
        )
        return self._turn(change, None)

    def release(self, request: Release) -> Turn:
        change = self._begin()
        book, counts = self._book, self._context.counts
        for task_id, token in request.leases.items():
            if request.was_sent:
                counts.released += deliveries.release(
                    book, change, task_id, token, reason=request.reason
                )
            else:
                counts.taken_back += deliveries.take_back(book, change, task_id, token)
        return self._turn(change, None)


_DROPPED_BY_COMMAND = 1_000

_UNREADABLE: Final = "what Redis holds of it cannot be read"

_LEASING: Final = (LeaseTasksRequest, Push, LeaseListed)

_HANDLERS: Final[dict[type, Callable[[SchedulerActor, Any], Turn]]] = {
    ScheduleTaskRequest: SchedulerActor.schedule,
    GetTaskRequest: SchedulerActor.get,
    ListDueTasksRequest: SchedulerActor.list_due,
    LeaseTasksRequest: SchedulerActor.lease,
    AckTaskRequest: SchedulerActor.ack,
    NackTaskRequest: SchedulerActor.nack,
    ExtendLeaseRequest: SchedulerActor.extend,
    Barrier: SchedulerActor.barrier,
    Bury: SchedulerActor.bury,
    GetAgain: SchedulerActor.get_again,
    Expire: SchedulerActor.expire,
    Retire: SchedulerActor.retire,
    Push: SchedulerActor.push,
    Settle: SchedulerActor.settle,
    Release: SchedulerActor.release,
    ForgetTasks: SchedulerActor.forget,
    LeaseListed: SchedulerActor.lease_listed,
}


class _Redirected:
    """A call with another message than its own; answered as the call it is."""

    __slots__ = ("_call", "request")

    def __init__(self, call: Call, request: Any) -> None:
        self._call = call
        self.request = request

    @property
    def answered(self) -> bool:
        return self._call.answered

    @property
    def deadline(self) -> float | None:
        return self._call.deadline

    def reply(self, message: Any) -> None:
        self._call.reply(message)

    def fail(self, error: Exception) -> None:
        self._call.fail(error)


def due_limit(request: ListDueTasksRequest) -> int:
    """How many tasks a ListDueTasks asks for. Raises `InvalidFieldError`."""
    if request.limit < 0:
        raise InvalidFieldError("limit", "must not be negative")
    return min(request.limit or LEASE_LIMIT_MAX, LEASE_LIMIT_MAX)


def room_for_tasks(message_bytes_max: int) -> int:
    """Of a message so many bytes may be tasks."""
    return message_bytes_max - _RESPONSE_ENVELOPE_BYTES


def fitting_tasks(
    records: Sequence[TaskRecord], room_bytes: int, *, has_any: bool = False
) -> tuple[Sequence[TaskRecord], int]:
    """The first ones, as many as fit into so many bytes, and the bytes that are left.

    But one, however large, unless the message ``has_any``.
    """
    for position, record in enumerate(records):
        size_bytes = record.size_bytes_max
        if size_bytes > room_bytes and (position or has_any):
            return records[:position], room_bytes
        room_bytes -= size_bytes
    return records, room_bytes


def outcome_bytes(task_id: str, error: str = "") -> bytes:
    """A response to a subscriber with one outcome."""
    if error:
        outcome = SubscribeTasksResponse.Outcome(task_id=task_id, error=error)
        return embedded(2, outcome.SerializeToString())
    return embedded(2, embedded(1, task_id.encode()) + _SUCCESS)


_SUCCESS: Final = b"\x10\x01"  # field 2, true


def _event(outcome: Outcome, now_s: int) -> bytes:
    """What `events.event` would make of it, in a third of the time: there is one per task."""
    quoted = events.quoted
    task_id = quoted(outcome.task_id)
    agent_id = quoted(outcome.agent_id)
    status = outcome.status.text
    error = f',"error":{quoted(outcome.error)}' if outcome.status is Status.DEAD else ""
    return (
        f'{{"type":"{events.TASK_PREFIX}{status}",'
        f'"message":"task {task_id[1:-1]} of agent {agent_id[1:-1]} is {status}",'
        f'"metadata":{{"task_id":{task_id},"agent_id":{agent_id},'
        f'"module_name":{quoted(outcome.module_name)},'
        f'"lateness_ms":"{outcome.lateness_ms}","deliveries":"{outcome.deliveries}"{error}}},'
        f'"timestamp":{now_s}}}'
    ).encode()


def _is_of(kept: bytes, record: TaskRecord) -> bool:
    """Whether what is stored is what the record is about; not if it was changed since."""
    try:
        task = Task.FromString(kept)
    except DecodeError:
        return False
    return (
        task.scheduled_at == record.scheduled_at
        and task.agent_id == record.agent_id
        and task.module_name == record.module_name
        and payload_digest(task.payload) == record.digest
    )
