"""Leasing due tasks to a subscriber, and returning what a vanished subscriber held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from dbos_actors.actors.tasks.messages import OwnCall, Push, Release
from dbos_actors.actors.tasks.subscribers import Subscriber, Subscribers
from dbos_actors.runtime import Call


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
    """The leases of vanished subscribers, until they are returned and that is committed."""

    def __init__(self, deliver: Callable[[Call], None]) -> None:
        """``deliver`` hands the actor a message."""
        self._deliver = deliver
        self._refused: list[Release] = []
        self._under_way = 0
        self._all_committed = trio.lowlevel.ParkingLot()

    @property
    def is_refused(self) -> bool:
        """Whether some have been refused and wait for `retry`."""
        return bool(self._refused)

    def add(self, release: Release) -> None:
        """Return these leases at once."""
        self._under_way += 1
        self._deliver(_ReleaseCall(self, release))

    def retry(self) -> None:
        """Try again what was refused."""
        refused, self._refused = self._refused, []
        for release in refused:
            self.add(release)

    def committed(self) -> None:
        """A release is committed."""
        self._under_way -= 1
        if not self._under_way:
            self._all_committed.unpark_all()

    def failed(self, release: Release) -> None:
        """A release was refused: it waits for `retry`."""
        self._under_way -= 1
        self._refused.append(release)

    async def wait(self) -> None:
        """Wait until all are committed."""
        while self._under_way or self._refused:
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
