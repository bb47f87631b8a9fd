"""What the store asks of those who write and read through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dbos_actors.errors import UnavailableError


class Owner(Protocol):
    """Whoever's memory mirrors the writes: an actor."""

    @property
    def key(self) -> str:
        """What it is called: an agent's id, say."""
        ...

    def store_refused(self, error: UnavailableError, /) -> None:
        """Some of its writes are not in the store and never will be: start again from the store.

        Called once per refused commit, after `Submission.refused` of each of its submissions;
        none of them is queued or in flight any more.
        """
        ...


class Submission(Protocol):
    """One turn's share of a commit.

    Without commands it is a barrier: it is committed when everything submitted before it has its
    outcome, and the store is known to be owned still. None of the methods may raise; none is
    called from within `Store.submit`.
    """

    @property
    def owner(self) -> Owner: ...

    @property
    def commands(self) -> Sequence[bytes]:
        """Packed commands, executed in one transaction with others."""
        ...

    @property
    def size_bytes(self) -> int:
        """The length of all commands together."""
        ...

    @property
    def deadline_s(self) -> float | None:
        """When the caller stops waiting, on the monotonic clock."""
        ...

    @property
    def frees_memory(self) -> bool:
        """Whether the commands only delete: they are accepted also when Redis is out of memory.

        Such a command may have at most 4,000 arguments.
        """
        ...

    def committed(self, replies: Sequence[object] | None, /) -> None:
        """It is in the store. ``replies`` are those to its own commands, none of them an error.

        None: the replies were lost with the connection, or with a commit that was repeated.
        """
        ...

    def refused(self, error: UnavailableError, /) -> None:
        """It is not in the store and never will be.

        A `DamagedKeyError` says that a part of it is, or that it was decided upon such a part.
        """
        ...

    def give_up(self, error: UnavailableError, /) -> None:
        """Redis is away and the caller has waited long enough; it stays queued, outcome open.

        At most once; `committed` or `refused` still follows.
        """
        ...
