"""What a task book is held to: the ranges of what requests may ask, and how many tasks are kept."""

from __future__ import annotations

from dataclasses import dataclass

from dbos_actors.errors import InvalidFieldError

SCHEDULED_AT_MAX = 253_402_300_799
"""The last second of the year 9999; milliseconds sent for seconds are far beyond."""

LEASE_S_MAX = 12 * 3600
DELAY_S_MAX = 30 * 24 * 3600
LEASE_LIMIT_MAX = 10_000
ATTEMPTS_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """What a task book is held to."""

    tasks_max: int = 5_000_000
    """Records of any status; about 0.3 KB each. Beyond, a new task is refused as overload."""

    agent_tasks_max: int = 0
    """Records of one agent; beyond, a new task of it is refused. 0 is no limit, and they are not
    counted then."""

    completed_max: int = 1_000_000
    """Completed and cancelled tasks kept at most; beyond, the oldest go before their time."""

    retention_s: int = 24 * 3600
    """How long a completed or cancelled task is kept."""

    dead_max: int = 1_000_000
    """Dead tasks kept at most; beyond, those that died first go before their time."""

    dead_retention_s: int = 30 * 24 * 3600
    """How long a dead task is kept."""

    max_attempts: int = 5
    """Deliveries of a task that does not say."""


def require_range(field: str, value: int, least: int, most: int) -> None:
    """Raise `InvalidFieldError` if a number that the request names ``field`` is out of range."""
    if not least <= value <= most:
        raise InvalidFieldError(field, f"must be between {least} and {most}")
