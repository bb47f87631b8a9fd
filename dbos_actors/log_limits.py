"""Log lines that clients can cause: few a second of each kind, the rest only counted.

A client that repeats its mistake thousands of times a second must not fill the disk, nor hide
what else the log says. The first lines of a second tell what happens as well as all would.
The counts are the process's, as its log is.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final

LINES_PER_S: Final = 5
"""Of each event: a connection refused says no more than the four before it."""


class _Event:
    """What was written of one event in the current second."""

    __slots__ = ("began_s", "left_out", "written")

    def __init__(self, now_s: float) -> None:
        self.began_s = now_s
        self.written = 0
        self.left_out = 0


class LogLimits:
    """Counts lines by their event; see `log_limited`."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._events: dict[str, _Event] = {}
        self.left_out_total = 0
        """Lines that were not written."""

    def log(self, write: Callable[..., Any], event: str, **fields: Any) -> None:
        """Write a line with ``write``, a logger's method, unless there were too many.

        The next line of the same event that is written says how many were left out.
        ``event`` is a constant of the code, so there are only so many of them.
        """
        now_s = self._clock()
        counted = self._events.get(event)
        if counted is None:
            counted = self._events[event] = _Event(now_s)
        elif now_s - counted.began_s >= 1.0:
            counted.began_s = now_s
            counted.written = 0
        if counted.written >= LINES_PER_S:
            counted.left_out += 1
            self.left_out_total += 1
            return
        counted.written += 1
        if counted.left_out:
            fields["left_out"] = counted.left_out
            counted.left_out = 0
        write(event, **fields)


LIMITS: Final = LogLimits()
"""Those of this process."""

log_limited = LIMITS.log
