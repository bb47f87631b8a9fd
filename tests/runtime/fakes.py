"""A store that does what it is told, and an actor whose state is the list of writes it accepted.

A write commits the whole new value of a part, and the store checks that it
extends the value there by that one write. So a lost update, a write decided on
state that was taken back and a state loaded too early all show at once.
"""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from dbos_actors.clock import SystemClock
from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.runtime import (
    ActorCell,
    ActorLimits,
    Job,
    JobCell,
    MailboxBudget,
    Supervisor,
    SupervisorLimits,
    Turn,
)

Value = tuple[Any, ...]

MAIN = "main"
"""The part of the state that is always resident."""

REFUSED = UnavailableError("the commit was refused")
AWAY = UnavailableError("the store is away")


class BugError(Exception):
    """What a handler with a bug raises."""


@dataclass(frozen=True, slots=True)
class Request:
    """``act``, given the actor and this request, is the handler."""

    act: Callable[[Recorder, Request], Turn | Job]
    part: str = MAIN
    tag: Any = None


@dataclass(eq=False, slots=True)
class FakeCall:
    """Remembers every answer it was given, also those that came when it had one."""

    request: Request
    deadline: float | None = None
    on_answer: Callable[[FakeCall], None] | None = None
    answered: bool = False
    answers: list[Any] = field(default_factory=list)

    def reply(self, message: Any) -> None:
        self._answer(message)

    def fail(self, error: Exception) -> None:
        self._answer(error)

    def _answer(self, answer: Any) -> None:
        self.answers.append(answer)
        if not self.answered:
            self.answered = True
            if self.on_answer is not None:
                self.on_answer(self)

    @property
    def answer(self) -> Any:
        assert self.answered, "not answered"
        return self.answers[0]


@dataclass(eq=False, slots=True)
class Fetch:
    """A part on its way."""

    actor: Recorder
    part: str
    arrived: Callable[[UnavailableError | None], None]


class FakeStore:
    """A `CommitLog` and the data behind it."""

    def __init__(self) -> None:
        self.data: dict[tuple[str, str], Value] = {}
        self.events: list[Any] = []
        self.queue: list[Turn] = []
        self.fetches: list[Fetch] = []
        self.is_current = True
        self.is_full = False
        self.refuses_next = False
        self.committing = False
        self.load_error: Exception | None = None
        self.next_load_error: Exception | None = None
        self.problems: list[str] = []
        self.loads = 0
        self.loads_may_finish = trio.Event()
        self.loads_may_finish.set()

    def value(self, key: str, part: str = MAIN) -> Value:
        return self.data.get((key, part), ())

    # CommitLog

    def submit(self, submission: Turn) -> None:
        if self.is_full or self.refuses_next:
            self.refuses_next = False
            raise OverloadedError("the commit queue", limit=0, unit="bytes")
        self.queue.append(submission)

    # What happens to what is queued

    def commit(self, turns: int | None = None, *, lose_replies: bool = False) -> None:
        batch, self.queue = _split(self.queue, turns)
        for turn in batch:
            for command in turn.commands:
                self._execute(command)
        self.committing = True
        for turn in batch:
            turn.committed(None if lose_replies else [b"OK"] * len(turn.commands))
        self.committing = False

    def refuse(self, turns: int | None = None) -> None:
        """Refuse a batch, and with it everything queued of the actors in it."""
        batch, _ = _split(self.queue, turns)
        owners = {id(turn.owner): turn.owner for turn in batch}
        refused = [turn for turn in self.queue if id(turn.owner) in owners]
        self.queue = [turn for turn in self.queue if id(turn.owner) not in owners]
        for turn in refused:
            turn.refused(REFUSED)
        for owner in owners.values():
            owner.store_refused(REFUSED)

    def arrive(self, index: int = 0, error: UnavailableError | None = None) -> None:
        fetch = self.fetches.pop(index)
        if error is None:
            fetch.actor.parts[fetch.part] = self.value(fetch.actor.key, fetch.part)
        fetch.arrived(error)

    def _execute(self, command: bytes) -> None:
        kind, *arguments = ast.literal_eval(command.decode())
        if kind == "event":
            self.events.append(arguments[0])
            return
        key, part, value = arguments
        assert value[:-1] == self.value(key, part), "a write decided on another state"
        self.data[key, part] = value


def _split(queue: list[Turn], turns: int | None) -> tuple[list[Turn], list[Turn]]:
    at = len(queue) if turns is None else turns
    return queue[:at], queue[at:]


class Recorder:
    """The actor: each part of its state is the tags of the writes to it, in order."""

    def __init__(self, key: str, cell: ActorCell, store: FakeStore) -> None:
        self.key = key
        self.cell = cell
        self.store = store
        self.parts: dict[str, Value] = {}
        self.is_released = False
        self.fetch_error: Exception | None = None
        self._inside = False

    async def load(self) -> None:
        store = self.store
        store.loads += 1
        if any(turn.owner is self.cell and turn.changes for turn in store.queue):
            store.problems.append(f"{self.key} was loaded with writes in the queue")
        await trio.lowlevel.checkpoint()
        value = store.value(self.key)
        error = store.load_error or store.next_load_error
        store.next_load_error = None
        await store.loads_may_finish.wait()
        if error is not None:
            raise error
        self.parts[MAIN] = value

    def missing(self, request: Request) -> str | None:
        return None if request.part in self.parts else request.part

    def fetch(self, part: Hashable, arrived: Callable[[UnavailableError | None], None]) -> None:
        assert isinstance(part, str)
        self.store.fetches.append(Fetch(self, part, arrived))

    def handle(self, request: Request) -> Turn | Job:
        assert not self._inside, "a turn within a turn"
        assert not self.is_released
        self._inside = True
        try:
            return request.act(self, request)
        finally:
            self._inside = False

    def apply(self, part: Hashable, value: Any) -> None:
        assert isinstance(part, str)
        self.parts[part] = value

    def released(self) -> None:
        assert not self.is_released
        self.is_released = True

    def extended(self, request: Request) -> tuple[list[bytes], list[tuple[str, Value]]]:
        """The commands and changes of a write."""
        value = (*self.parts[request.part], request.tag)
        return [write_command(self.key, request.part, value)], [(request.part, value)]


def write_command(key: str, part: str, value: Value) -> bytes:
    return repr(("write", key, part, value)).encode()


def event_command(event: Any) -> bytes:
    return repr(("event", event)).encode()


# --------------------------------------------------------------- handlers


def do_read(actor: Recorder, request: Request) -> Turn:
    return Turn(actor.parts[request.part])


def do_write(actor: Recorder, request: Request) -> Turn:
    commands, changes = actor.extended(request)
    return Turn(request.tag, commands=commands, changes=changes)


def do_log(actor: Recorder, request: Request) -> Turn:
    """Writes something that is no part of the state."""
    return Turn(request.tag, commands=[event_command(request.tag)])


def do_crash(actor: Recorder, request: Request) -> Turn:
    raise BugError


def do_refuse(actor: Recorder, request: Request) -> Turn:
    raise RefusedError("no")


def do_write_and_then(
    then: Callable[[Turn, Sequence[object] | None], Any],
) -> Callable[[Recorder, Request], Turn]:
    def act(actor: Recorder, request: Request) -> Turn:
        commands, changes = actor.extended(request)
        return Turn(request.tag, commands=commands, changes=changes, then=then)

    return act


def raise_bug(turn: Turn, replies: Sequence[object] | None) -> Any:
    raise BugError


def do_job_write(actor: Recorder, request: Request) -> Job:
    """Two commits, each computed from what was in memory when the job began."""

    async def run(cell: JobCell) -> Any:
        part = request.part
        value = actor.parts[part]
        for step in ("first", "second"):
            value = (*value, (request.tag, step))
            await cell.commit(write_command(actor.key, part, value))
        return request.tag

    return Job(run)


def read(part: str = MAIN) -> FakeCall:
    return FakeCall(Request(do_read, part))


def write(tag: Any, part: str = MAIN) -> FakeCall:
    return FakeCall(Request(do_write, part, tag))


def call(act: Callable[[Recorder, Request], Turn | Job], tag: Any = None) -> FakeCall:
    return FakeCall(Request(act, tag=tag))


# ------------------------------------------------------------- the actors


class Actors:
    """A supervisor of recorders over a fake store."""

    def __init__(self, store: FakeStore, limits: SupervisorLimits) -> None:
        self.store = store
        self.made: list[Recorder] = []
        self.supervisor = Supervisor(
            make=self._make,
            log=store,
            clock=SystemClock(),
            limits=limits,
            size_of=lambda _: 1,
        )

    def _make(self, key: str, cell: ActorCell) -> Recorder:
        actor = Recorder(key, cell, self.store)
        self.made.append(actor)
        return actor

    def send(self, *calls: FakeCall, to: str = "a") -> None:
        for each in calls:
            self.supervisor.deliver(to, each)

    def cell(self, key: str = "a") -> ActorCell:
        cell = self.supervisor.get(key)
        assert cell is not None
        return cell

    def actor(self, key: str = "a") -> Recorder:
        behaviour = self.cell(key).behaviour
        assert isinstance(behaviour, Recorder)
        return behaviour

    async def ready(self, *keys: str) -> None:
        """Have the actors in memory, with nothing to do."""
        for key in keys or ("a",):
            self.send(read(), to=key)
        await wait_all_tasks_blocked()

    async def settle(self) -> None:
        """Let everything that is under way finish."""
        while True:
            await wait_all_tasks_blocked()
            if self.store.fetches:
                self.store.arrive()
            elif self.store.queue:
                self.store.commit()
            else:
                return


def bare_cell(store: FakeStore) -> ActorCell:
    """A cell without a supervisor, for tests that run its task themselves."""
    return ActorCell(
        "a",
        make=lambda key, cell: Recorder(key, cell, store),
        log=store,
        clock=SystemClock(),
        limits=ActorLimits(),
        mailbox_budget=MailboxBudget(1_000_000, lambda _: 1),
        unroute=lambda _: None,
    )


@asynccontextmanager
async def running(
    *,
    actor: ActorLimits | None = None,
    max_resident: int = 1_000,
    idle_s: float = 300.0,
    mailbox_bytes: int = 1_000_000,
) -> AsyncIterator[Actors]:
    limits = SupervisorLimits(
        actor=actor or ActorLimits(),
        max_resident=max_resident,
        idle_s=idle_s,
        mailbox_bytes=mailbox_bytes,
    )
    actors = Actors(FakeStore(), limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(actors.supervisor.run)
        yield actors
        nursery.cancel_scope.cancel()
    assert not actors.store.problems
