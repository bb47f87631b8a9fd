"""What an operator decides about tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.snapshot import ROWS_PER_CHUNK

JOURNAL_ENTRIES_MIN: Final = 100_000
"""A snapshot is due when the journal is longer than this and than half the number of tasks: then
what is written for snapshots stays in proportion to what is written anyway, and a recovery reads
at most so many entries, each ten times as dear as a row of the snapshot."""

JOURNAL_BYTES_MIN: Final = 64 << 20
"""A snapshot is also due when the journal has more bytes than this and than the last snapshot: a
turn that gives 200 tasks back with long errors writes 120 KB. Redis holds at most as much again,
and what is written while the snapshot is taken."""

_FOR_EVER_S = 100 * 365 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What an operator decides about tasks."""

    max_attempts: int = 5
    retention_s: float = 24 * 3600.0
    """How long completed tasks are kept; 0 is for ever."""

    dead_retention_s: float = 30 * 24 * 3600.0
    """How long dead tasks are kept; 0 is for ever."""

    tasks_max: int = 5_000_000
    agent_tasks_max: int = 0
    """Tasks of one agent; 0 is no limit."""

    completed_max: int = 1_000_000
    dead_max: int = 1_000_000
    """Tasks kept at most, in all and of these states."""

    due_lease_s: float = 0.0
    """For how long ListDueTasks leases what it lists; 0: it only reads."""

    events_max: int = 100_000
    message_bytes_max: int = 4 << 20
    journal_entries_min: int = JOURNAL_ENTRIES_MIN
    journal_bytes_min: int = JOURNAL_BYTES_MIN
    snapshot_rows: int = ROWS_PER_CHUNK
    """Rows in a slice of a snapshot, about."""

    def limits(self) -> TaskLimits:
        """The limits of the task book."""
        return TaskLimits(
            tasks_max=self.tasks_max,
            agent_tasks_max=self.agent_tasks_max,
            completed_max=self.completed_max,
            retention_s=int(self.retention_s) or _FOR_EVER_S,
            dead_max=self.dead_max,
            dead_retention_s=int(self.dead_retention_s) or _FOR_EVER_S,
            max_attempts=self.max_attempts,
        )
