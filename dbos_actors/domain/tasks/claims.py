"""What lease requests with a key have claimed, so that a lost answer can be asked for again.

A *claim* is one request that leased something: who asked, by a digest, and the
range of its tokens. Tasks leased together have consecutive tokens, so the range
says which deliveries are the claim's, and neither journal nor snapshot has to
name the tasks: a recovery finds them by the tokens of the running leases.

A claim is remembered for the length of its lease. After a restart that length
begins again, as the lease does. A task that was settled, has expired or was leased
again has another token or status, so the claim no longer includes it.

The number of claims of all clients together is bounded. Beyond it the oldest claim
is forgotten, and a repeated request of its client leases other tasks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now

CLAIMS_MAX = 10_000
"""About 4 MB: a thousand workers that ask ten times within the length of a lease."""

CLAIMED_TASKS_MAX = 100_000
"""Ids that claims keep alive: 30 MB if all are as long as they may be and their tasks gone."""

IDENTITY_BYTES = 16


class Claim(NamedTuple):
    """One request that leased ``size`` tasks for ``span_s`` seconds."""

    identity: bytes
    token: int
    """Of its first task; the others have the following ones."""
    size: int
    span_s: int

    def holds(self, record: TaskRecord | None) -> bool:
        """Whether a task is still leased by this request."""
        return (
            record is not None
            and record.status is Status.INFLIGHT
            and self.token <= record.token < self.token + self.size
        )


class _Remembered(NamedTuple):
    claim: Claim
    task_ids: tuple[str, ...]
    deadline_s: float  # on the monotonic clock


class Claims:
    """The claims of one book, oldest first."""

    __slots__ = ("_by_identity", "_tasks")

    def __init__(self) -> None:
        self._by_identity: dict[bytes, _Remembered] = {}
        self._tasks = 0

    def __len__(self) -> int:
        return len(self._by_identity)

    def remember(self, claim: Claim, task_ids: tuple[str, ...], deadline_s: float) -> None:
        """Take note of a claim, and forget the oldest ones beyond the limits."""
        self._forget(claim.identity)
        self._by_identity[claim.identity] = _Remembered(claim, task_ids, deadline_s)
        self._tasks += len(task_ids)
        while len(self._by_identity) > CLAIMS_MAX or self._tasks > CLAIMED_TASKS_MAX:
            self._forget(next(iter(self._by_identity)))

    def forget(self, claim: Claim) -> None:
        """The claim was never made."""
        remembered = self._by_identity.get(claim.identity)
        if remembered is not None and remembered.claim == claim:
            self._forget(claim.identity)

    def find(self, identity: bytes, now: Now) -> tuple[Claim, tuple[str, ...]] | None:
        """A claim and its tasks, None if it is not remembered."""
        found = self._by_identity.get(identity)
        if found is None or found.deadline_s <= now.monotonic_s:
            return None
        return found.claim, found.task_ids

    def all(self) -> list[Claim]:
        """Every claim, oldest first; some may have come to their end."""
        return [remembered.claim for remembered in self._by_identity.values()]

    def _forget(self, identity: bytes) -> None:
        forgotten = self._by_identity.pop(identity, None)
        if forgotten is not None:
            self._tasks -= len(forgotten.task_ids)


class ClaimRecovery:
    """Claims read back, which look for their tasks."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        """``claims`` are oldest first."""
        self._claims = list(claims)
        self._ranges = sorted((claim.token, number) for number, claim in enumerate(self._claims))
        self._found: dict[int, list[tuple[int, str]]] = {}

    def see(self, record: TaskRecord) -> None:
        """Look at a task that has been read back."""
        at = bisect_right(self._ranges, (record.token, len(self._claims))) - 1
        if at >= 0:
            number = self._ranges[at][1]
            if self._claims[number].holds(record):
                self._found.setdefault(number, []).append((record.token, record.task_id))

    def finish(self, claims: Claims, now: Now) -> None:
        """Remember those that have a task, with the whole length of their lease before them."""
        for number in sorted(self._found):
            claim = self._claims[number]
            task_ids = tuple(task_id for _, task_id in sorted(self._found[number]))
            claims.remember(claim, task_ids, now.monotonic_s + claim.span_s)


def identity_of(*parts: str) -> bytes:
    """A digest that tells who asks, and for what, from everybody else."""
    digest = blake2b(digest_size=IDENTITY_BYTES)
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "little"))
        digest.update(encoded)
    return digest.digest()
