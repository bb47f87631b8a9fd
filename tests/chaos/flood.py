"""A load process that offers calls at a rate, whatever becomes of them: what overload is made of.

``python -m tests.chaos.flood`` reads one line of JSON, says "ready", waits for a line, floods,
and prints one line of JSON. Unlike the benchmarks' open loop it does not catch up: a call that no
connection has room for (the server's stream limit, flow control, a full socket) is not sent at
all, as a client with a deadline would give it up.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.load.connection import UnaryConnection
from bench.load.histogram import Histogram
from bench.load.requests import Parameters
from bench.load.task_workloads import Leases
from bench.load.wire import ConnectionLostError, Tally
from bench.load.workloads import make_workload

_TICK_S = 0.001


@dataclass(frozen=True, slots=True)
class Flood:
    """What one process is told."""

    address: str
    workload: dict[str, Any]
    """`bench.load.workloads.Parameters`."""
    rate: float
    connections: int
    in_flight_each: int
    duration_s: float
    token: str | None = None
    """What its calls present."""
    nice: int = 19
    """Those who flood have processors of their own; here they must not take the server's."""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What its calls have beyond those of every gRPC call."""
        return [] if self.token is None else [("authorization", f"Bearer {self.token}")]


@dataclass(slots=True)
class Outcome:
    """What it answers; calls."""

    offered: int = 0
    sent: int = 0
    good_in_time: int = 0
    """Answered well while the flood lasted."""
    refused: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0
    duration_s: float = 0.0
    good_us: dict[str, int] = field(default_factory=dict)
    refused_us: dict[str, int] = field(default_factory=dict)


class _Connection(UnaryConnection):
    """Times refusals too."""

    refusals_s: list[float]

    def _ended(self, stream_id: int, status: str, message: str) -> None:
        start = self.in_flight.get(stream_id)
        if status and start is not None:
            self.refusals_s.append(perf_counter() - start)
        super()._ended(stream_id, status, message)


def run(flood: Flood) -> Outcome:
    """Flood, then wait a little for what is still unanswered."""
    tally = Tally()
    workload = make_workload(Parameters(**flood.workload), Leases())
    connections = [
        _Connection(
            flood.address, workload, tally, flood.in_flight_each, more_headers=flood.headers
        )
        for _ in range(flood.connections)
    ]
    refusals_s: list[float] = []
    for connection in connections:
        connection.refusals_s = refusals_s
        connection.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    os.nice(flood.nice)
    outcome = Outcome()
    start = perf_counter()
    turn = 0
    while (now := perf_counter()) < start + flood.duration_s:
        due = int((now - start) * flood.rate) - outcome.offered
        outcome.offered += due
        for offset in range(len(connections)):
            connection = connections[(turn + offset) % len(connections)]
            count = min(-(-due // (len(connections) - offset)), connection.room)
            if count > 0:
                sent = connection.issue(count, now, None)
                outcome.sent += sent
                due -= sent
        turn += 1
        _exchange(connections, _TICK_S)
    outcome.duration_s = perf_counter() - start
    outcome.good_in_time = tally.acknowledged
    give_up_at = perf_counter() + 15.0
    while any(c.in_flight for c in connections) and perf_counter() < give_up_at:
        _exchange(connections, 0.1)
    outcome.refused = dict(tally.failures)
    outcome.unanswered = sum(len(connection.in_flight) for connection in connections)
    outcome.good_us = Histogram.of_seconds(tally.samples).to_json()
    outcome.refused_us = Histogram.of_seconds(refusals_s).to_json()
    for connection in connections:
        connection.close()
    return outcome


def _exchange(connections: list[_Connection], wait_s: float) -> None:
    readers = {connection.fileno(): connection for connection in connections}
    writers = [connection.fileno() for connection in connections if connection.unsent]
    readable, writable, _ = select.select(readers, writers, (), wait_s)
    for descriptor in writable:
        readers[descriptor].writable()
    for descriptor in readable:
        readers[descriptor].receive()


class FloodProcess:
    """A flood under way in another process."""

    def __init__(self, flood: Flood) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.chaos.flood"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self._say(json.dumps(asdict(flood)))
        assert self._hear() == "ready\n"

    def go(self) -> None:
        self._say("go")

    def outcome(self) -> Outcome:
        """Wait for it."""
        found = Outcome(**json.loads(self._hear()))
        self.close()
        return found

    def close(self) -> None:
        if self._process.poll() is None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the flood has died"
        return line


def main() -> None:
    """One flood, told on standard input."""
    try:
        outcome = run(Flood(**json.loads(sys.stdin.readline())))
    except ConnectionLostError as error:
        outcome = Outcome(refused={f"connection lost: {error}": 1})
    print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
