"""Commands that the server commits for itself, outside any actor's turn.

Retention, snapshots and repairs write this way. No actor has what they write in its
memory. So when the store refuses such a commit, no actor has to be loaded again, and
only the caller is told.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from dbos_actors.errors import UnavailableError


class OwnCommit:
    """One commit of the server's own. A `Submission`, and its own `Owner`."""

    __slots__ = (
        "_ended",
        "_error",
        "_gives_up",
        "_replies",
        "commands",
        "deadline_s",
        "frees_memory",
        "key",
        "size_bytes",
    )

    def __init__(
        self, commands: Sequence[bytes], *, name: str, frees_memory: bool, gives_up: bool
    ) -> None:
        """See `Store.commit` for the arguments."""
        self.key = name
        self.commands = commands
        self.size_bytes = sum(map(len, commands))
        self.deadline_s: float | None = None
        self.frees_memory = frees_memory
        self._gives_up = gives_up
        self._ended = trio.Event()
        self._error: UnavailableError | None = None
        self._replies: Sequence[object] | None = None

    @property
    def owner(self) -> OwnCommit:
        return self

    @property
    def has_ended(self) -> bool:
        """Whether `wait` returns or raises at once."""
        return self._ended.is_set()

    async def wait(self) -> Sequence[object] | None:
        """Wait until the commands are in the store.

        Returns the replies to them; None if they were lost with the connection.

        Raises:
            UnavailableError: they are not in the store and never will be; or, if this commit
                gives up, Redis is away for longer than callers wait, and they may get there yet.

        If cancelled, the commands may still be committed.
        """
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._replies

    def committed(self, replies: Sequence[object] | None) -> None:
        self._replies = replies
        self._ended.set()

    def refused(self, error: UnavailableError) -> None:
        self._end_with(error)

    def give_up(self, error: UnavailableError) -> None:
        if self._gives_up:
            self._end_with(error)

    def store_refused(self, error: UnavailableError) -> None:
        """As an owner: there is nothing to load again."""

    def _end_with(self, error: UnavailableError) -> None:
        if not self._ended.is_set():
            self._error = error
            self._ended.set()
