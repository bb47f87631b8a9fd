"""What the scheduler counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """The ledger, and what has happened since the start."""

    scheduled: int
    pending: int
    inflight: int
    completed: int
    dead: int
    cancelled: int
    deleted: int
    due: int
    late: int
    """Of `due`, those whose time came more than a minute ago."""
    oldest_due_s: int
    """How long ago the time of the oldest of them came."""
    completed_kept: int
    imbalance: int
    """By how much the ledger is off balance; anything but 0 is a defect."""
    deliveries: int
    expired: int
    released: int
    taken_back: int
    """Of the deliveries, those that were ended before they were sent."""
    retired: int
    """Completed tasks whose record retention has dropped."""
    retired_cancelled: int
    retired_dead: int
    retired_early: int
    """Of all these, those that went before their age because there were too many."""
    requeued: int
    damaged: int
    """Tasks that died because their record cannot be read."""
    lateness_ms_sum: int
    lateness_ms_max: int
    subscribers: int
    held: int
    """Tasks pushed and not settled."""
    sequence: int
    journal_entries: int
    journal_bytes: int
    snapshot_bytes: int
    snapshots: int
    snapshot_chunks: int
    snapshot_slice_ms_max: float
    recoveries: int
    recovery_s: float
    """What the last one took."""
    rewinds: int
    """Times that what the store had refused was undone, which needs no recovery."""
    audits: int
    audit_misplaced: int
    audit_strangers: int
    audit_imbalances: int
    readable: bool
    """Whether tasks are served; all counts are 0 if not."""
