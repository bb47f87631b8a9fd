"""The order of changes: scores for the indexes by time of last change, which never go back.

A listing of states goes on behind the last entry it has read, and GetModuleState answers for the
agent that changed last. Were their scores the wall clock's, a step back would put a change behind
what came before it. So a score is the wall clock's time or, if that is not later than the score
before it, a microsecond more than that.

A later server goes on above the scores of an earlier one. Those are not all known to it, so a
server reserves the next ten seconds: the key ``changes`` holds a moment above all scores that are
in use, and the commit that uses a later score raises it.

A clock that steps back by more than a day was wrong before, and is followed: otherwise retention
would take what changes now for later than it is, for as long as the clock was ahead.
"""

from __future__ import annotations

from typing import Final

from dbos_actors.clock import Clock
from dbos_actors.errors import UnusableStoreError
from dbos_actors.store import Store, pack

_RESERVED_US: Final = 10_000_000
"""Reserved at once: a command every ten seconds, and a new server's scores begin that much late."""

_MARK_DIGITS_MAX: Final = 15
"""The year 33658; a double has scores of so many digits in full."""

STEP_BACK_US_MAX: Final = 86_400_000_000
"""A day. Steps back that are larger are followed."""


class ChangeClock:
    """Gives each change its place in the order of all changes, in microseconds since the epoch."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._last_us = 0
        self._reserved_us = 0

    async def load(self) -> None:
        """Begin above what earlier servers have given.

        Raises:
            UnavailableError: Redis is away.
            UnusableStoreError: somebody else has written to the key.
        """
        key = self._store.keys.changes
        (kind,) = await self._store.read(pack("TYPE", key))
        if kind == b"none":
            return
        mark = b""
        if kind == b"string":
            (mark,) = await self._store.read(pack("GET", key))
        if not is_mark(mark):
            raise UnusableStoreError(
                f"the store cannot be used: {key} is no time in milliseconds. Another program, or "
                "a person, has written to it. Run 'dbos-actors repair', then start again"
            )
        self._last_us = max(self._last_us, int(mark) * 1000)

    def next_us(self) -> int:
        """The place of a change that is about to be submitted."""
        now_us = int(self._clock.wall_s() * 1e6)
        last_us = self._last_us
        if now_us <= last_us and last_us - now_us <= STEP_BACK_US_MAX:
            now_us = last_us + 1
        self._last_us = now_us
        return now_us

    def mark_us(self, place_us: int) -> int:
        """What to reserve in the commit of the change at this place; 0: nothing."""
        return 0 if place_us <= self._reserved_us else place_us + _RESERVED_US

    def marked(self, mark_us: int) -> bytes:
        """The command that reserves up to ``mark_us``."""
        return pack("SET", self._store.keys.changes, mark_us // 1000)

    def reserved(self, mark_us: int) -> None:
        """That command is committed."""
        self._reserved_us = max(self._reserved_us, mark_us - 1000)

    def lost(self) -> None:
        """The store is not where it was: nothing counts as reserved."""
        self._reserved_us = 0


def is_mark(value: bytes) -> bool:
    """Whether this is what the key ``changes`` may hold: milliseconds since the epoch."""
    return value.isdigit() and len(value) <= _MARK_DIGITS_MAX


def score_of(place_us: int) -> bytes:
    """The score of an index: milliseconds, with three decimals."""
    return b"%d.%03d" % divmod(place_us, 1000)
