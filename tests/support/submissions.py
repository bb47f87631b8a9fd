"""Submissions and owners that record what the store tells them."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from dbos_actors.errors import UnavailableError


class RecordingOwner:
    """Counts how often it was told to start again."""

    def __init__(self, name: str = "owner") -> None:
        self.name = self.key = name
        self.refusals: list[UnavailableError] = []

    def store_refused(self, error: UnavailableError) -> None:
        self.refusals.append(error)


class RecordingSubmission:
    """Keeps every outcome; `wait` returns the first that settles it."""

    def __init__(
        self,
        owner: RecordingOwner,
        *commands: bytes,
        deadline_s: float | None = None,
        frees_memory: bool = False,
    ) -> None:
        self.owner = owner
        self.commands: Sequence[bytes] = commands
        self.size_bytes = sum(map(len, commands))
        self.deadline_s = deadline_s
        self.frees_memory = frees_memory
        self.outcomes: list[Sequence[object] | UnavailableError | None] = []
        self.give_ups: list[UnavailableError] = []
        self._settled = trio.Event()

    def committed(self, replies: Sequence[object] | None) -> None:
        self.outcomes.append(replies)
        self._settled.set()

    def refused(self, error: UnavailableError) -> None:
        self.outcomes.append(error)
        self._settled.set()

    def give_up(self, error: UnavailableError) -> None:
        self.give_ups.append(error)

    @property
    def outcome(self) -> Sequence[object] | UnavailableError | None:
        """The one outcome there must be."""
        (outcome,) = self.outcomes
        return outcome

    @property
    def replies(self) -> Sequence[object]:
        """Of the commit it must have been in."""
        outcome = self.outcome
        assert outcome is not None
        assert not isinstance(outcome, UnavailableError)
        return outcome

    @property
    def was_committed(self) -> bool:
        """Whether it is known to be in the store."""
        return any(not isinstance(outcome, UnavailableError) for outcome in self.outcomes)

    async def wait(self) -> Sequence[object] | UnavailableError | None:
        """Wait until it is settled, at most ten seconds."""
        with trio.fail_after(10):
            await self._settled.wait()
        return self.outcome
