"""Who is called after what happens in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from dbos_actors.store.submission import Submission

Follower = Callable[
    [Iterable[tuple[Submission, float]], Sequence[object] | None, bool],
    None,
]


class Listeners:
    """What is entered for `Store.tell_within`, the callbacks of `Store.on_reload`, and the
    reader's.
    """

    __slots__ = ("follower", "of_absences", "of_losses", "outcomes")

    def __init__(self) -> None:
        self.outcomes: AbstractContextManager[object] = nullcontext()
        """Entered while submissions or reads are given their outcomes."""
        self.follower: Follower | None = None
        """See `Store.follow`."""
        self.of_absences: list[Callable[[str], None]] = []
        self.of_losses: list[Callable[[], None]] = []

    def on_away(self, reason: str) -> None:
        """Redis has stopped answering."""
        for callback in self.of_absences:
            callback(reason)

    def on_loss(self) -> None:
        """Redis has lost commits for good: everyone has to load their state again."""
        for callback in self.of_losses:
            callback()
