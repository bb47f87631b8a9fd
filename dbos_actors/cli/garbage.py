"""When a server's process collects garbage, and gives memory back.

Almost everything a call makes is freed by reference counts, and what has ended lets go of itself,
so a collection finds next to nothing. What it costs is the walk over the containers that are
alive, about 0.2 µs each, while every call waits. So:

- A young collection walks what was made since the last ones, and what it finds alive is frozen: no
  later collection walks it again.
- Python begins a collection when more containers were made than freed. While as many end as begin,
  it begins none, and the next one would walk all that were made meanwhile. So the young ones are
  counted ten times a second, and collected when they are many.
- When much has been freed, memory goes back to the system, also while the server works. A few
  objects in Python's lists of free objects keep whole arenas of a mebibyte. A collection of
  everything empties these lists, and while nearly everything is frozen it walks nearly nothing.
- The frozen ones are walked only when the server is idle, and only if they are so few that it
  takes a moment. With 100,000 resident agents they are two million, and the walk takes a second.
  After 1.4 million writes it found nothing.
"""

from __future__ import annotations

import ctypes
import gc
import sys
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
it has started, and some twenty more for each resident agent."""

_COUNT_S: Final = 0.05
"""How often young containers are counted: a busy server makes less than 20,000 that stay in it."""
_COUNT_CPU_S: Final = 0.02
"""They are not counted after less processor time than this."""
_YOUNG_MAX: Final = 5_000
"""More are collected when they are counted: some 3 ms."""

_LOOK_S: Final = 1.0
"""How often it is looked whether memory can be given back."""
_FREED_BLOCKS: Final = 200_000
"""Memory is given back after so many blocks were freed, some 20 MB: a second of ending streams."""
_LAST_LOOKS: Final = 6
"""It is given back once more so many looks after that, for what was freed since. By then the
store has let go of the writes that it kept meanwhile."""

_IDLE_LOOKS: Final = 5
_IDLE_CPU_S: Final = 0.05 * _LOOK_S
"""Less processor time than this in each of so many looks: the server is idle."""
_WORK_CPU_S: Final = 1.0
"""Processor time since memory was last given back, after which an idle server does it again."""


async def tend_memory(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Collect garbage by the rules above, until cancelled.

    For a process that is nothing but this server; an embedding program decides for itself. To be
    started when the server is made: what there is by then is frozen.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    if _freeze_survivors not in gc.callbacks:
        gc.callbacks.append(_freeze_survivors)
    task_status.started()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_young_few)
        await _give_back()
    raise AssertionError("it never ends")


def _freeze_survivors(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] >= 1:
        gc.freeze()


async def _keep_young_few() -> NoReturn:
    """Collect young containers that Python does not, because as many others were freed."""
    counted_s = process_time()
    while True:
        await trio.sleep(_COUNT_S)
        used_s = process_time()
        if used_s - counted_s < _COUNT_CPU_S:
            continue
        counted_s = used_s
        if sum(len(gc.get_objects(generation=young)) for young in (0, 1)) > _YOUNG_MAX:
            gc.collect(1)


async def _give_back() -> NoReturn:
    """Give memory back when much has been freed, and whenever the server has become idle."""
    trim = _trimmer()
    blocks_max = sys.getallocatedblocks()
    given_back_s = seen_s = process_time()
    idle_looks = looks_left = 0
    while True:
        await trio.sleep(_LOOK_S)
        before_s, seen_s = seen_s, process_time()
        idle_looks = idle_looks + 1 if seen_s - before_s < _IDLE_CPU_S else 0
        blocks = sys.getallocatedblocks()
        blocks_max = max(blocks_max, blocks)
        looks_left -= 1
        is_idle = idle_looks >= _IDLE_LOOKS and seen_s - given_back_s > _WORK_CPU_S
        is_much_freed = blocks_max - blocks >= _FREED_BLOCKS
        if not (is_idle or is_much_freed or looks_left == 0):
            continue
        if is_much_freed:
            looks_left = _LAST_LOOKS
        if is_idle and gc.get_freeze_count() <= FROZEN_WALKED_MAX:
            gc.unfreeze()
        gc.collect()
        # In a thread: while it returns pages to the system, it does not hold Python's lock.
        await trio.to_thread.run_sync(trim)
        blocks_max = sys.getallocatedblocks()
        given_back_s = seen_s = process_time()


def _trimmer() -> Callable[[], object]:
    """What gives free pages back: malloc_trim(3) of glibc; elsewhere nothing does."""
    with suppress(OSError, AttributeError):
        malloc_trim = ctypes.CDLL(None).malloc_trim
        return lambda: malloc_trim(0)
    return lambda: None
