"""Runs that repeat themselves exactly: Trio's scheduling and time, from a seed.

Trio shuffles the tasks that are ready; its own tests can fix the order, and so
do we. Time is simulated and jumps to the next deadline whenever every task
waits. Log lines are collected instead of printed: some of them are findings.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from random import Random
from typing import Any, NoReturn, TypeVar

import structlog
import trio
import trio.testing

T = TypeVar("T")


def run_seeded(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """`trio.run`, always the same for the same seed."""
    scheduler: Any = trio._core._run
    was_deterministic, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    collecting = gc.isenabled()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    gc.disable()
    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = was_deterministic
        scheduler._r.setstate(state)
        if collecting:
            gc.enable()


@contextmanager
def collected_logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """What the product logs meanwhile, instead of its being printed."""
    lines: list[MutableMapping[str, Any]] = []

    def collect(logger: Any, method: str, line: MutableMapping[str, Any]) -> NoReturn:
        line["level"] = method
        lines.append(line)
        raise structlog.DropEvent

    was_configured = structlog.is_configured()
    config = structlog.get_config()
    structlog.configure(processors=[collect])
    try:
        yield lines
    finally:
        if was_configured:
            structlog.configure(**config)
        else:
            structlog.reset_defaults()  # lines go to `logging` again, as in other tests


class SimulatedClock:
    """Trio's simulated time, and a wall clock that can jump."""

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self.offset_s = self._right_offset_s = wall_s

    def set_right(self) -> None:
        """Take all jumps back."""
        self.offset_s = self._right_offset_s

    def monotonic_s(self) -> float:
        return trio.current_time()

    def wall_s(self) -> float:
        return self.offset_s + trio.current_time()


def stream_of_chance(seed: int, name: str) -> Random:
    """A generator of its own for each purpose: more draws for one leave the others alone."""
    return Random(f"{seed}/{name}")
