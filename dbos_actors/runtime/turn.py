"""What an actor's handler returns: the effects of one turn, not yet done.

A handler is synchronous and changes nothing. It returns a `Turn`, which says
what the actor's state becomes, which commands are to be committed, and what the
caller is answered. When the work has to wait for something it returns a `Job`.
The cell that runs the handler applies the turn: state and commit queue change
together or not at all.

A command is bytes. The runtime counts them and hands them to the commit log;
only that knows what they mean. In this server they are packed Redis commands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, Protocol

from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.runtime.call import Call


class CommitLog(Protocol):
    """Where turns become durable, in the order they are submitted."""

    @property
    def is_current(self) -> bool:
        """Whether committed state in memory may be shown without asking the store first."""
        ...

    def submit(self, submission: Turn, /) -> None:
        """Queue a turn. Raises `OverloadedError`, and then nothing is queued."""
        ...


class Deferred:
    """The type of `DEFERRED`."""

    __slots__ = ()


DEFERRED: Final = Deferred()
"""Returned by a turn's `then` when it will answer the call itself, later."""


class Again:
    """The type of `AGAIN`."""

    __slots__ = ()


AGAIN: Final = Again()
"""Returned by a job: the message has its turn now, on the state loaded anew, before any other."""


class Refusal:
    """An answer that says no: the call fails with ``error``.

    A turn gives it as its answer, or its `then` returns it.
    """

    __slots__ = ("error",)

    def __init__(self, error: RefusedError | OverloadedError | UnavailableError) -> None:
        self.error = error


class TurnOwner(Protocol):
    """What a submitted turn needs of its actor; `ActorCell` is one."""

    @property
    def key(self) -> str: ...

    def turn_ended(self, turn: Turn, /) -> None:
        """The turn is committed or refused, and its caller has been answered."""
        ...

    def failed(self, call: Call, error: Exception, /) -> None:
        """The turn's `then` raised ``error``."""
        ...

    def reload(self) -> None:
        """Drop the state and load it again."""
        ...

    def store_refused(self, error: UnavailableError, /) -> None:
        """A commit was refused, after each of its turns was; see `store.Owner`."""
        ...


class JobCell(Protocol):
    """What a `Job` may use of its actor; `ActorCell` is one."""

    @property
    def key(self) -> str: ...

    async def commit(self, *commands: bytes, frees_memory: bool = False) -> None:
        """Commit ``commands`` and wait for it; see `ActorCell.commit`."""
        ...


class Turn:
    """The effects of one turn; once submitted, that turn's share of a commit.

    The cell that submits the turn sets `owner`, `call` and `deadline_s`. They are
    fields of the turn, and not of a second object around it: making that object
    was measured to cost 0.14 us, of the 5.7 us that the turn of a StoreResult and
    its share of a commit take.
    """

    __slots__ = (
        "answer",
        "call",
        "changes",
        "commands",
        "deadline_s",
        "frees_memory",
        "owner",
        "size_bytes",
        "then",
    )

    owner: TurnOwner
    call: Call
    deadline_s: float | None

    def __init__(
        self,
        answer: Any,
        *,
        commands: Sequence[bytes] = (),
        changes: Sequence[tuple[Hashable, Any]] = (),
        then: Callable[[Turn, Sequence[object] | None], Any] | None = None,
        frees_memory: bool = False,
    ) -> None:
        """Describe a turn.

        ``answer`` goes to the caller once ``commands`` are committed; a
        `Refusal` fails the call. ``changes`` are the parts of the actor's state
        that get new values, (part, value) pairs for `Behaviour.apply`.

        ``then``, if given, is called after the commit with the turn and the
        replies to its commands (None when they were lost with the connection).
        It returns what to answer instead, or `DEFERRED`. It may let an
        `OverloadedError` or `UnavailableError` of the store through, which the
        caller gets; anything else that it raises is a bug, and the actor crashes.

        A turn that ``frees_memory`` is committed apart from those that need
        some, so that it gets through when the store has run out.
        """
        self.answer = answer
        self.commands = commands
        self.changes = changes
        self.then = then
        self.frees_memory = frees_memory
        size = 0
        for command in commands:
            size += len(command)
        self.size_bytes = size

    def also(self, command: bytes, part: Hashable, value: Any) -> None:
        """Add a command, after the others, and the change that it makes; before submission."""
        self.commands = [*self.commands, command]
        self.changes = [*self.changes, (part, value)]
        self.size_bytes += len(command)

    def committed(self, replies: Sequence[object] | None) -> None:
        """Answer the caller; the store has taken the turn."""
        then = self.then
        try:
            answer = self.answer if then is None else then(self, replies)
            if answer.__class__ is Refusal:
                self.call.fail(answer.error)
            elif answer is not DEFERRED:
                self.call.reply(answer)
        except Exception as error:  # noqa: BLE001 - the actor's, not the store's that calls
            self.owner.failed(self.call, error)
        self.owner.turn_ended(self)

    def refused(self, error: UnavailableError) -> None:
        """Tell the caller; the store has not taken the turn and never will."""
        # First, so that nothing is answered from memory that is ahead of the store.
        self.owner.reload()
        self.call.fail(error)
        self.owner.turn_ended(self)

    def give_up(self, error: UnavailableError) -> None:
        """Tell the caller, who has waited long enough; the turn stays queued."""
        self.call.fail(error)


class Job:
    """Work that has to wait; the actor does nothing else until it is done, then reloads."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[JobCell], Awaitable[Any]]) -> None:
        """``run(cell)`` is awaited in the actor's task, and returns the answer or `AGAIN`.

        It may raise `RefusedError`, `OverloadedError` and `UnavailableError`, which the caller
        gets. It is cancelled when the actors stop.
        """
        self.run = run


class Behaviour(Protocol):
    """One incarnation of an actor: its state, and handlers that return effects."""

    async def load(self) -> None:
        """Fill the state from the store. Raises `UnavailableError`."""
        ...

    def missing(self, request: Any, /) -> Hashable | None:
        """The part of the state that must be fetched before ``request`` can be handled."""
        ...

    def fetch(self, part: Hashable, arrived: Callable[[UnavailableError | None], None], /) -> None:
        """Start fetching ``part``; ``arrived`` is called when it is resident, or with the error.

        Raises `OverloadedError`, and then ``arrived`` is not called.
        """
        ...

    def handle(self, request: Any, /) -> Turn | Job:
        """Decide what ``request`` does. May raise `RefusedError` to refuse it."""
        ...

    def apply(self, part: Hashable, value: Any, /) -> None:
        """Give ``part`` of the state its new value. Must not raise."""
        ...

    def released(self) -> None:
        """Give back what is held outside the actor; its state is dropped. Must not raise.

        A fetch of this incarnation may still be under way.
        """
        ...
