"""Runs a load against an address, in as many processes as asked, and adds up what they report."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from bench.load.histogram import Histogram
from bench.load.plan import GroupOutcome, Load, Outcome

GENERATOR_LIMIT = 0.9
"""A generator that used more of its core than this may have been the limit: the run is marked."""


class LoadError(Exception):
    """A load process failed."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a load's processes report."""

    total: Outcome
    parts: list[tuple[Load, Outcome]]
    """What each process was told and what it answered."""


def run_load(load: Load, *, workers: int = 1) -> Run:
    """Runs ``load`` in ``workers`` processes, started together; their groups add up.

    Rates and calls in flight are divided among them, and each has ids of its own.
    Raises `LoadError`.
    """
    processes = []
    shares = [_share(load, worker, workers) for worker in range(workers)]
    try:
        for share in shares:
            popen = subprocess.Popen(
                (sys.executable, "-m", "bench.load"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[1],
                text=True,
            )
            processes.append(popen)
            assert popen.stdin is not None
            popen.stdin.write(json.dumps(share.to_json()) + "\n")
            popen.stdin.flush()
        for popen in processes:
            assert popen.stdout is not None
            if popen.stdout.readline() != "ready\n":
                raise LoadError("a load process did not start")
        for popen in processes:
            assert popen.stdin is not None
            popen.stdin.write("go\n")
            popen.stdin.flush()
        outcomes = []
        for popen in processes:
            assert popen.stdout is not None
            line = popen.stdout.readline()
            if not line:
                raise LoadError("a load process died")
            outcomes.append(Outcome.from_json(json.loads(line)))
            popen.wait()
    finally:
        for popen in processes:
            if popen.poll() is None:
                popen.kill()
                popen.wait()
            for pipe in (popen.stdin, popen.stdout):
                if pipe is not None:
                    pipe.close()
    return Run(_added(outcomes), list(zip(shares, outcomes, strict=True)))


def _share(load: Load, worker: int, workers: int) -> Load:
    """One worker's part of a load."""
    if workers == 1:
        return load
    groups = []
    for group in load.groups:
        prefix = group.workload.prefix
        count = group.workload.count
        groups.append(
            replace(
                group,
                connections=max(1, group.connections // workers),
                in_flight=max(1, group.in_flight // workers),
                rate=None if group.rate is None else group.rate / workers,
                workload=replace(
                    group.workload,
                    prefix=f"{prefix[:9]}{worker:04x}{prefix[13:]}",
                    count=None if count is None else count // workers,
                ),
            )
        )
    return replace(load, groups=tuple(groups))


def _added(outcomes: list[Outcome]) -> Outcome:
    first = deepcopy(outcomes[0])
    for other in outcomes[1:]:
        first.cpu_s += other.cpu_s
        first.window_s = max(first.window_s, other.window_s)
        first.elapsed_s = max(first.elapsed_s, other.elapsed_s)
        first.error = first.error or other.error
        for name, group in other.groups.items():
            _add(first.groups[name], group)
    return first


def _add(to: GroupOutcome, other: GroupOutcome) -> None:
    to.measured += other.measured
    to.issued += other.issued
    to.acknowledged += other.acknowledged
    to.unanswered += other.unanswered
    to.received_bytes += other.received_bytes
    to.in_flight += other.in_flight
    for reason, count in other.failures.items():
        to.failures[reason] = to.failures.get(reason, 0) + count
    to.examples = (to.examples + other.examples)[:5]
    histogram = Histogram.from_json(to.histogram)
    histogram.add(Histogram.from_json(other.histogram))
    to.histogram = histogram.to_json()
    to.backlog = [sum(pair) for pair in zip(to.backlog, other.backlog, strict=False)]
