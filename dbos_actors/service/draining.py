"""How streams that may last for ever are told that the server ends."""

from __future__ import annotations

from typing import Final

import trio

DRAINING: Final = "the server is draining"
"""What a stream's client is told, with UNAVAILABLE; it may go on at another server."""


class Draining:
    """The server's drain, for its streams."""

    __slots__ = ("begun", "overdue")

    def __init__(self) -> None:
        self.begun = trio.Event()
        """Nothing more is taken; what was taken is finished."""
        self.overdue = trio.Event()
        """What is not finished by now is given up."""
