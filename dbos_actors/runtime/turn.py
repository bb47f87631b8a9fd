"""What an actor's handler returns: the effects of one turn, not yet done.

A handler is synchronous and changes nothing. It returns a `Turn`, which says
what the actor's state becomes, what is to be written, and what the caller is
told; or a `Job`, when the work needs to wait. The cell that runs the handler
carries the turn out: state and commit queue change together or not at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from dbos_actors.errors import UnavailableError

if TYPE_CHECKING:
    from dbos_actors.runtime.actor_cell import ActorCell


class Reply(Protocol):
    """Where the answer to one message goes. Every method is a no-op once `answered`."""

    @property
    def answered(self) -> bool:
        """Replied, failed, expired, or nobody waits any more."""
        ...

    def reply(self, message: Any, /) -> None: ...

    def fail(self, error: Exception, /) -> None: ...


class Call(Reply, Protocol):
    """A message in a mailbox: a request and the address of its answer."""

    @property
    def request(self) -> Any: ...

    @property
    def deadline(self) -> float | None:
        """Monotonic seconds, or None."""
        ...


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


class Turn:
    """The effects of one turn; once submitted, that turn's share of a commit."""

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

    owner: ActorCell
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

        ``answer`` goes to the caller once ``commands``, packed Redis commands,
        are committed; ``changes`` are the parts of the actor's state that get
        new values, (part, value) pairs for `Behaviour.apply`. ``then``, if
        given, is called after the commit with the turn and the replies to its
        commands (None when they were lost with the connection) and returns
        what to answer instead, or `DEFERRED`. A turn that ``frees_memory`` is
        committed apart from those that need some, so that it gets through when
        the store has run out.
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
            if answer is not DEFERRED:
                self.call.reply(answer)
        except Exception as error:  # noqa: BLE001 - the actor's, not the store's that calls
            self.owner.failed(self.call, error)
        self.owner.settled(self)

    def refused(self, error: UnavailableError) -> None:
        """Tell the caller; the store has not taken the turn and never will."""
        # First, so that nothing is answered from memory that is ahead of the store.
        self.owner.reload()
        self.call.fail(error)
        self.owner.settled(self)

    def give_up(self, error: UnavailableError) -> None:
        """Tell the caller, who has waited long enough; the turn stays queued."""
        self.call.fail(error)


class Job:
    """Work that has to wait; the actor does nothing else until it is done, then reloads."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[ActorCell], Awaitable[Any]]) -> None:
        """``run(cell)`` is awaited in the actor's task, and returns the answer or `AGAIN`."""
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
        """Decide what ``request`` does. Raises `RefusedError` to refuse it."""
        ...

    def apply(self, part: Hashable, value: Any, /) -> None:
        """Give ``part`` of the state its new value. Must not raise."""
        ...

    def released(self) -> None:
        """Give back what is held outside the actor; its state is dropped. Must not raise.

        A fetch of this incarnation may still be under way.
        """
        ...
