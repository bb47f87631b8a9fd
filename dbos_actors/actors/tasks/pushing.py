"""Leasing due tasks to a subscriber, and returning what a vanished subscriber held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from dbos_actors.actors.tasks.alarm import Alarm
from dbos_actors.actors.tasks.messages import OwnCall, Push, Release
from dbos_actors.actors.tasks.subscribers import Subscriber, Subscribers
from dbos_actors.runtime import Call

RELEASED_AT_ONCE: Final = 200
"""Leases returned in one step of the scheduler, each perhaps with an event: 5 ms."""


class PushCall(OwnCall):
    """Asks the actor for tasks for a subscriber."""

    __slots__ = ("_is_refused", "_push", "_subscribers")

    def __init__(self, subscribers: Subscribers, subscriber: Subscriber, limit: int) -> None:
        push = Push(subscriber, limit)
        super().__init__(push)
        self._push = push
        self._subscribers = subscribers
        self._is_refused = False

    def reply(self, message: Any) -> None:
        push = self._push
        if not push.leases:
            return
        if self._is_refused:
            # The commit was given up as lost, and has come about after all.
            push.subscriber.expect(push.size_bytes)
        push.subscriber.receive(push.leases, push.size_bytes, message)

    def fail(self, error: Exception) -> None:  # noqa: ARG002
        push = self._push
        self._subscribers.pause()
        if push.leases and not self._is_refused:
            self._is_refused = True
            push.subscriber.refused(push.size_bytes)


class Releases:
    """The leases of vanished subscribers, until they are returned and that is committed.

    A subscriber may hold ten thousand leases, and ten thousand subscribers may vanish together. So
    the scheduler's clock returns them in steps, and other tasks run between two steps.
    """

    def __init__(self, deliver: Callable[[Call], None], alarm: Alarm) -> None:
        """``deliver`` hands the actor a message; ``alarm`` rings when there is something to do."""
        self._deliver = deliver
        self._alarm = alarm
        # Each has `RELEASED_AT_ONCE` leases at most.
        self._waiting: deque[Release] = deque()
        self._refused: list[Release] = []
        self._under_way = 0
        self._all_committed = trio.lowlevel.ParkingLot()

    @property
    def are_waiting(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._waiting)

    @property
    def is_refused(self) -> bool:
        """Whether some have been refused and wait for `retry`."""
        return bool(self._refused)

    def add(self, release: Release) -> None:
        """Return these leases soon."""
        self._waiting.extend(release.parts(RELEASED_AT_ONCE))
        self._alarm.ring()

    def step(self) -> None:
        """Return some of those that wait."""
        left = RELEASED_AT_ONCE
        waiting = self._waiting
        while waiting and len(waiting[0].leases) <= left:
            release = waiting.popleft()
            left -= len(release.leases)
            self._under_way += 1
            self._deliver(_ReleaseCall(self, release))

    def retry(self) -> None:
        """Try again what was refused."""
        refused, self._refused = self._refused, []
        self._waiting.extend(refused)

    def committed(self) -> None:
        """A release is committed."""
        self._under_way -= 1
        if not self._is_any_left:
            self._all_committed.unpark_all()

    def failed(self, release: Release) -> None:
        """A release was refused: it waits for `retry`."""
        self._under_way -= 1
        self._refused.append(release)

    @property
    def _is_any_left(self) -> bool:
        return bool(self._under_way or self._waiting or self._refused)

    async def wait(self) -> None:
        """Wait until all are committed."""
        while self._is_any_left:
            await self._all_committed.park()


class _ReleaseCall(OwnCall):
    """Returns tasks of a subscriber that has gone."""

    __slots__ = ("_releases",)

    def __init__(self, releases: Releases, release: Release) -> None:
        super().__init__(release)
        self._releases = releases

    def reply(self, message: Any) -> None:  # noqa: ARG002
        if not self.answered:
            self.answered = True
            self._releases.committed()

    def fail(self, error: Exception) -> None:  # noqa: ARG002
        if not self.answered:
            self.answered = True
            self._releases.failed(self.request)
