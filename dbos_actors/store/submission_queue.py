"""What waits to be committed, in order, and how much of it goes into one batch. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator

from dbos_actors.store.batch import SCRIPT_BYTES, Entry
from dbos_actors.store.effects import without
from dbos_actors.store.submission import Owner

# What an entry of the queue costs besides its commands; bounds barriers, which have none.
ENTRY_BYTES = 256

# A queue of at most so many submissions goes into one batch. Of a longer one the committer sends
# the first half, and the other half when that is answered. So Redis executes one half while the
# server answers the callers of the other; in one batch, each would wait for the other.
WHOLE_QUEUE = 32


class SubmissionQueue:
    """Submissions that were not sent, or provably not executed, and when each came in."""

    __slots__ = ("_entries", "size_bytes")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def oldest_s(self) -> float:
        """When the oldest came in, monotonic seconds; infinity: there is none."""
        return self._entries[0][1] if self._entries else math.inf

    @property
    def begins_with_a_barrier(self) -> bool:
        """Whether the first has no commands. There must be one."""
        return not self._entries[0][0].commands

    def append(self, entry: Entry, size_bytes: int) -> None:
        """Add a submission, which counts for ``size_bytes``: its commands and `ENTRY_BYTES`."""
        self.size_bytes += size_bytes
        self._entries.append(entry)

    def put_back(self, entries: list[Entry]) -> None:
        """Back to the head: they were provably not executed."""
        self._entries.extendleft(reversed(entries))
        self.size_bytes += _cost(entries)

    def cut(
        self, *, batch_bytes: int, allowed_bytes: float, submissions: int
    ) -> tuple[list[Entry], bool | None]:
        """Take what goes into one batch from the head.

        At most ``submissions``, with commands of ``batch_bytes`` and of ``allowed_bytes``; but if
        any bytes are allowed, one submission may have more than that. Returns it, and whether it
        frees memory; None if it consists of barriers.
        """
        queue = self._entries
        entries: list[Entry] = []
        size_bytes = 0
        limit_bytes = min(batch_bytes, allowed_bytes)
        freeing: bool | None = None
        count_max = min(submissions, max(WHOLE_QUEUE, (len(queue) + 1) // 2))
        while queue and len(entries) < count_max:
            submission = queue[0][0]
            if submission.commands:
                if freeing is None:
                    freeing = submission.frees_memory
                    if freeing:
                        limit_bytes = min(limit_bytes, SCRIPT_BYTES)
                elif freeing is not submission.frees_memory:
                    break
                if size_bytes + submission.size_bytes > limit_bytes and (
                    size_bytes or not allowed_bytes
                ):
                    break
                size_bytes += submission.size_bytes
            entries.append(queue.popleft())
        self.size_bytes -= _cost(entries)
        return entries, freeing

    def writers(self) -> dict[int, Owner]:
        """The owners of submissions with commands, by id."""
        return {id(s.owner): s.owner for s, _ in self._entries if s.commands}

    def remove_of(self, owners: Iterable[int]) -> list[Entry]:
        """Take out what these owners, by id, have submitted."""
        left, removed = without(self._entries, owners)
        self._entries = deque(left)
        self.size_bytes = _cost(left)
        return removed

    def clear(self) -> list[Entry]:
        """Take out everything."""
        removed = list(self._entries)
        self._entries.clear()
        self.size_bytes = 0
        return removed


def _cost(entries: Iterable[Entry]) -> int:
    """What entries count for in the queue's bound."""
    return sum([submission.size_bytes + ENTRY_BYTES for submission, _ in entries])
