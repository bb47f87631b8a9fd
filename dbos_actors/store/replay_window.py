"""The commits that can be sent again to a Redis that lost them. Pure.

A batch enters the window when it is first sent. It leaves the window when Redis has had it for
``replay_s`` seconds and has accepted another write since. Sequence numbers in the window have no
gap, and ``position``, an argument of some methods, is the last one that the store is known to have.

`Pace` limits how fast batches may enter, so that the window never fills.
"""

from __future__ import annotations

from collections import deque

from dbos_actors.store.batch import Batch
from dbos_actors.store.pace import Pace


class ReplayWindow:
    """Batches in the order of their sequence numbers; see the module."""

    __slots__ = ("_batches", "_pace", "_replay_bytes", "_replay_s", "newest_sequence", "size_bytes")

    def __init__(self, first: Batch, *, replay_s: float, replay_bytes: int, now_s: float) -> None:
        """A window with the commit that took ownership; see `StoreSettings` for the limits."""
        self._batches = deque([first])
        self._pace = Pace(window_bytes=replay_bytes, window_s=replay_s, now_s=now_s)
        self._replay_s = replay_s
        self._replay_bytes = replay_bytes
        self.size_bytes = first.size_bytes
        self.newest_sequence = first.sequence
        """Of the last batch that entered and was not taken out again."""

    def __len__(self) -> int:
        return len(self._batches)

    # ----------------------------------------------------------- its batches

    @property
    def oldest(self) -> Batch | None:
        return self._batches[0] if self._batches else None

    @property
    def newest(self) -> Batch | None:
        return self._batches[-1] if self._batches else None

    def after(self, position: int) -> Batch:
        """The first batch that the store is not known to have; `newest_sequence` is later."""
        return self._batches[position + 1 - self._batches[0].sequence]

    def append(self, batch: Batch) -> Batch:
        """Add a batch, which is sent now, and give it the next sequence number. Returns it."""
        size_bytes = batch.size_bytes
        batch.sequence = self.newest_sequence = self.newest_sequence + 1
        self._batches.append(batch)
        self.size_bytes += size_bytes
        self._pace.spend(size_bytes)
        return batch

    def pop(self) -> Batch:
        """Take the newest batch out: the store has not executed it."""
        batch = self._batches.pop()
        self.newest_sequence = batch.sequence - 1
        self.size_bytes -= batch.size_bytes
        return batch

    def trim(self, position: int, accepted_s: float) -> None:
        """Drop what is old enough. The store has accepted a write that was sent at ``accepted_s``.

        That it answers is not enough. A Redis that cannot write its file (a full disk) has
        answered for writes that are in its memory only; from then on it refuses writes, and
        goes on to answer reads, for as long as it likes before it dies.
        """
        batches = self._batches
        until_s = accepted_s - self._replay_s
        while batches:
            oldest = batches[0]
            if (
                oldest.sequence > position
                or oldest.confirmed_s is None
                or oldest.confirmed_s > until_s
            ):
                break
            batches.popleft()
            self.size_bytes -= oldest.size_bytes

    def restart(self, position: int, now_s: float) -> None:
        """The store has come back with everything up to ``position``, and may go again.

        So all of the window stays for ``replay_s`` from now.
        """
        for batch in self._batches:
            batch.confirmed_s = now_s if batch.sequence <= position else None
        self._pace.restart(self.size_bytes, now_s)

    # -------------------------------------------------------------- its pace

    @property
    def is_full(self) -> bool:
        """Whether nothing may enter before something has left."""
        return self.size_bytes >= self._replay_bytes

    def allowed_bytes(self, now_s: float, waiting_bytes: int) -> float:
        """How many of the waiting bytes may be sent now; 0: wait until `ready_at_s`."""
        allowed = self._pace.allowance(now_s)
        if self.size_bytes >= self._replay_bytes:
            return 0.0
        return allowed if allowed >= self._pace.portion(waiting_bytes) > 0.0 else 0.0

    def portion_at_s(self, waiting_bytes: int) -> float:
        """When the next of the waiting bytes may be sent, unless the window is full."""
        return self._pace.ready_at_s(self._pace.portion(waiting_bytes))

    def all_at_s(self, waiting_bytes: int) -> float:
        """When all of the waiting bytes may have been sent, at the earliest."""
        return self._pace.ready_at_s(waiting_bytes)
