"""What the watches count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStatistics:
    """Figures since the start, and what is held now."""

    watches: int
    events: int
    """Events that were put into the ring."""
    delivered: int
    """Events handed to watches to be sent, each as often as there were watches that wanted it."""
    fallen_behind: int
    """How often a watch had to look through the log again, because it was too slow."""
    ring_events: int
    ring_bytes: int
    events_read: int
    """Events read from Redis for watches that had to catch up."""
    groups_looked_up: int
    """Lookups to find out who wants an event."""
