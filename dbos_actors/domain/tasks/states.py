"""The life of a task: its states, what may happen in each, and the refusals.

A task is *pending* until a worker claims it, *inflight* while a lease runs, and
ends *completed*, *dead* (out of attempts) or *cancelled* (by an operator). `TRANSITIONS`
holds every rule:

- A delivery is a lease. It ends in exactly one of five ways: acknowledged,
  given back (nack), expired, cancelled, or deleted with its agent.
- A delivery that ends without an acknowledgement returns the task to pending,
  unless it was the last one allowed: then the event is `Event.EXHAUST`, whatever
  ended the delivery, and the task is dead.
- Clients of the first generation do not lease: they list what is due, run it and
  settle it without a token. So a pending task may be acknowledged or given back;
  that implies a delivery and counts as one.
- A task whose payload cannot be read is dead at once: there is nothing to hand out.
- A task can be cancelled while it is pending or inflight. What is dead stays dead.
- Nothing leaves *completed* but retention. A *dead* or *cancelled* task is kept until it is
  requeued, which starts its attempts anew, or deleted, or its retention has passed. A dead
  one may also be revived, which lets its description change; a cancelled one may not, so
  that no copy of a ScheduleTask undoes what an operator has decided.

An event that has no entry is refused, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from dbos_actors.errors import InvalidTransitionError, RefusedError


class Status(IntEnum):
    """Where a task is; `GONE` is no record at all, before the first and after the last."""

    GONE = 0
    PENDING = 1
    INFLIGHT = 2
    COMPLETED = 3
    DEAD = 4
    CANCELLED = 5

    @property
    def text(self) -> str:
        """The name as it stands on the wire."""
        return _TEXTS[self]


_TEXTS = tuple(status.name.lower() for status in Status)


class Event(IntEnum):
    """What can happen to a task."""

    SCHEDULE = 1
    LEASE = 2
    EXTEND = 3
    ACK = 4
    NACK = 5
    EXPIRE = 6
    EXHAUST = 7
    RETIRE = 8
    DELETE = 9
    REVIVE = 10
    DAMAGE = 11
    CANCEL = 12
    REQUEUE = 13


TRANSITIONS: Mapping[tuple[Status, Event], Status] = MappingProxyType(
    {
        (Status.GONE, Event.SCHEDULE): Status.PENDING,
        (Status.PENDING, Event.SCHEDULE): Status.PENDING,
        (Status.PENDING, Event.LEASE): Status.INFLIGHT,
        (Status.PENDING, Event.ACK): Status.COMPLETED,
        (Status.PENDING, Event.NACK): Status.PENDING,
        (Status.PENDING, Event.EXHAUST): Status.DEAD,
        (Status.PENDING, Event.DAMAGE): Status.DEAD,
        (Status.PENDING, Event.CANCEL): Status.CANCELLED,
        (Status.PENDING, Event.DELETE): Status.GONE,
        (Status.INFLIGHT, Event.EXTEND): Status.INFLIGHT,
        (Status.INFLIGHT, Event.ACK): Status.COMPLETED,
        (Status.INFLIGHT, Event.NACK): Status.PENDING,
        (Status.INFLIGHT, Event.EXPIRE): Status.PENDING,
        (Status.INFLIGHT, Event.EXHAUST): Status.DEAD,
        (Status.INFLIGHT, Event.DAMAGE): Status.DEAD,
        (Status.INFLIGHT, Event.CANCEL): Status.CANCELLED,
        (Status.INFLIGHT, Event.DELETE): Status.GONE,
        (Status.COMPLETED, Event.RETIRE): Status.GONE,
        (Status.DEAD, Event.RETIRE): Status.GONE,
        (Status.DEAD, Event.REVIVE): Status.PENDING,
        (Status.DEAD, Event.REQUEUE): Status.PENDING,
        (Status.DEAD, Event.DELETE): Status.GONE,
        (Status.CANCELLED, Event.RETIRE): Status.GONE,
        (Status.CANCELLED, Event.REQUEUE): Status.PENDING,
        (Status.CANCELLED, Event.DELETE): Status.GONE,
    }
)

_REQUESTED = {
    Event.SCHEDULE: "pending",
    Event.LEASE: "inflight",
    Event.EXTEND: "inflight",
    Event.ACK: "completed",
    Event.NACK: "pending",
    Event.REVIVE: "pending",
    Event.CANCEL: "cancelled",
    Event.REQUEUE: "pending",
}


class Settled(IntEnum):
    """How the last delivery of a task ended; what a repeated call is measured against."""

    NOT = 0
    ACK = 1
    ACK_UNFENCED = 2
    NACK = 3
    EXPIRED = 4
    CANCELLED = 5


class UnknownTaskError(RefusedError):
    """No task has that id: it never was, was deleted, or its retention has passed."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"unknown task {task_id}")
        self.task_id = task_id


class DamagedTaskError(RefusedError):
    """What Redis holds of the task cannot be read, or is not what was scheduled."""

    def __init__(self, task_id: str) -> None:
        super().__init__(
            f"task {task_id} is damaged: Redis does not hold what was scheduled. "
            "Schedule it again with revive, or run 'dbos-actors repair'"
        )
        self.task_id = task_id


class DeadTaskError(RefusedError):
    """The task is dead, and what is scheduled differs from it."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task {task_id} is dead: set revive to schedule it anew")
        self.task_id = task_id


class CancelledTaskError(RefusedError):
    """The task is cancelled, and what is scheduled differs from it."""

    def __init__(self, task_id: str) -> None:
        super().__init__(
            f"task {task_id} is cancelled: RequeueTask makes it pending again, unchanged; "
            "another task needs another id"
        )
        self.task_id = task_id


class StaleLeaseError(RefusedError):
    """The lease token is not, or no longer, the one of a running delivery."""

    def __init__(self, task_id: str, why: str) -> None:
        super().__init__(f"stale lease_token for task {task_id}: {why}")
        self.task_id = task_id
        self.why = why


def successor(status: Status, event: Event) -> Status:
    """The state after ``event``.

    :raises InvalidTransitionError: nothing may happen to a task in ``status`` by that event.
    """
    following = TRANSITIONS.get((status, event))
    if following is None:
        raise InvalidTransitionError(status.text, _REQUESTED.get(event, event.name.lower()))
    return following
