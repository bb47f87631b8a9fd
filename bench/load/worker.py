"""The loop of one load process: sends, receives, keeps time.

Closed loop: every reply makes room for the next call. Open loop: calls fall due at
fixed intervals whatever the server does, and latency counts from the moment a call
was due, so that a stall shows in every call it delayed.
"""

from __future__ import annotations

import gc
import select
from collections.abc import Iterable
from time import perf_counter, process_time

from bench.load.connection import UnaryConnection
from bench.load.histogram import Histogram
from bench.load.plan import Group, GroupOutcome, Load, Outcome
from bench.load.stream import StreamConnection
from bench.load.task_workloads import Leases
from bench.load.wire import Connection, ConnectionLostError, Tally
from bench.load.workloads import make_workload

_IDLE_WAIT_S = 0.05
_TICK_S = 0.001
"""How often an open loop looks at what has fallen due."""

_ABANDON_BACKLOG_S = 20.0
"""An open loop whose backlog is worth more than this is lost: the server cannot hold the rate."""

_GIVE_UP_FAILURES = 1_000
"""A load in which so many calls failed, and none succeeded, is not worth waiting for."""


class _Lane:
    """A group at work: its connections, its tally and, in an open loop, its timetable."""

    def __init__(self, group: Group, address: str, leases: Leases) -> None:
        self.group = group
        self.tally = Tally()
        workload = make_workload(group.workload, leases)
        connection_class = StreamConnection if group.stream else UnaryConnection
        self.workload = workload
        share, extra = divmod(group.in_flight, group.connections)
        self.connections: list[Connection] = [
            connection_class(address, workload, self.tally, share + (index < extra))
            for index in range(group.connections)
        ]
        self.start = 0.0
        self.due_taken = 0
        """Calls of the timetable that were issued."""
        self._turn = 0

    def connect(self) -> None:
        for connection in self.connections:
            connection.connect()

    @property
    def in_flight(self) -> int:
        return sum(len(connection.in_flight) for connection in self.connections)

    def _times(self, count: int) -> Iterable[float]:
        """When the next ``count`` calls of the timetable are due."""
        rate = self.group.rate
        assert rate is not None
        first = self.due_taken
        self.due_taken += count
        return [self.start + number / rate for number in range(first, first + count)]

    def due(self, now: float) -> int:
        """Calls that have fallen due and are not issued yet."""
        rate = self.group.rate
        if rate is None:
            return 0
        return int((now - self.start) * rate) + 1 - self.due_taken

    def issue_due(self, now: float) -> None:
        """Spreads what is due over the connections, a different one first each time."""
        due = self.due(now)
        if due <= 0:
            return
        connections = self.connections
        for offset in range(len(connections)):
            connection = connections[(self._turn + offset) % len(connections)]
            share = -(-due // (len(connections) - offset))
            count = min(share, connection.room)
            if count > 0:
                due -= connection.issue(count, now, self._times)
            if due <= 0:
                break
        self._turn += 1

    def issue_room(self, now: float) -> int:
        """Fills every connection (closed loop); returns how many calls were sent."""
        sent = 0
        for connection in self.connections:
            room = connection.room
            if room > 0:
                sent += connection.issue(room, now, None)
        return sent

    def outcome(self) -> GroupOutcome:
        tally = self.tally
        return GroupOutcome(
            issued=tally.issued,
            acknowledged=tally.acknowledged,
            unanswered=self.in_flight,
            failures=dict(tally.failures),
            examples=tally.examples,
            received_bytes=tally.received_bytes,
            in_flight=sum(
                min(connection.max_streams, connection.limit) for connection in self.connections
            ),
        )


class _Window:
    """The time in which calls are measured, and what is noted of it for each lane."""

    def __init__(self, lanes: int) -> None:
        self.counted = [0] * lanes
        """Calls acknowledged before it began."""
        self.backlogs: list[list[int]] = [[] for _ in range(lanes)]
        """Calls in flight or due, at the end of each second."""
        self.has_begun = False
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self._wall_from = self._cpu_from = 0.0

    def begin(self) -> float:
        """Returns the moment at which it begins."""
        self.has_begun = True
        self._wall_from, self._cpu_from = perf_counter(), process_time()
        return self._wall_from

    def end(self) -> None:
        """Without `begin`, no time has passed."""
        if self.has_begun:
            self.wall_s = perf_counter() - self._wall_from
            self.cpu_s = process_time() - self._cpu_from


class Worker:
    """Runs one `Load`. Use once: `connect`, then `run`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        leases = Leases()
        self._lanes = [_Lane(group, load.address, leases) for group in load.groups]
        self._connections = {
            connection.fileno(): (lane, connection)
            for lane in self._lanes
            for connection in lane.connections
        }
        self._readers = list(self._connections)

    def connect(self) -> None:
        """Opens all connections; raises `ConnectionLostError` or `OSError`."""
        for lane in self._lanes:
            lane.connect()

    def close(self) -> None:
        """Closes all connections."""
        for _, connection in self._connections.values():
            connection.close()

    def run(self) -> Outcome:
        """Warms up, measures, drains. A lost connection ends it early: `Outcome.error`."""
        gc.collect()
        gc.freeze()
        gc.disable()
        begin = perf_counter()
        window = _Window(len(self._lanes))
        error = None
        try:
            self._warm_up(begin)
            self._measure(window)
        except ConnectionLostError as lost:
            error = str(lost)
        window.end()
        measured = [lane.tally.acknowledged for lane in self._lanes]
        samples = [lane.tally.samples for lane in self._lanes]
        for lane in self._lanes:
            lane.tally.samples = []
        try:
            if error is None:
                self._drain()
        except ConnectionLostError as lost:
            error = str(lost)
        elapsed_s = perf_counter() - begin
        hollow = sum(connection.hollow for _, connection in self._connections.values())
        if hollow and error is None:
            error = f"{hollow} replies were OK without a message"
        outcomes = {}
        for index, lane in enumerate(self._lanes):
            outcome = lane.outcome()
            outcome.measured = measured[index] - window.counted[index] if window.has_begun else 0
            outcome.histogram = Histogram.of_seconds(samples[index]).to_json()
            outcome.backlog = window.backlogs[index]
            outcomes[lane.group.name] = outcome
        gc.enable()
        return Outcome(
            groups=outcomes,
            window_s=window.wall_s,
            elapsed_s=elapsed_s,
            cpu_s=window.cpu_s,
            error=error,
        )

    def _warm_up(self, begin: float) -> None:
        for lane in self._lanes:
            lane.start = begin
        self._steps(begin + self._load.warmup_s)

    def _measure(self, window: _Window) -> None:
        """Runs for the load's duration, and notes the backlog of every second."""
        for index, lane in enumerate(self._lanes):
            window.counted[index] = lane.tally.acknowledged
            lane.tally.samples = []
        second = window.begin()
        end = second + self._load.duration_s
        while (now := perf_counter()) < end and not self._finished() and not self._lost():
            second = min(end, second + 1.0)
            self._steps(max(now, second))
            for backlog, lane in zip(window.backlogs, self._lanes, strict=True):
                backlog.append(lane.in_flight + max(0, lane.due(perf_counter())))

    def _lost(self) -> bool:
        """Whether going on shows nothing: everything fails, or an open loop cannot be held."""
        for lane in self._lanes:
            if not lane.tally.acknowledged and lane.tally.failures.total() >= _GIVE_UP_FAILURES:
                return True
            rate = lane.group.rate
            if rate is not None and lane.due(perf_counter()) > rate * _ABANDON_BACKLOG_S:
                return True
        return False

    def _finished(self) -> bool:
        return self._load.until_exhausted and not any(
            lane.in_flight or lane.issue_room(perf_counter()) for lane in self._lanes
        )

    def _steps(self, until: float) -> None:
        """Runs the loops until a moment on `perf_counter`'s scale, or until all is done."""
        connections = self._connections
        readers = self._readers
        open_lanes = [lane for lane in self._lanes if lane.group.rate is not None]
        closed = [lane for lane in self._lanes if lane.group.rate is None]
        dependent = [lane for lane in closed if lane.workload.tracks]
        exhaustible = self._load.until_exhausted
        for lane in closed:
            lane.issue_room(perf_counter())
        while True:
            now = perf_counter()
            if now >= until or (exhaustible and self._finished()):
                return
            writers = [fd for fd in readers if connections[fd][1].unsent]
            wait_s = min(_TICK_S if open_lanes else _IDLE_WAIT_S, until - now)
            readable, writable, _ = select.select(readers, writers, (), wait_s)
            for fd in writable:
                connections[fd][1].writable()
            for fd in readable:
                lane, connection = connections[fd]
                connection.receive()
                if lane.group.rate is None:
                    room = connection.room
                    if room > 0:
                        connection.issue(room, perf_counter(), None)
            if readable:
                for lane in dependent:
                    lane.issue_room(perf_counter())
            if open_lanes:
                now = perf_counter()
                for lane in open_lanes:
                    lane.issue_due(now)

    def _drain(self) -> None:
        """Waits for the replies still to come."""
        until = perf_counter() + self._load.drain_s
        while (now := perf_counter()) < until:
            waiting = [fd for fd in self._readers if self._connections[fd][1].in_flight]
            if not waiting:
                return
            writers = [fd for fd in waiting if self._connections[fd][1].unsent]
            readable, writable, _ = select.select(waiting, writers, (), min(0.1, until - now))
            for fd in writable:
                self._connections[fd][1].writable()
            for fd in readable:
                self._connections[fd][1].receive()
