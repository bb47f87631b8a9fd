"""Who waits for due tasks, and whose turn it is: the subscribers of the scheduler.

Subscribers with the same filter form a group and share its tasks, in turns. A group is *ready*
while it may have something to push: one of its tasks fell due, or one of its subscribers got room.
Only ready groups are looked at. So ten thousand subscribers, each for an agent of its own, cost
nothing when a task of another agent falls due.

A subscriber *holds* the tasks leased to it until their lease ends, however that happens:
acknowledged on this stream or elsewhere, given back, expired. All that it holds counts against its
`max_in_flight`, also what is not sent yet.

What is leased to a subscriber waits for its commit, then in the stream, then in the transport. If
the stream ends before the transport has handed it over, its worker never saw the task, and the
delivery does not count.

Nothing here calls the scheduler or its actor. The actor notes what happened to leases and which
flows have due tasks; the scheduler asks whom to push to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from dbos_actors.actors.tasks.alarm import Alarm
from dbos_actors.clock import Clock
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


_PAUSE_S: Final = 1.0
"""Nothing is pushed for so long after the store or a full queue has refused a push."""


class ReadyGroups:
    """The groups that may have something to push, in the order in which they are looked at."""

    __slots__ = ("_alarm", "_groups")

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._groups: dict[Group, None] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, group: Group) -> None:
        """The group may have something to push. The first one wakes the scheduler."""
        if not self._groups:
            self._alarm.ring()
        self._groups[group] = None

    def discard(self, group: Group) -> None:
        self._groups.pop(group, None)

    def pop(self) -> Group:
        """Take out the first one."""
        group = next(iter(self._groups))
        del self._groups[group]
        return group

    def put_back(self, group: Group) -> None:
        """The group has been looked at and may have more: it is the last one now."""
        self._groups[group] = None


class Group:
    """The subscribers of one filter; the first one is served next."""

    __slots__ = ("agent_id", "module_name", "ready", "subscribers")

    def __init__(self, agent_id: str, module_name: str, ready: ReadyGroups) -> None:
        self.agent_id = agent_id
        self.module_name = module_name
        self.ready = ready
        self.subscribers: OrderedDict[Subscriber, None] = OrderedDict()

    def next_with_room(self) -> Subscriber | None:
        """The next one to be served; it goes to the back."""
        for _ in range(len(self.subscribers)):
            subscriber = next(iter(self.subscribers))
            self.subscribers.move_to_end(subscriber)
            if subscriber.room > 0:
                return subscriber
        return None


class Subscriber:
    """One stream that tasks are pushed to."""

    __slots__ = (
        "_received",
        "agent_id",
        "closed",
        "group",
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
        received: Callable[[bytes, dict[str, str]], None],
        *,
        group: Group,
        lease_s: int,
        max_in_flight: int,
        worker_id: str,
    ) -> None:
        """``received`` gets serialised responses with tasks, and the leases of these.

        The responses wait for `sent`, the leases for `handed_over`.
        """
        self.agent_id = group.agent_id
        self.module_name = group.module_name
        self.group = group
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
        self._received = received

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

    def receive(self, leases: dict[str, str], size_bytes: int, response: bytes) -> None:
        """These leases of ``size_bytes`` are committed: the serialised response may be sent."""
        self.under_way -= 1
        self.unsent_bytes += len(response)
        self._received(response, leases)
        self.sent(size_bytes)

    def expect(self, size_bytes: int) -> None:
        """Leases of at most ``size_bytes`` wait for their commit."""
        self.under_way += 1
        self.unsent_bytes += size_bytes

    def refused(self, size_bytes: int) -> None:
        """Leases of ``size_bytes`` are not committed, or not known to be."""
        self.under_way -= 1
        self._received(b"", {})
        self.sent(size_bytes)

    def sent(self, size_bytes: int) -> None:
        """So much of what was received is on its way."""
        was_full = self.unsent_bytes >= _UNSENT_BYTES_MAX
        self.unsent_bytes -= size_bytes
        if was_full:
            self.got_room()

    def got_room(self) -> None:
        """It may be given more tasks than before."""
        if not self.closed:
            self.group.ready.add(self.group)

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


class Subscribers:
    """All subscribers."""

    def __init__(self, alarm: Alarm, clock: Clock) -> None:
        """``alarm`` rings when there is a group to look at."""
        self.holders: dict[str, Subscriber] = {}
        """Task id -> who holds it."""
        self.count = 0
        self._clock = clock
        self._groups: dict[tuple[str, str], Group] = {}
        self._ready = ReadyGroups(alarm)
        self._paused_until_s = 0.0

    # ------------------------------------------------------------ who is there

    def join(
        self,
        received: Callable[[bytes, dict[str, str]], None],
        *,
        agent_id: str,
        module_name: str,
        lease_s: int,
        max_in_flight: int,
        worker_id: str,
    ) -> Subscriber:
        """A new subscriber; see `Subscriber`."""
        key = (agent_id, module_name)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(agent_id, module_name, self._ready)
        subscriber = Subscriber(
            received,
            group=group,
            lease_s=lease_s,
            max_in_flight=max_in_flight,
            worker_id=worker_id,
        )
        group.subscribers[subscriber] = None
        self.count += 1
        self._ready.add(group)
        return subscriber

    def close(self, subscriber: Subscriber) -> None:
        """Push nothing more to a subscriber."""
        if subscriber.closed:
            return
        subscriber.closed = True
        group = subscriber.group
        del group.subscribers[subscriber]
        self.count -= 1
        if not group.subscribers:
            del self._groups[group.agent_id, group.module_name]
            self._ready.discard(group)

    def forget(self, subscriber: Subscriber) -> dict[str, str]:
        """Let go of all a subscriber holds; these leases, task id -> token."""
        held, subscriber.held = subscriber.held, {}
        for task_id in held:
            del self.holders[task_id]
        return held

    # ------------------------------------------------------------ whose turn it is

    def pause(self) -> None:
        """The store or a full queue did not allow a push: none is tried again at once."""
        self._paused_until_s = self._clock.monotonic_s() + _PAUSE_S

    @property
    def is_paused(self) -> bool:
        return self._clock.monotonic_s() < self._paused_until_s

    def next_push(self, book: TaskBook) -> tuple[Subscriber, int] | None:
        """Whom to lease tasks to now, and how many at most; None: nobody."""
        ready = self._ready
        while ready:
            group = ready.pop()
            if not book.has_due(group.agent_id, group.module_name):
                continue
            subscriber = group.next_with_room()
            if subscriber is None:
                continue
            ready.put_back(group)
            # So that few tasks are spread over those who wait, not given to the first.
            share = -(-len(book.index.due) // len(group.subscribers))
            return subscriber, min(subscriber.room, PUSHED_AT_ONCE, share)
        return None

    # ------------------------------------------------------------- what happens to tasks

    def hold(self, subscriber: Subscriber, leases: dict[str, str], size_bytes: int) -> None:
        """These tasks are leased to a subscriber; the commit is under way."""
        subscriber.expect(size_bytes)
        for task_id, token in leases.items():
            subscriber.held[task_id] = subscriber.unsent[task_id] = token
            self.holders[task_id] = subscriber

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
                    self._ready.add(group)

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
                holder.got_room()

    def reloaded(self, book: TaskBook) -> None:
        """The book was read back: drop the leases it does not know."""
        for task_id, holder in list(self.holders.items()):
            if not _is_leased(book.get(task_id), holder.held[task_id]):
                del self.holders[task_id]
                holder.lost(task_id)
        for group in self._groups.values():
            self._ready.add(group)


def _is_leased(record: TaskRecord | None, token: str) -> bool:
    return record is not None and record.status is Status.INFLIGHT and record.lease_token == token
