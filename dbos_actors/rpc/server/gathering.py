"""Whether connections wait for a tick before they are read, so that more calls come in a read.

A read, a commit and a write cost almost as much for one call as for ten. When calls come one at a
time, at fixed times and over several connections, each of them pays for a read, a write and a tenth
of a commit. If all connections are read once in a tick of a millisecond instead, a call costs half
as much, and its answer comes a millisecond later.

Callers that send a call when the last one is answered (a closed loop) send fewer calls when answers
take longer. Nothing tells them from callers that send at fixed times, so it is tried:

    DIRECT ----- busy with many small reads ----> TRYING
      ^                                            |  |
      |<-- fewer calls, or they cost as much ------+  +-- as many calls, cheaper --+
      |                                                                            v
      |<-- not busy any more --------------------------------------------------- GATHERING
      |                                                                          ^      |
      |                                                  no more calls than before    now and then
      |                                                                          |      v
      +<-- more calls come when they are read at once -------------------------- CHECKING

A trial is short, and after each one that fails the next is twice as far away.

Pure: times, CPU time and counts are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

TICK_S: Final = 0.001
"""Trio's timers end at whole milliseconds, so ticks are 1 to 2 ms apart. Measured at 15,000 calls a
second: 31 us of CPU a call with 1 ms, 31 with 2 ms, 55 without."""

SPAN_S: Final = 0.1
"""What a decision rests on: 1,500 calls at 15,000 a second."""

GLANCE_S: Final = 0.02
"""When a trial is looked at first, so that a closed loop is slowed down for no longer."""

CHECK_S: Final = 0.05
CHECK_EVERY_S: Final = 2.0
"""While gathering, connections are read at once for `CHECK_S` in so many seconds."""

CALLS_PER_S_MIN: Final = 8 / TICK_S
"""A tick that gathers fewer calls is not worth its wait."""

CALLS_PER_READ_MAX: Final = 8.0
"""Reads with more calls are large enough."""

BUSY_MIN: Final = 0.4
"""Share of a core; a server with less to do answers at once."""

_STAYS: Final = 0.75
"""Gathering ends at three quarters of what it needs to begin, so that it does not flicker."""

_GLANCE_CALLS_MIN: Final = 0.75
_TRIAL_CALLS_MIN: Final = 0.9
"""Of the rate before; a hundred milliseconds of calls at random times differ by 3 %."""
_TRIAL_COST_MAX: Final = 0.85
"""Of the CPU time of a call before."""
_CHECK_CALLS_MAX: Final = 1.15
"""Of the rate before; the first read takes what waited for a tick, up to 4 % of `CHECK_S`."""

_PAUSE_S_MIN: Final = 1.0
_PAUSE_S_MAX: Final = 30.0
"""After a trial that failed. A closed loop that loses half of its rate for `GLANCE_S` in each trial
loses 0.3 % in its first twenty seconds, and less later."""


class Phase(Enum):
    """See the head of the module."""

    DIRECT = auto()
    TRYING = auto()
    GATHERING = auto()
    CHECKING = auto()


@dataclass(frozen=True, slots=True)
class Totals:
    """What a server has done since its start."""

    at_s: float
    cpu_s: float
    calls: int
    reads: int


@dataclass(frozen=True, slots=True)
class Span:
    """What it did between two moments."""

    seconds: float
    calls_per_s: float
    cpu_per_call_s: float
    calls_per_read: float

    @classmethod
    def between(cls, before: Totals, after: Totals) -> Span:
        """No time may have gone by, and nothing have happened."""
        seconds = max(after.at_s - before.at_s, 1e-9)
        calls = after.calls - before.calls
        return cls(
            seconds=seconds,
            calls_per_s=calls / seconds,
            cpu_per_call_s=(after.cpu_s - before.cpu_s) / max(1, calls),
            calls_per_read=calls / max(1, after.reads - before.reads),
        )


class Gathering:
    """The decision for one server. Look at `is_on`; call `look` when `due_s` has come."""

    __slots__ = (
        "_before",
        "_check_at_s",
        "_direct",
        "_gathered",
        "_pause_s",
        "_try_at_s",
        "due_s",
        "phase",
    )

    phase: Phase

    due_s: float
    """When `look` is to be called, at the next read."""

    def __init__(self) -> None:
        nothing = Totals(0.0, 0.0, 0, 0)
        self.phase = Phase.DIRECT
        self.due_s = 0.0
        # Where the present span begins.
        self._before = nothing
        # The last spans in which connections were read at once, and at ticks.
        self._direct = self._gathered = Span.between(nothing, nothing)
        self._pause_s = _PAUSE_S_MIN
        self._try_at_s = 0.0
        self._check_at_s = 0.0

    @property
    def is_on(self) -> bool:
        """Whether connections are to be read at the next tick."""
        return self.phase is Phase.TRYING or self.phase is Phase.GATHERING

    def look(self, now: Totals) -> None:
        """Decide."""
        span = Span.between(self._before, now)
        match self.phase:
            case Phase.DIRECT:
                self._consider(span, now)
            case Phase.TRYING:
                self._judge(span, now)
            case Phase.GATHERING:
                self._go_on(span, now)
            case Phase.CHECKING:
                if span.calls_per_s > _CHECK_CALLS_MAX * self._gathered.calls_per_s:
                    self._fail(now)
                else:
                    self._enter(Phase.GATHERING, now, SPAN_S)

    def _consider(self, span: Span, now: Totals) -> None:
        if (
            span.seconds < 2 * SPAN_S  # a longer one is one in which nothing was read for long
            and now.at_s >= self._try_at_s
            and span.calls_per_s >= CALLS_PER_S_MIN
            and span.calls_per_read < CALLS_PER_READ_MAX
            and span.calls_per_s * span.cpu_per_call_s >= BUSY_MIN
        ):
            self._direct = span
            self._enter(Phase.TRYING, now, GLANCE_S)
        else:
            self._enter(Phase.DIRECT, now, SPAN_S)

    def _judge(self, span: Span, now: Totals) -> None:
        direct = self._direct
        if span.calls_per_s < _GLANCE_CALLS_MIN * direct.calls_per_s:
            self._fail(now)
        elif span.seconds < SPAN_S:
            self.due_s = self._before.at_s + SPAN_S
        elif (
            span.calls_per_s < _TRIAL_CALLS_MIN * direct.calls_per_s
            or span.cpu_per_call_s > _TRIAL_COST_MAX * direct.cpu_per_call_s
        ):
            self._fail(now)
        else:
            self._pause_s = _PAUSE_S_MIN
            self._check_at_s = now.at_s + CHECK_EVERY_S
            self._enter(Phase.GATHERING, now, SPAN_S)

    def _go_on(self, span: Span, now: Totals) -> None:
        busy = span.calls_per_s * self._direct.cpu_per_call_s  # if they were read at once
        if span.calls_per_s < _STAYS * CALLS_PER_S_MIN or busy < _STAYS * BUSY_MIN:
            self._enter(Phase.DIRECT, now, SPAN_S)
        elif now.at_s >= self._check_at_s:
            self._gathered = span
            self._check_at_s = now.at_s + CHECK_EVERY_S
            self._enter(Phase.CHECKING, now, CHECK_S)
        else:
            self._enter(Phase.GATHERING, now, SPAN_S)

    def _enter(self, phase: Phase, now: Totals, span_s: float) -> None:
        self.phase = phase
        self._before = now
        self.due_s = now.at_s + span_s

    def _fail(self, now: Totals) -> None:
        self._try_at_s = now.at_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_S_MAX)
        self._enter(Phase.DIRECT, now, SPAN_S)
