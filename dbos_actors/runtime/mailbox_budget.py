"""What waits for a turn, over all actors of a family, bounded in bytes.

Each mailbox holds a bounded number of messages. Many mailboxes of large messages, all
waiting for a store that is away, could still need more memory than the machine has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbos_actors.runtime.call import Call


class MailboxBudget:
    """Counts messages in as they begin to wait, and out as they stop."""

    __slots__ = ("_size_of", "_sizes", "limit_bytes", "size_bytes")

    def __init__(self, limit_bytes: int, size_of: Callable[[Any], int]) -> None:
        """``size_of`` gives what a request holds of memory, in bytes."""
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._size_of = size_of
        # What each was counted with: a request may change, or be dropped, while it waits.
        self._sizes: dict[Call, int] = {}

    @property
    def is_full(self) -> bool:
        """Whether no further message should begin to wait."""
        return self.size_bytes >= self.limit_bytes

    def enter(self, call: Call) -> None:
        """The message waits from now on."""
        size = self._size_of(call.request)
        self._sizes[call] = size
        self.size_bytes += size

    def leave(self, call: Call) -> None:
        """The message has its turn, or is refused."""
        self.size_bytes -= self._sizes.pop(call, 0)
