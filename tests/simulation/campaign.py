"""Many seeds: run, counted and shown. What ``python -m tests.simulation`` does."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator

from tests.simulation.planted_bugs import PLANTED_BUGS
from tests.simulation.run import Report, simulate

SEEDS_AT_ONCE = 10
PROGRESS_EVERY_S = 10.0
SHOWN_MAX = 20
PLANTED_SEEDS = 1_000
"""A planted bug that so many seeds do not find is missed."""


def tell(seed: int, bug: str | None) -> int:
    """One seed, with its plan, its diary and what is wrong."""
    if bug is None:
        report = simulate(seed)
    else:
        with PLANTED_BUGS[bug]():
            report = simulate(seed)
    print(report.plan)
    print(*report.notes, sep="\n")
    print(f"{report.operations} operations, {report.unknown} without an answer")
    print(f"{report.commits} commits in the log, digest {report.digest}")
    print(*(f"known: {gap}" for gap in report.known), sep="\n")
    print(*report.violations, sep="\n\n")
    return 1 if report.violations else 0


def run_many(seeds: range, jobs: int) -> int:
    """Many seeds, with progress and a summary."""
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    known: Counter[str] = Counter()
    bad: list[Report] = []
    began_s = shown_s = time.monotonic()
    for report in _reports(seeds, jobs):
        totals.update(
            seeds=1,
            operations=report.operations,
            unknown=report.unknown,
            simulated_s=round(report.simulated_s),
        )
        faults.update(report.faults)
        known.update(set(report.known))
        if report.violations:
            bad.append(report)
            print(f"seed {report.plan.seed}: {report.violations[0]}", flush=True)
        if time.monotonic() - shown_s > PROGRESS_EVERY_S:
            shown_s = time.monotonic()
            rate = totals["seeds"] / (shown_s - began_s)
            print(f"{totals['seeds']} of {len(seeds)}, {rate:.1f}/s, {len(bad)} bad", flush=True)
    took_s = time.monotonic() - began_s
    print(
        f"{totals['seeds']} seeds in {took_s:.0f} s ({totals['seeds'] / took_s:.1f}/s), "
        f"{totals['simulated_s'] / 3600:.1f} simulated hours, {totals['operations']} operations, "
        f"{totals['unknown']} without an answer, {sum(faults.values())} faults"
    )
    print(", ".join(f"{name} {count}" for name, count in faults.most_common()))
    for gap, count in known.most_common():
        print(f"known: {gap}: {count} seeds")
    if not bad:
        print("no violation")
        return 0
    shown = ", ".join(str(report.plan.seed) for report in bad[:SHOWN_MAX])
    print(f"{len(bad)} seeds with violations: {shown}")
    return 1


def _reports(seeds: range, jobs: int) -> Iterator[Report]:
    if jobs == 1:
        yield from map(simulate, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(simulate, seeds, chunksize=SEEDS_AT_ONCE)


def find_planted_bugs(start: int, jobs: int) -> int:
    """For every planted bug the first seed that finds it."""
    work = [(name, start) for name in PLANTED_BUGS]
    missed = 0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for name, tried, finding in pool.imap_unordered(find_planted_bug, work):
            if finding is None:
                missed += 1
                print(f"{name}: NOT FOUND in {tried} seeds", flush=True)
            else:
                print(f"{name}: {tried} seeds ({finding})", flush=True)
    return 1 if missed else 0


def find_planted_bug(work: tuple[str, int]) -> tuple[str, int, str | None]:
    """The bug's name, how many seeds were tried, and what was found."""
    name, start = work
    for seed in range(start, start + PLANTED_SEEDS):
        with PLANTED_BUGS[name]():
            report = simulate(seed)
        if report.violations and not simulate(seed).violations:
            return name, seed - start + 1, report.violations[0].splitlines()[0][:120]
    return name, PLANTED_SEEDS, None
