"""Events in a server's log that tell of a bug, and that no fault excuses."""

from __future__ import annotations

from typing import Final

BUG_EVENTS: Final = frozenset(
    {
        "actor_crashed",
        "actor_quarantined",
        "key_damaged",
        "handler failed",
        "internal_error",
        "owner_raised",
        "read_failed",
        "reader_raised",
        "submission_raised",
    }
)
