"""How fast may be written, so that the replay window never fills. Pure.

What is written stays in the window for ``window_s``. If it were written as fast as it comes, the
window would be full after a while, and nothing could be written until the oldest leaves it. Writes
would go through for some seconds and then stand still for some, again and again. So they are let
through at a constant rate: an eighth of the window may be written at once, and the rest of the
window in each ``window_s``. Both together never exceed the window.
"""

from __future__ import annotations

from typing import Final

BURST_SHARE: Final = 1 / 8
"""Of the window, what may be written at once. More would be a lower rate ever after, less would
hold up what is not much: at the default, bursts of 64 MiB go through, and 94 MB/s for long."""

TICK_S: Final = 0.02
"""What waits goes out in portions of so long: fifty commits a second instead of one a call."""

_WINDOW_S_MIN: Final = 0.001


class Pace:
    """A bucket of bytes that fills at the rate which the window allows."""

    __slots__ = (
        "_at_s",
        "_burst_bytes",
        "_full_rate",
        "_rate",
        "_slow_until_s",
        "_tokens",
        "_window_bytes",
        "_window_s",
    )

    def __init__(self, *, window_bytes: int, window_s: float, now_s: float) -> None:
        self._window_bytes = window_bytes
        self._window_s = max(window_s, _WINDOW_S_MIN)
        self._burst_bytes = window_bytes * BURST_SHARE
        # In bytes a second.
        self._full_rate = (window_bytes - self._burst_bytes) / self._window_s
        self._rate = self._full_rate
        self._slow_until_s = now_s
        self._tokens = self._burst_bytes
        self._at_s = now_s

    def allowance(self, now_s: float) -> float:
        """How many bytes may be written now; below zero after a commit that was larger."""
        if now_s > self._at_s:
            tokens = self._tokens + (now_s - self._at_s) * self._rate
            self._tokens = min(self._burst_bytes, tokens)
            self._at_s = now_s
            if now_s >= self._slow_until_s:
                self._rate = self._full_rate
        return self._tokens

    def spend(self, size_bytes: int) -> None:
        """So much is written."""
        self._tokens -= size_bytes

    def portion(self, waiting_bytes: int) -> float:
        """How much must be allowed before anything of what waits is sent."""
        return min(waiting_bytes, self._rate * TICK_S, self._burst_bytes)

    def ready_at_s(self, size_bytes: float) -> float:
        """When so much may be written, as far as `allowance` was last asked for; or before."""
        return self._at_s + (size_bytes - self._tokens) / self._rate

    def restart(self, replayable_bytes: int, now_s: float) -> None:
        """All of the window stays for a whole ``window_s`` more: spread the rest over it.

        The rate stays above a hundredth of what it was, so that callers can be told how long it
        will take; the window itself has the last word.
        """
        room = max(0, self._window_bytes - replayable_bytes)
        burst_bytes = room * BURST_SHARE
        self._tokens = min(self.allowance(now_s), burst_bytes)
        rate = (room - burst_bytes) / self._window_s
        self._rate = max(rate, self._full_rate / 100)
        self._slow_until_s = now_s + self._window_s
