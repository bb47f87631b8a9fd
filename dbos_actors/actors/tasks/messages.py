"""The messages that the server itself sends to the scheduler's actor.

All other messages are the contract's own requests, validated before they are sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from dbos_actors.actors.tasks.subscribers import Subscriber
from dbos_actors.api.messages import SubscribeTasksRequest, Task
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.runtime import Call


class Barrier:
    """Answered once everything before it is committed."""

    __slots__ = ("book",)

    def __init__(self, book: TaskBook | None = None) -> None:
        """Refused as unavailable if ``book`` is given and no longer the actor's."""
        self.book = book


class Expire:
    """End leases whose time is up."""

    __slots__ = ()


class Retire:
    """Drop completed and dead tasks beyond retention."""

    __slots__ = ()


class Bury:
    """Let tasks die whose record cannot be read, unless they have changed since."""

    __slots__ = ("records",)

    def __init__(self, records: Sequence[TaskRecord]) -> None:
        self.records = records


class Requeue:
    """RequeueTask of a task that was read: it is written again, with its new time."""

    __slots__ = ("scheduled_at", "task")

    def __init__(self, task: Task, scheduled_at: int) -> None:
        """``scheduled_at``: when it falls due, Unix seconds; 0 for now."""
        self.task = task
        self.scheduled_at = scheduled_at


class GetAgain:
    """Read a task as part of a commit, because a plain read was not what the book says."""

    __slots__ = ("task_id",)

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id


class Push:
    """Lease up to ``limit`` tasks to a subscriber."""

    __slots__ = ("leases", "limit", "size_bytes", "subscriber")

    def __init__(self, subscriber: Subscriber, limit: int) -> None:
        self.subscriber = subscriber
        self.limit = limit
        self.leases: dict[str, str] = {}
        """What was leased: task id -> token."""
        self.size_bytes = 0
        """Of these tasks, at most."""


class Settle:
    """Acknowledgements, returns and extensions of one stream, in its order.

    The answer is a serialised response with their outcomes.
    """

    __slots__ = ("requests",)

    def __init__(self, requests: Sequence[SubscribeTasksRequest]) -> None:
        self.requests = requests


class Release:
    """End leases (task id -> token) at once: their worker is gone, or was not sent them."""

    __slots__ = ("leases", "reason", "was_sent")

    def __init__(self, leases: dict[str, str], reason: str, *, was_sent: bool) -> None:
        self.leases = leases
        self.reason = reason
        self.was_sent = was_sent

    def parts(self, leases_max: int) -> Iterator[Release]:
        """The same in parts of at most so many leases."""
        leases = iter(self.leases.items())
        while part := dict(islice(leases, leases_max)):
            yield Release(part, self.reason, was_sent=self.was_sent)


class LeaseListed:
    """Lease those of these tasks that are still due, for a ListDueTasks that leases."""

    __slots__ = ("task_ids",)

    def __init__(self, task_ids: Sequence[str]) -> None:
        self.task_ids = task_ids


class ForgetTasks:
    """Delete an agent's tasks in one bounded step; the answer is the next cursor or None."""

    __slots__ = ("agent_id", "cursor")

    def __init__(self, agent_id: str, cursor: tuple[int, str]) -> None:
        self.agent_id = agent_id
        self.cursor = cursor


class OwnCall:
    """A call whose answer nobody waits for. What fails is tried again by the scheduler's clock."""

    __slots__ = ("answered", "deadline", "request")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.deadline: float | None = None
        self.answered = False

    def reply(self, message: Any) -> None:
        """Nobody waits."""

    def fail(self, error: Exception) -> None:
        """Nobody waits."""


class RedirectedCall:
    """A call with another message than its own; answered as the call it is."""

    __slots__ = ("_call", "request")

    def __init__(self, call: Call, request: Any) -> None:
        self._call = call
        self.request = request

    @property
    def answered(self) -> bool:
        return self._call.answered

    @property
    def deadline(self) -> float | None:
        return self._call.deadline

    def reply(self, message: Any) -> None:
        self._call.reply(message)

    def fail(self, error: Exception) -> None:
        self._call.fail(error)
