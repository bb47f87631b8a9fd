"""A commit log that keeps nothing beyond the process: for examples, tests and caches."""

from __future__ import annotations

from collections.abc import Callable

import trio

from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.runtime.turn import Turn
from dbos_actors.sleeper import Sleeper

QUEUE_BYTES = 64 * 1024 * 1024
"""As much as may wait in all mailboxes."""

_TURN_BYTES = 256
"""What a queued turn counts for besides its commands, so that turns without any are bounded too."""


class MemoryLog(Sleeper):
    """A `CommitLog` that commits all turns that wait together, in order.

    It is the log of one family of actors, or of several in one process.
    """

    __slots__ = ("_execute", "_is_running", "_limit_bytes", "_queue", "_queue_bytes")

    def __init__(
        self, execute: Callable[[bytes], object], *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        """``execute`` does what one command says and returns its reply. It must not raise.

        ``queue_bytes`` bounds the turns that wait to be committed.
        """
        super().__init__()
        self._execute = execute
        self._limit_bytes = queue_bytes
        self._queue: list[Turn] = []
        self._queue_bytes = 0
        self._is_running = False

    @property
    def is_current(self) -> bool:
        """Whether it runs: nobody else can change what it has committed."""
        return self._is_running

    def submit(self, submission: Turn, /) -> None:
        """Queue a turn.

        Raises:
            OverloadedError: too much waits; nothing is queued.
            UnavailableError: the log does not run.
        """
        if not self._is_running:
            raise UnavailableError("the commit log does not run")
        size_bytes = submission.size_bytes + _TURN_BYTES
        if self._queue_bytes + size_bytes > self._limit_bytes:
            raise OverloadedError("the commit queue", limit=self._limit_bytes, unit="bytes")
        self._queue_bytes += size_bytes
        self._queue.append(submission)
        self.wake()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled; turns that wait then are refused with `UnavailableError`."""
        self._is_running = True
        task_status.started()
        try:
            while True:
                if self._queue:
                    self._commit(self._take())
                    await trio.lowlevel.checkpoint()
                else:
                    await self.sleep()
        finally:
            self._is_running = False
            error = UnavailableError("the commit log has stopped")
            for turn in self._take():
                turn.refused(error)

    def _take(self) -> list[Turn]:
        batch, self._queue = self._queue, []
        self._queue_bytes = 0
        return batch

    def _commit(self, batch: list[Turn]) -> None:
        execute = self._execute
        replies = [[execute(command) for command in turn.commands] for turn in batch]
        for turn, own in zip(batch, replies, strict=True):
            turn.committed(own)
