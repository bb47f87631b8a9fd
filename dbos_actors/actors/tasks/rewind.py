"""How the next incarnation of the scheduler's actor gets the book of the one before.

When the store refuses a commit, the incarnation ends: its book is ahead of the store by the changes
that were refused. Reading a million tasks back takes seconds. Undoing the refused changes, the last
one first, takes as long as making them did, and leaves the book that the store stands for.

That holds only if the changes were refused and nothing else has happened. The book is read back in
full if a handler has raised, if Redis has executed a part of a refused turn, if Redis has lost
commits, and if a snapshot was switched to meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import Final, NamedTuple, Self

import trio

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import (
    DamagedKeyError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from dbos_actors.runtime import Turn

_UNDONE_AT_ONCE: Final = 100
"""Changes that are undone before other tasks run: 2 ms, if each is about one task."""


_REFUSALS: Final = (RefusedError, OverloadedError, UnavailableError)


class RewindableTurn(Turn):
    """A turn whose change is undone if the store refuses it."""

    __slots__ = ("change", "rewind")

    rewind: Rewind
    change: Change

    def refused(self, error: UnavailableError) -> None:
        """Tell the caller, and have the change undone."""
        self.rewind.refused(self.change, error)
        super().refused(error)


class Undoing(NamedTuple):
    """A book, and the last changes to it, which are to be undone; the first one first."""

    book: TaskBook
    changes: list[Change]


async def undo(undoing: Undoing, now: Callable[[], Now]) -> int:
    """Undo the changes; how many bytes their journal entries have.

    Other tasks run in between. If cancelled, some are undone, and the book is of no use.
    """
    for number, change in enumerate(reversed(undoing.changes), 1):
        undoing.book.undo(change, now())
        if number % _UNDONE_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return sum(change.size_bytes for change in undoing.changes)


class Rewind:
    """What an incarnation leaves to the next one.

    As a context manager it watches what is done to the book: an exception that is no refusal is a
    bug, after which the book cannot be trusted.
    """

    __slots__ = ("_book", "_is_exact", "_refused")

    def __init__(self) -> None:
        self._book: TaskBook | None = None
        self._refused: list[Change] = []
        # Whether the book without the refused changes is what the store stands for.
        self._is_exact = True

    def refused(self, change: Change, error: UnavailableError) -> None:
        """The store has refused the turn of an applied change."""
        if isinstance(error, DamagedKeyError):
            self.spoil()
        self._refused.append(change)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, _REFUSALS):
            self.spoil()

    def spoil(self) -> None:
        """Memory cannot be trusted, or the store is not where it was: it has to be read."""
        self._is_exact = False

    def leave(self, book: TaskBook) -> None:
        """The incarnation with this book ends; nothing of it waits for a commit any more."""
        self._book = book

    def take(self) -> Undoing | None:
        """What the next incarnation begins with; None: with what it reads from the store.

        The book is another object than before, so that nobody who has looked at the refused
        changes takes it for the one that it has looked at.
        """
        book, changes, is_exact = self._book, self._refused, self._is_exact
        self._book, self._refused, self._is_exact = None, [], True
        if book is None or not is_exact or not changes:
            return None
        first = book.sequence - len(changes) + 1
        if [change.sequence for change in changes] != list(range(first, book.sequence + 1)):
            return None
        return Undoing(copy(book), changes)
