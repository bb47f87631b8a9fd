"""When a server's process collects garbage, and gives memory back.

Almost everything a call makes is freed by reference counts, and what has ended lets go of itself,
so a collection finds next to nothing. What it costs is the walk over the containers that are
alive, about 0.2 µs each, while every call waits. So:

- A young collection walks what was made since the last ones, `WALKED_MAX` containers at most,
  and what it finds alive is frozen: no later collection walks it again.
- The frozen ones are walked only when the server is idle, and only if they are so few that it
  takes a moment. Then also freed memory goes back to the system.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from time import process_time
from typing import Final, NoReturn

import trio

_YOUNGEST: Final = 5_000
_YOUNGER: Final = 5
_THRESHOLDS: Final = (_YOUNGEST, _YOUNGER, 1_000_000_000)
"""Generation 0 after so many more containers than were freed, 1 after so many of those; 2 never
by itself. With Python's defaults a growing server spent half of its time on collections."""

WALKED_MAX: Final = _YOUNGEST * (_YOUNGER + 2)
"""Containers that a collection walks at most, give or take a hundredth: some 10 ms."""

FROZEN_WALKED_MAX: Final = 150_000
"""Frozen containers that are walked when the server is idle: some 30 ms. A server has 75,000 when
it has started, and some ten more for each resident agent."""

_LOOK_S: Final = 5.0
_IDLE_CPU_S: Final = 0.05 * _LOOK_S
"""Less processor time than this between two looks: the server is idle."""
_WORK_CPU_S: Final = 1.0
"""Processor time since memory was last tidied, after which it is worth doing again."""


def tune_garbage_collection() -> None:
    """For a process that is nothing but this server; an embedding program decides for itself."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    if _freeze_survivors not in gc.callbacks:
        gc.callbacks.append(_freeze_survivors)


def _freeze_survivors(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] >= 1:
        gc.freeze()


async def tidy_when_idle() -> NoReturn:
    """Collect what is few and trim the heap whenever the server has become idle."""
    trim = _trimmer()
    tidied_s = seen_s = process_time()
    while True:
        await trio.sleep(_LOOK_S)
        before_s, seen_s = seen_s, process_time()
        if seen_s - before_s < _IDLE_CPU_S and seen_s - tidied_s > _WORK_CPU_S:
            if gc.get_freeze_count() <= FROZEN_WALKED_MAX:
                gc.unfreeze()
                gc.collect()
            trim()
            tidied_s = seen_s = process_time()


def _trimmer() -> Callable[[], None]:
    """What gives free pages back: malloc_trim(3) of glibc; elsewhere nothing does."""
    with suppress(OSError, AttributeError):
        malloc_trim = ctypes.CDLL(None).malloc_trim
        return lambda: malloc_trim(0)
    return lambda: None
