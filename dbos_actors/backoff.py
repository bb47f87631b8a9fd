"""How long to wait before something that has failed is tried again. Pure.

Each pause is longer than the one before, up to a limit. Its length is random within bounds, so that
many who have failed at the same moment do not all try again at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPolicy:
    """The pauses between attempts; the defaults are those of gRPC's connection-backoff.md."""

    first_s: float = 1.0
    factor: float = 1.6
    max_s: float = 120.0
    jitter: float = 0.2
    """Each pause is made longer or shorter by up to this share of it, from 0 to 1."""
    at_once: bool = False
    """Whether the second attempt follows the first without a pause, and ``first_s`` comes next."""

    def pause_s(self, failures: int, random: Random | None = None) -> float:
        """The pause, in seconds, after so many failures in a row; without ``random``, no jitter."""
        steps = failures - 1 - self.at_once
        if steps < 0:
            return 0.0
        pause_s = min(self.first_s, self.max_s)
        while steps and pause_s < self.max_s and self.factor > 1:
            pause_s = min(pause_s * self.factor, self.max_s)
            steps -= 1
        if random is not None:
            pause_s *= random.uniform(1 - self.jitter, 1 + self.jitter)
        return pause_s


class Backoff:
    """The pauses of one attempt that is made again and again."""

    __slots__ = ("_failures", "_policy", "_random")

    def __init__(self, policy: BackoffPolicy, random: Random | None = None) -> None:
        self._policy = policy
        self._random = random
        self._failures = 0

    def next_s(self) -> float:
        """An attempt has failed: the pause before the next one, in seconds."""
        self._failures += 1
        return self._policy.pause_s(self._failures, self._random)

    def reset(self) -> None:
        """An attempt has succeeded."""
        self._failures = 0
