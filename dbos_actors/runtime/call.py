"""A message in a mailbox, and where its answer goes."""

from __future__ import annotations

from typing import Any, Protocol

import trio


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


class Waiter:
    """A call of the server's own, whose answer one of its tasks awaits."""

    __slots__ = ("_answer", "_done", "_error", "answered", "deadline", "request")

    def __init__(self, request: Any = None, *, deadline: float | None = None) -> None:
        self.request = request
        self.deadline = deadline
        self.answered = False
        self._answer: Any = None
        self._error: Exception | None = None
        self._done = trio.Event()

    def reply(self, message: Any) -> None:
        if not self.answered:
            self._answer = message
            self.answered = True
            self._done.set()

    def fail(self, error: Exception) -> None:
        if not self.answered:
            self._error = error
            self.answered = True
            self._done.set()

    async def wait(self) -> Any:
        """Wait for the answer and return it, or raise what the call failed with.

        If cancelled, the call counts as answered: its message is dropped if it
        still waits for its turn.
        """
        try:
            await self._done.wait()
        except trio.Cancelled:
            self.answered = True
            raise
        if self._error is not None:
            raise self._error
        return self._answer
