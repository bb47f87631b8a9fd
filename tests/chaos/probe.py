"""``python -m tests.chaos.probe ADDRESS [TOKEN]``: one call after the other, each timed.

The program prints a line for each call: when it began, how long it took, and why it failed if it
did, in seconds of the machine's monotonic clock. It is a process of its own, so that the clients
who attack do not slow it down by what they do themselves. `Probe` starts it and collects.
"""

from __future__ import annotations

import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench.load.connection import UnaryConnection
from bench.load.histogram import Histogram
from bench.load.requests import Parameters, id_prefix
from bench.load.task_workloads import Leases
from bench.load.wire import Tally
from bench.load.workloads import make_workload

PAUSE_S = 0.005


class Probe:
    """A client that behaves, at work until `close`."""

    def __init__(self, address: str, *, token: str | None = None) -> None:
        self.samples: list[tuple[float, float]] = []
        """When a call began, and how long it took."""
        self.failures: list[tuple[float, str]] = []
        arguments = [address] if token is None else [address, token]
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.chaos.probe", *arguments),
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self._thread = threading.Thread(target=self._collect, name="probe")
        self._thread.start()

    def _collect(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            began, took, failure = line.rstrip("\n").split(" ", 2)
            if failure:
                self.failures.append((float(began), failure))
            else:
                self.samples.append((float(began), float(took)))

    def between(self, start: float, end: float) -> Histogram:
        """Latencies of the calls that began then, by `time.perf_counter`."""
        return Histogram.of_seconds(took for at, took in self.samples if start <= at < end)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main(address: str, token: str | None = None) -> None:
    """Call until the process is ended."""
    headers = [] if token is None else [("authorization", f"Bearer {token}")]
    tally = Tally()
    parameters = Parameters("store_result", id_prefix(99, 99), agents=97, mix="small")
    workload = make_workload(parameters, Leases())
    connection = UnaryConnection(address, workload, tally, 1, more_headers=headers)
    connection.connect()
    while True:
        failed = tally.failures.total()
        start = time.perf_counter()
        connection.issue(1, start, None)
        while connection.in_flight:
            writers = [connection] if connection.unsent else []
            readable, writable, _ = select.select([connection], writers, (), 0.5)
            if writable:
                connection.writable()
            if readable:
                connection.receive()
        failure = ", ".join(tally.failures) if tally.failures.total() > failed else ""
        print(start, time.perf_counter() - start, failure, flush=True)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
