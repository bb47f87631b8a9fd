"""How long to wait before connecting again (gRPC's connection-backoff.md). Pure."""

from __future__ import annotations

from random import Random

from dbos_actors.rpc.client.options import BackoffPolicy


class Backoff:
    """Exponential pauses with jitter."""

    __slots__ = ("_current_s", "_policy", "_random")

    def __init__(self, policy: BackoffPolicy, random: Random) -> None:
        self._policy = policy
        self._random = random
        self._current_s = policy.first_s

    def next_s(self) -> float:
        """From the beginning of the attempt that failed to the next one, in seconds."""
        policy = self._policy
        pause_s = self._current_s
        self._current_s = min(pause_s * policy.factor, policy.max_s)
        return pause_s * self._random.uniform(1 - policy.jitter, 1 + policy.jitter)

    def reset(self) -> None:
        """An attempt has succeeded."""
        self._current_s = self._policy.first_s
