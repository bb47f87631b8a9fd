"""How streams that may last for ever are told that the server ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final

import trio

DRAINING: Final = "the server is draining"
"""What a stream's client is told, with UNAVAILABLE; it may go on at another server."""

_ENDED_AT_ONCE: Final = 8
"""Streams that are told before other tasks run: each runs for a fifth of a millisecond then."""


class Moment:
    """Something that comes once, and ends the blocks that run until then."""

    __slots__ = ("_blocks", "_has_come")

    def __init__(self) -> None:
        self._has_come = False
        self._blocks: dict[trio.CancelScope, None] = {}

    @property
    def has_come(self) -> bool:
        """Whether it has come. Some blocks may not be ended yet."""
        return self._has_come

    @contextmanager
    def until(self) -> Iterator[None]:
        """Run the block until the moment comes, and then cancel it; at once if it has come.

        A block that waits costs no task of its own.
        """
        with trio.CancelScope() as scope:
            if self._has_come:
                scope.cancel()
            else:
                self._blocks[scope] = None
            try:
                yield
            finally:
                self._blocks.pop(scope, None)

    async def come(self) -> None:
        """Let the moment come. Blocks are cancelled a few at a time, and other tasks run between.

        Returns when all are cancelled that there were. If this is cancelled, the rest is not.
        """
        self._has_come = True
        while scopes := list(islice(self._blocks, _ENDED_AT_ONCE)):
            for scope in scopes:
                del self._blocks[scope]
                scope.cancel()
            await trio.lowlevel.checkpoint()


class Draining:
    """The server's drain, for its streams."""

    __slots__ = ("begun", "overdue")

    def __init__(self) -> None:
        self.begun = Moment()
        """Nothing more is taken; what was taken is finished."""
        self.overdue = Moment()
        """What is not finished by now is given up."""
