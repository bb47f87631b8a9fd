"""Who is called after what happens in the store."""

from __future__ import annotations

from collections.abc import Callable


class Listeners:
    """The callbacks of `Store.on_batch` and `Store.on_reload`, and the reader's."""

    __slots__ = ("of_absences", "of_losses", "of_outcomes")

    def __init__(self) -> None:
        self.of_outcomes: list[Callable[[], None]] = []
        self.of_absences: list[Callable[[str], None]] = []
        self.of_losses: list[Callable[[], None]] = []

    def on_outcomes(self) -> None:
        """Some submissions or reads have just been given their outcomes."""
        for callback in self.of_outcomes:
            callback()

    def on_away(self, reason: str) -> None:
        """Redis has stopped answering."""
        for callback in self.of_absences:
            callback(reason)

    def on_loss(self) -> None:
        """Redis has lost commits for good: everyone has to load their state again."""
        for callback in self.of_losses:
            callback()
