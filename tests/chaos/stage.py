"""A stage for clients that misbehave: a server, its Valkey, and a probe that behaves.

The probe is a client on a connection of its own that stores one result after the other, about
other agents, and times each. What the probe sees is how others are served. `Report` collects what
a scenario shows, line by line, each with the limit it must keep.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.load.histogram import Histogram
from bench.servers import usage_of
from tests.chaos.inspected import InspectedServer, resident_bytes
from tests.chaos.probe import Probe
from tests.support.valkey import ValkeyServer

MB: Final = 1e6


@dataclass(slots=True)
class Line:
    """One line of the report."""

    what: str
    figure: str
    limit: str = ""
    ok: bool = True


@dataclass(slots=True)
class Report:
    """Of one scenario."""

    name: str
    lines: list[Line] = field(default_factory=list)

    def add(self, what: str, figure: str, limit: str = "", *, ok: bool = True) -> None:
        self.lines.append(Line(what, figure, limit, ok))
        print(f"  {what}: {figure} {limit} {'' if ok else 'FAILED'}", file=sys.stderr)


def told(histogram: Histogram) -> str:
    """Percentiles for people."""
    p50, p99, most = (histogram.percentile_us(p) / 1000 for p in (50, 99, 100))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.0f} ms ({len(histogram):,} calls)"


class Watch:
    """The most memory a process had meanwhile."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self.most = resident_bytes(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.most = max(self.most, resident_bytes(self._pid))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(slots=True)
class Stage:
    """What a scenario works with."""

    address: str
    server: InspectedServer
    valkey: ValkeyServer
    probe: Probe
    watch: Watch
    _cpu: tuple[float, float] = (0.0, 0.0)

    def cpu_share(self) -> float:
        """Of one core, what the server has used since this was last asked."""
        before_s, before_cpu_s = self._cpu
        self._cpu = (time.perf_counter(), usage_of(self.server.pid).cpu_s)
        return (self._cpu[1] - before_cpu_s) / (self._cpu[0] - before_s)

    def baseline(self, duration_s: float = 3.0) -> Histogram:
        """How the probe is served with nobody else there."""
        start = time.perf_counter()
        time.sleep(duration_s)
        return self.probe.between(start + 0.5, time.perf_counter())


@contextmanager
def stage(
    before: Callable[[ValkeyServer], None] | None = None,
    *,
    token: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Stage]:
    """A fresh server on a fresh Valkey, with a probe; ``before`` fills the Valkey.

    ``token``: what the probe presents. ``variables``: settings of the server.
    """
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer(appendfsync="everysec"))
        if before is not None:
            before(valkey)
        server = stack.enter_context(InspectedServer(valkey.address, **(variables or {})))
        probe = Probe(server.address, token=token)
        stack.callback(probe.close)
        watch = Watch(server.pid)
        stack.callback(watch.close)
        yield Stage(server.address, server, valkey, probe, watch)


def served(
    report: Report, meanwhile: Histogram, calm: Histogram, *, limit_ms: float = 25.0
) -> None:
    """Others are served as before, or nearly."""
    limit_ms = max(limit_ms, 3 * calm.percentile_us(99) / 1000)
    p99_ms = meanwhile.percentile_us(99) / 1000
    report.add("others", told(meanwhile), f"p99 < {limit_ms:.0f} ms", ok=p99_ms < limit_ms)


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def publish(reports: Sequence[Report]) -> int:
    """Print the reports as Markdown; the exit status: 0 if every limit is kept."""
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    for report in reports:
        print(f"| {report.name} | | limit | |\n|---|---|---|---|")
        for line in report.lines:
            print(f"| {line.what} | {line.figure} | {line.limit} | {'' if line.ok else 'FAILED'} |")
        print()
    return 0 if all(line.ok for report in reports for line in report.lines) else 1
