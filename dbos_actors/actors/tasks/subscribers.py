"""Who waits for due tasks, and whose turn it is: the subscribers of the scheduler.

Subscribers with the same filter form a group and share its tasks, in turns. A
group is *hot* while it may have something to push: a task of it fell due, or one
of its subscribers got room. Only hot groups are looked at, so that ten thousand
subscribers of one agent each cost nothing when a task of another falls due.

A subscriber *holds* the tasks leased to it until their lease ends, however it
does: acknowledged on this stream or elsewhere, given back, expired. What it
holds, also what is not sent yet, counts against its `max_in_flight`.

What is leased to it waits for its commit, then in the stream, then in the
transport for the client. If the stream ends before the transport has handed it
over, its worker never saw the task, and the delivery does not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from dbos_actors.actors.tasks.actor import Push
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Status

DEFAULT_IN_FLIGHT: Final = 100
"""For subscribers that do not say; part of the contract."""

PUSHED_AT_ONCE: Final = 100
"""Tasks leased to one subscriber in one turn: 3 ms, and one message."""

_UNSENT_BYTES_MAX: Final = 1 << 20
"""A subscriber that reads slowly is pushed nothing more while so much waits to be sent, what is
being leased included. One task more than that may wait, whatever its size."""


class Subscriber:
    """One stream that tasks are pushed to."""

    __slots__ = (
        "_group",
        "_received",
        "_subscribers",
        "agent_id",
        "closed",
        "held",
        "lease_s",
        "max_in_flight",
        "module_name",
        "under_way",
        "unsent",
        "unsent_bytes",
        "worker_id",
    )

    def __init__(
        self,
        subscribers: Subscribers,
        received: Callable[[bytes, dict[str, str]], None],
        *,
        agent_id: str,
        module_name: str,
        lease_s: int,
        max_in_flight: int,
        worker_id: str,
    ) -> None:
        """``received`` gets serialised responses with tasks, and the leases of these.

        The responses wait for `sent`, the leases for `handed_over`.
        """
        self.agent_id = agent_id
        self.module_name = module_name
        self.lease_s = lease_s
        self.max_in_flight = max_in_flight
        self.worker_id = worker_id
        self.held: dict[str, str] = {}
        """Task id -> token."""
        self.unsent: dict[str, str] = {}
        """Task id -> token, of what was leased to it and is not handed over to its client."""
        self.unsent_bytes = 0
        """What waits to be sent, in bytes; of what waits for its commit, at most."""
        self.under_way = 0
        """Pushes that wait for their commit."""
        self.closed = False
        self._subscribers = subscribers
        self._received = received
        self._group = subscribers.join(self)

    @property
    def room(self) -> int:
        """How many more tasks it may be given."""
        if self.closed or self.unsent_bytes >= _UNSENT_BYTES_MAX:
            return 0
        return self.max_in_flight - len(self.held)

    @property
    def room_bytes(self) -> int:
        """How many more bytes of tasks it may be given."""
        return max(0, _UNSENT_BYTES_MAX - self.unsent_bytes)

    def hold(self, push: Push) -> None:
        """What ``push`` names is leased to it; the commit is under way."""
        holders = self._subscribers.holders
        self.under_way += 1
        self.unsent_bytes += push.size_bytes
        for task_id, token in push.leases.items():
            self.held[task_id] = self.unsent[task_id] = token
            holders[task_id] = self

    def receive(self, push: Push, response: bytes) -> None:
        """The leases of ``push`` are committed: the serialised response may be sent."""
        self.under_way -= 1
        self.unsent_bytes += len(response)
        self._received(response, push.leases)
        self.sent(push.size_bytes)

    def hold_again(self, push: Push) -> None:
        """The commit of ``push`` was given up, and goes on."""
        self.under_way += 1
        self.unsent_bytes += push.size_bytes

    def refused(self, push: Push) -> None:
        """The leases of ``push`` are not committed, or not known to be."""
        self.under_way -= 1
        self._received(b"", {})
        self.sent(push.size_bytes)

    def sent(self, size_bytes: int) -> None:
        """So much of what was received is on its way."""
        was_full = self.unsent_bytes >= _UNSENT_BYTES_MAX
        self.unsent_bytes -= size_bytes
        if was_full:
            self._subscribers.got_room(self)

    def lost(self, task_id: str) -> None:
        """A lease that it held has ended."""
        token = self.held.pop(task_id)
        if self.unsent.get(task_id) == token:
            del self.unsent[task_id]

    def handed_over(self, leases: dict[str, str]) -> None:
        """The client is sent these: their deliveries count."""
        unsent = self.unsent
        for task_id, token in leases.items():
            if unsent.get(task_id) == token:
                del unsent[task_id]

    def close(self) -> None:
        """Push nothing more to it."""
        if not self.closed:
            self.closed = True
            self._subscribers.leave(self)

    @property
    def group(self) -> Group:
        return self._group


class Group:
    """The subscribers of one filter, whose turn it is first."""

    __slots__ = ("agent_id", "module_name", "subscribers")

    def __init__(self, agent_id: str, module_name: str) -> None:
        self.agent_id = agent_id
        self.module_name = module_name
        self.subscribers: deque[Subscriber] = deque()

    def next_with_room(self) -> Subscriber | None:
        """The next one to be served; it goes to the back."""
        for _ in range(len(self.subscribers)):
            subscriber = self.subscribers[0]
            self.subscribers.rotate(-1)
            if subscriber.room > 0:
                return subscriber
        return None


class Subscribers:
    """All subscribers."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """``wake`` is called when a group turns hot."""
        self.holders: dict[str, Subscriber] = {}
        """Task id -> who holds it."""
        self._wake = wake
        self._groups: dict[tuple[str, str], Group] = {}
        self._hot: dict[Group, None] = {}
        self.subscribers = 0

    @property
    def is_hot(self) -> bool:
        return bool(self._hot)

    def join(self, subscriber: Subscriber) -> Group:
        key = (subscriber.agent_id, subscriber.module_name)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
        group.subscribers.append(subscriber)
        self.subscribers += 1
        self._heat(group)
        return group

    def leave(self, subscriber: Subscriber) -> None:
        group = subscriber.group
        group.subscribers.remove(subscriber)
        self.subscribers -= 1
        if not group.subscribers:
            del self._groups[group.agent_id, group.module_name]
            self._hot.pop(group, None)

    def forget(self, subscriber: Subscriber) -> dict[str, str]:
        """Let go of all a subscriber holds; these leases, task id -> token."""
        held, subscriber.held = subscriber.held, {}
        for task_id in held:
            del self.holders[task_id]
        return held

    def fell_due(self, flows: Sequence[Flow]) -> None:
        """Tasks of these flows fell due."""
        groups = self._groups
        for flow in flows:
            for key in (
                (flow.agent_id, flow.module_name),
                (flow.agent_id, ""),
                ("", flow.module_name),
                ("", ""),
            ):
                group = groups.get(key)
                if group is not None:
                    self._heat(group)

    def got_room(self, subscriber: Subscriber) -> None:
        if not subscriber.closed:
            self._heat(subscriber.group)

    def _heat(self, group: Group) -> None:
        if not self._hot:
            self._wake()
        self._hot[group] = None

    def next_push(self, book: TaskBook) -> tuple[Subscriber, int] | None:
        """Whom to lease tasks to now, and how many at most; None: nobody."""
        while self._hot:
            group = next(iter(self._hot))
            del self._hot[group]
            if not book.has_due(group.agent_id, group.module_name):
                continue
            subscriber = group.next_with_room()
            if subscriber is None:
                continue
            self._hot[group] = None  # behind the others
            # So that few tasks are spread over those who wait, not given to the first.
            share = -(-len(book.index.due) // len(group.subscribers))
            return subscriber, min(subscriber.room, PUSHED_AT_ONCE, share)
        return None

    def applied(self, change: Change) -> None:
        """Take note of leases that have ended."""
        holders = self.holders
        if not holders:
            return
        for task_id, record in change.records.items():
            holder = holders.get(task_id)
            if holder is not None and not _is_leased(record, holder.held[task_id]):
                del holders[task_id]
                holder.lost(task_id)
                self.got_room(holder)

    def reloaded(self, book: TaskBook) -> None:
        """The book was read back: drop the leases it does not know."""
        for task_id, holder in list(self.holders.items()):
            if not _is_leased(book.get(task_id), holder.held[task_id]):
                del self.holders[task_id]
                holder.lost(task_id)
        for group in self._groups.values():
            self._heat(group)


def _is_leased(record: TaskRecord | None, token: str) -> bool:
    return record is not None and record.status is Status.INFLIGHT and record.lease_token == token
