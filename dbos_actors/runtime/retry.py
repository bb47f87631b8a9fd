"""Work in the background that is tried again until the store is available."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from dbos_actors.errors import OverloadedError, UnavailableError

T = TypeVar("T")

_PAUSE_S = 1.0


async def until_available(operation: Callable[[], Awaitable[T]]) -> T:
    """The result of ``operation``, tried again as long as the store is away or overloaded."""
    while True:
        try:
            return await operation()
        except (UnavailableError, OverloadedError):
            await trio.sleep(_PAUSE_S)
