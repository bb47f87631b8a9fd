"""Bugs planted into the product, each of which the simulation has to find.

Each is a patch of the real classes, for the length of a context. A checker that
finds none of them proves nothing; `test_planted_bugs.py` and
``python -m tests.simulation --planted-bugs`` say how many seeds each one takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.actors.agents.change_clock import ChangeClock
from dbos_actors.actors.agents.deletion import Deletions
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.tasks.subscribers import Subscriber
from dbos_actors.api.messages import DeleteAgentRequest
from dbos_actors.domain import runs
from dbos_actors.domain.tasks import scheduling
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.claims import Claims
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import FencedError, RefusedError, UnavailableError
from dbos_actors.runtime import Supervisor, Waiter
from dbos_actors.runtime.actor_cell import ActorCell, State
from dbos_actors.runtime.turn import Turn
from dbos_actors.service import store_results as ingest
from dbos_actors.store.batch import Answer, Wire
from dbos_actors.store.commit_history import CommitHistory, Phase
from dbos_actors.store.committer import Committer
from dbos_actors.store.effects import Effects
from dbos_actors.store.reader import Reader
from dbos_actors.store.resp import pack, unpacked

Plant = Callable[[], Any]
PLANTED_BUGS: Final[dict[str, Plant]] = {}


def planted(plant: Callable[[], Any]) -> Callable[[], Any]:
    """Register a bug under its function's name."""
    PLANTED_BUGS[plant.__name__.replace("_", " ")] = plant
    return plant


def _without(commands: Sequence[bytes], name: bytes, key_part: bytes = b"") -> list[bytes]:
    """The commands but those of this name, on a key with this in it."""
    return [
        command
        for command in commands
        if not ((parts := unpacked(command))[0] == name and key_part in parts[1])
    ]


# ------------------------------------------------------------------- answers


@planted
def acknowledged_before_it_is_committed() -> Any:
    submit = Committer.submit

    def submit_and_answer(self: Committer, submission: Any) -> None:
        submit(self, submission)
        if isinstance(submission, Turn) and submission.commands and submission.then is None:
            submission.call.reply(submission.answer)

    return patch.object(Committer, "submit", submit_and_answer)


@planted
def acknowledged_when_it_is_refused() -> Any:
    refused = Turn.refused

    def reply(self: Turn, error: UnavailableError) -> None:
        if self.answer is not None:
            self.call.reply(self.answer)
        refused(self, error)

    return patch.object(Turn, "refused", reply)


@planted
def uncommitted_state_is_read() -> Any:
    return patch.object(ActorCell, "ahead", property(lambda _: 0, lambda *_: None))


@planted
def a_refusal_tells_of_uncommitted_state() -> Any:
    def refuse(self: ActorCell, call: Any, error: RefusedError) -> None:
        call.fail(error)

    return patch.object(ActorCell, "_refuse", refuse)


@planted
def reads_from_memory_do_not_check_the_lease() -> Any:
    return patch.object(Committer, "is_current", property(lambda _: True))


@planted
def a_store_that_came_back_older_is_read_before_it_is_rolled_forward() -> Any:
    """Neither of the two guards: what is in doubt is read, on connections nobody has checked."""

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(CommitHistory, "in_sync", property(lambda _: True)),
            patch.object(Reader, "_expect_current", lambda *_: None),
        ):
            yield

    return plant()


# -------------------------------------------------------------------- commits


@planted
def a_batch_is_not_a_transaction() -> Any:
    """No MULTI: what a cut connection leaves of it is half a batch."""

    async def send(self: Wire, connection: Any, batch: Any, after: bytes) -> Answer:
        payload = batch.body + pack("SET", self._commit_key, after) + self._watch_and_read
        count = batch.command_count
        replies = await connection.call(payload, count + 3)
        return Answer(replies[-1], replies=replies[:count])

    return patch.object(Wire, "_send_transaction", send)


@planted
def a_command_that_fails_in_a_commit_is_acknowledged() -> Any:
    """Redis does not roll back: what is told of as stored is half there."""
    return patch.object(CommitHistory, "_take_failures", lambda *_: None)


@planted
def ownership_is_not_checked_by_commits() -> Any:
    """No WATCH: a server that was taken over from goes on writing."""
    original = Wire.__init__

    def no_watch(self: Wire, **arguments: Any) -> None:
        original(self, **arguments)
        key = arguments["commit_key"]
        self._watch_and_read = pack("UNWATCH") + pack("GET", key)
        self._exec = pack("EXEC") + self._watch_and_read

    return patch.object(Wire, "__init__", no_watch)


@planted
def another_owner_is_not_noticed() -> Any:
    """A fenced server takes the other's commit key for its own."""
    place = CommitHistory._place

    def place_anyway(
        self: CommitHistory, value: bytes | None, now_s: float, effects: Effects
    ) -> None:
        try:
            place(self, value, now_s, effects)
        except FencedError:
            self._phase = Phase.KNOWN
            self._value = value or b""
            self._position = self._acknowledged

    return patch.object(CommitHistory, "_place", place_anyway)


@planted
def what_redis_lost_is_not_sent_again() -> Any:
    place = CommitHistory._place

    def forget(self: CommitHistory, value: bytes | None, now_s: float, effects: Effects) -> None:
        place(self, value, now_s, effects)
        self._position = max(self._position, self._acknowledged)

    return patch.object(CommitHistory, "_place", forget)


@planted
def a_commit_in_doubt_is_sent_again_unchecked() -> Any:
    """After a lost connection: as if the batch in flight had not been executed."""
    place = CommitHistory._place

    def as_if_not_executed(
        self: CommitHistory, value: bytes | None, now_s: float, effects: Effects
    ) -> None:
        history = self._history
        in_flight = history[-1] if history and history[-1].sequence > self._acknowledged else None
        entries = list(in_flight.entries) if in_flight is not None else []
        place(self, value, now_s, effects)
        if in_flight is not None and effects.committed and effects.committed == entries:
            self._queue.put_back(entries)
            effects.committed = []

    return patch.object(CommitHistory, "_place", as_if_not_executed)


@planted
def a_commit_in_doubt_counts_as_executed() -> Any:
    lost = CommitHistory.connection_lost

    def assume(self: CommitHistory) -> None:
        history = self._history
        if history and history[-1].sequence > self._acknowledged:
            batch = history[-1]
            for submission, _ in batch.entries:
                submission.committed(None)
            batch.entries = []
        lost(self)

    return patch.object(CommitHistory, "connection_lost", assume)


@planted
def kept_batches_are_dropped_at_once() -> Any:
    def drop(self: CommitHistory) -> None:
        while self._history and self._history[0].sequence <= self._position:
            self._history_bytes -= self._history.popleft().size_bytes

    return patch.object(CommitHistory, "_trim", drop)


@planted
def batches_are_sent_again_in_the_wrong_order() -> Any:
    place = CommitHistory._place

    def shuffled(self: CommitHistory, value: bytes | None, now_s: float, effects: Effects) -> None:
        place(self, value, now_s, effects)
        missing = [b for b in self._history if b.sequence > self._position]
        if len(missing) >= 2:
            bodies = [(b.body, b.form, b.command_count, b.lease) for b in reversed(missing)]
            for batch, (body, form, count, lease) in zip(missing, bodies, strict=True):
                batch.body, batch.form, batch.command_count, batch.lease = body, form, count, lease

    return patch.object(CommitHistory, "_place", shuffled)


# -------------------------------------------------------------------- streams


@planted
def a_failed_message_of_a_stream_counts_as_durable() -> Any:
    """When an earlier one is settled before the stream has ended."""
    failed = ingest._Settlement.failed

    def fail(self: Any, message: Any, error: Exception) -> None:
        message.is_settled = True
        failed(self, message, error)

    return patch.object(ingest._Settlement, "failed", fail)


@planted
def a_drain_strands_the_pushes_under_way() -> Any:
    """It neither waits for them nor takes them back."""
    unsubscribe = Scheduler.unsubscribe

    def keep(self: Scheduler, subscriber: Subscriber, *, keep_leases: bool = False) -> None:
        if keep_leases:
            subscriber.unsent.clear()
        unsubscribe(self, subscriber, keep_leases=keep_leases)

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(Scheduler, "unsubscribe", keep),
            patch.object(Subscriber, "under_way", property(lambda _: 0, lambda *_: None)),
        ):
            yield

    return plant()


# --------------------------------------------------------------------- actors


@planted
def a_refused_commit_reloads_nothing() -> Any:
    def refused(self: Turn, error: UnavailableError) -> None:
        self.call.fail(error)
        self.owner.turn_ended(self)

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(Turn, "refused", refused),
            patch.object(ActorCell, "store_refused", lambda *_: None),
        ):
            yield

    return plant()


@planted
def state_is_loaded_while_writes_are_in_flight() -> Any:
    async def at_once(self: ActorCell) -> None:
        self._behaviour.released()
        self._behaviour = self._make(self.key, self)
        self._state = State.LOADING

    return patch.object(ActorCell, "_await_writes", at_once)


@planted
def an_actor_leaves_memory_with_writes_in_flight() -> Any:
    def passivate(self: ActorCell) -> bool:
        if self._state is not State.READY or self._turning or self.mailbox or self._parked_messages:
            return False
        self._end()
        return True

    return patch.object(ActorCell, "passivate", passivate)


@planted
def a_run_leaves_memory_before_it_is_in_redis() -> Any:
    def evict(self: AgentActor, part: str) -> bool:
        self._runs.pop(part, None)
        self._complete = False
        return True

    return patch.object(AgentActor, "evict", evict)


@planted
def actors_keep_their_state_when_redis_lost_its_own() -> Any:
    def no_reload(self: ActorCell) -> None:
        return

    return patch.object(ActorCell, "reload", no_reload)


# --------------------------------------------------------------------- domain


@contextmanager
def _handler(name: str, change: Callable[[Turn], None]) -> Iterator[None]:
    """Change what a handler of the agent actor returns."""
    from dbos_actors.actors.agents import actor as module  # noqa: PLC0415 - its table is patched

    original = getattr(AgentActor, name)

    def changed(self: AgentActor, request: Any) -> Any:
        turn = original(self, request)
        change(turn)
        return turn

    handlers = {k: changed if v is original else v for k, v in module._HANDLERS.items()}
    with patch.object(module, "_HANDLERS", handlers):
        yield


def _drop(name: bytes, key_part: bytes = b"") -> Callable[[Turn], None]:
    def change(turn: Turn) -> None:
        turn.commands = _without(turn.commands, name, key_part)

    return change


@planted
def an_index_of_runs_is_forgotten() -> Any:
    return _handler("set_state", _drop(b"ZADD", b"states-of:"))


@planted
def a_finished_run_stays_unfinished() -> Any:
    return _handler("set_state", _drop(b"SREM"))


@planted
def a_duplicate_overwrites_the_first_result() -> Any:
    def overwrite(turn: Turn) -> None:
        _, key, result_id, record = unpacked(turn.commands[0])
        # The first reply decides what is answered; this one says: new.
        turn.commands = [
            pack("HSET", key, b"\0", b""),
            pack("HSET", key, result_id, record),
            pack("HDEL", key, b"\0"),
            *turn.commands[1:],
        ]

    return _handler("store_result", overwrite)


@planted
def a_result_is_written_in_two_steps() -> Any:
    """The index follows in a commit of its own."""
    original = AgentActor.store_result
    committed = AgentActor._result_committed

    def first_half(self: AgentActor, request: Any) -> Turn:
        turn = original(self, request)
        rest = list(turn.commands[1:])
        turn.commands = turn.commands[:1]

        def then(done: Turn, replies: Sequence[object] | None) -> Any:
            self._cell.submit(Turn(None, commands=rest), _Nobody())
            return committed(self, done, replies)

        turn.then = then
        return turn

    from dbos_actors.actors.agents import actor as module  # noqa: PLC0415 - its table is patched

    handlers = {k: first_half if v is original else v for k, v in module._HANDLERS.items()}
    return patch.object(module, "_HANDLERS", handlers)


class _Nobody:
    """A call nobody waits for."""

    answered = True
    deadline = None
    request = None

    def reply(self, message: Any) -> None: ...

    def fail(self, error: Exception) -> None: ...


@planted
def the_version_is_not_raised() -> Any:
    original = runs.report

    def report(current: Any, reported: Any, *, now_s: int) -> Any:
        answer = original(current, reported, now_s=now_s)
        if answer.changed and current is not None and current.version > 1:
            answer.record.version = current.version
        return answer

    return patch.object(runs, "report", report)


@planted
def a_repeated_outcome_is_taken_as_a_change() -> Any:
    table = {
        was: {
            state: runs.Step.PROGRESS if step is runs.Step.REPEAT else step
            for state, step in row.items()
        }
        for was, row in runs.TRANSITIONS.items()
    }
    return patch.object(runs, "TRANSITIONS", table)


@planted
def a_deletion_forgets_the_request_ids() -> Any:
    commit = ActorCell.commit

    async def without_zrem(self: ActorCell, *commands: bytes, frees_memory: bool = False) -> None:
        kept = _without(commands, b"ZREM", b":request:")
        await commit(self, *kept, frees_memory=frees_memory)

    return patch.object(ActorCell, "commit", without_zrem)


@planted
def an_interrupted_deletion_is_not_finished() -> Any:
    """Neither at the next start, nor by the server in which it failed."""

    async def nothing(*_: Any, task_status: Any = None) -> None:
        task_status.started()

    return patch.object(Deletions, "run", nothing)


@planted
def an_interrupted_deletion_ends_a_later_life() -> Any:
    """The next start deletes an agent that has come back; until then its actor takes messages."""
    load = AgentActor.load

    async def load_anyway(self: AgentActor) -> None:
        await load(self)
        if self._is_deleting:
            self._is_deleting = self._complete = self._unfinished_resident = False

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(AgentActor, "load", load_anyway),
            patch.object(Deletions, "interrupted", lambda *_: None),
            patch.object(Deletions, "_try", _delete),
        ):
            yield

    return plant()


async def _delete(self: Deletions, agents: Supervisor, agent_id: str, pause_s: float) -> None:
    waiter = Waiter(DeleteAgentRequest(agent_id=agent_id))
    agents.deliver(agent_id, waiter)
    await waiter.wait()


@planted
def a_jump_of_the_clock_makes_completed_tasks_old() -> Any:
    return patch.object(Now, "age_s", property(lambda now: now.wall_s))


@planted
def a_late_copy_revives_a_dead_task() -> Any:
    original = scheduling.schedule

    def revive(book: TaskBook, change: Any, **fields: Any) -> bool:
        return original(book, change, **{**fields, "revive": True})

    return patch.object(scheduling, "schedule", revive)


@planted
def the_key_of_a_lease_is_forgotten() -> Any:
    return patch.object(Claims, "find", lambda *_: None)


@planted
def changes_are_in_the_order_of_the_wall_clock() -> Any:
    """A run that changes after a step back is put where a listing has been already."""
    return patch.object(ChangeClock, "next_us", lambda self: int(self._clock.wall_s() * 1e6))


@planted
def reads_do_not_follow_the_commits_to_a_new_server() -> Any:
    """A read connection is kept when the commit connection is replaced, and not checked."""

    async def any_connection(self: Reader) -> Any:
        if self._connection is None:
            self._connection = await self._connect()
        self._generation = self._committer.generation
        return self._connection

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(Reader, "_current_connection", any_connection),
            patch.object(Reader, "_expect_current", lambda *_: None),
        ):
            yield

    return plant()
