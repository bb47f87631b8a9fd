"""That the load generator is not the limit: its highest rate, its CPU, and h2load beside it."""

from __future__ import annotations

import re
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import servers
from bench.driver import LoadError, run_load
from bench.load.histogram import Histogram
from bench.load.plan import Group, Load
from bench.load.requests import NO_OP, Parameters, id_prefix
from bench.load.workloads import make_workload
from bench.servers import ServerKind

_CONNECTIONS = 4
_IN_FLIGHT = 128
_H2LOAD_RATE = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
_H2LOAD_FAILED = re.compile(r"(\d+) failed, (\d+) errored")


@dataclass(frozen=True, slots=True)
class Measured:
    """One generator against one server."""

    server: str
    generator: str
    rate: float
    cores: float
    """Of the generator."""
    p50_us: float | None = None

    @property
    def per_call_us(self) -> float:
        """The generator's CPU time per call."""
        return self.cores / self.rate * 1e6 if self.rate else 0.0


def measure(kinds: dict[str, ServerKind], duration_s: float) -> list[Measured]:
    """Every server that does nothing, under our generator and, where installed, h2load."""
    canned = ServerKind(
        "canned", "prepared answers", (sys.executable, "-m", "bench.peers.canned"), layout="none"
    )
    chosen = [canned, *(kinds[name] for name in ("ours", "go") if name in kinds)]
    measured = []
    for kind in chosen:
        with servers.scratch_directory() as directory:
            # No method that is called here looks at Redis.
            server = servers.start_server(kind, "127.0.0.1:1", directory, no_op=True)
            try:
                measured.append(_ours(kind.name, server.address, duration_s))
                if shutil.which("h2load"):
                    measured.append(_h2load(kind.name, server.address, duration_s))
            finally:
                server.stop()
    return measured


def _parameters() -> Parameters:
    return Parameters("no_op", id_prefix(secrets.randbits(32), 0), agents=13_000)


def _ours(name: str, address: str, duration_s: float) -> Measured:
    group = Group("no_op", _parameters(), _CONNECTIONS, _IN_FLIGHT)
    total = run_load(Load(address, (group,), warmup_s=0.5, duration_s=duration_s)).total
    if total.error is not None:
        raise LoadError(total.error)
    outcome = total.groups["no_op"]
    return Measured(
        name,
        "bench.load",
        outcome.measured / total.window_s,
        total.cpu_s / total.window_s,
        Histogram.from_json(outcome.histogram).percentile_us(50),
    )


def _h2load(name: str, address: str, duration_s: float) -> Measured:
    shape, first, second = next(make_workload(_parameters()))
    with tempfile.TemporaryDirectory() as directory:
        body = Path(directory) / "body"
        body.write_bytes(shape.a + first + shape.b + second + shape.c)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            (
                "h2load",
                f"-c{_CONNECTIONS}",
                f"-m{_IN_FLIGHT // _CONNECTIONS}",
                "-t1",
                f"-D{max(1, round(duration_s))}",
                "--warm-up-time=1",
                f"--data={body}",
                "-Hcontent-type: application/grpc",
                "-Hte: trailers",
                f"http://{address}{NO_OP}",
            ),
            capture_output=True,
            text=True,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate = _H2LOAD_RATE.search(done.stdout)
    failed = _H2LOAD_FAILED.search(done.stdout)
    if rate is None or failed is None or failed.groups() != ("0", "0"):
        raise LoadError(f"h2load: {done.stdout[-600:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Its CPU includes the second of warm-up.
    return Measured(name, "h2load", float(rate[1]), cpu_s / (max(1, round(duration_s)) + 1))


def table(measured: list[Measured]) -> str:
    """As Markdown."""
    lines = [
        "| server | generator | calls/s | generator cores | generator µs per call | p50 ms |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {m.server} | {m.generator} | {m.rate:,.0f} | {m.cores:.2f} | {m.per_call_us:.2f} | "
        f"{'' if m.p50_us is None else f'{m.p50_us / 1e3:.2f}'} |"
        for m in measured
    ]
    return "\n".join(lines)
