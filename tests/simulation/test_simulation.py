"""The simulation itself: it repeats itself exactly, and the product holds in it.

``python -m tests.simulation --seeds 10000`` is the long version.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.campaign import find_planted_bug
from tests.simulation.plan import Fault, plan_of
from tests.simulation.planted_bugs import PLANTED_BUGS
from tests.simulation.run import simulate

SEEDS = 120
"""So many in `.ci/run long`; about half a minute."""

FEW_SEEDS = 8
"""The first ones, so many in `pytest`."""

QUICKLY_FOUND = (
    "acknowledged before it is committed",
    "acknowledged when it is refused",
    "a refused commit reloads nothing",
    "an index of runs is forgotten",
    "the version is not raised",
)
"""Planted bugs that take seconds to find; ``--planted-bugs`` finds them all."""


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, FEW_SEEDS),
        *(
            pytest.param(start, min(start + 40, SEEDS), marks=pytest.mark.long)
            for start in range(FEW_SEEDS, SEEDS, 40)
        ),
    ],
)
def test_no_seed_breaks_a_promise(start: int, end: int) -> None:
    for seed in range(start, end):
        report = simulate(seed)
        assert not report.violations, (
            f"python -m tests.simulation --seed {seed}\n" + report.violations[0]
        )


def test_a_seed_repeats_itself_exactly() -> None:
    for seed in (3, 16, 47):
        assert simulate(seed).digest == simulate(seed).digest


def test_a_seed_repeats_itself_in_another_process() -> None:
    seed = 16
    code = f"from tests.simulation.run import simulate; print(simulate({seed}).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert digests == {simulate(seed).digest}


def test_plans_draw_every_fault() -> None:
    drawn = {fault for seed in range(200) for fault in plan_of(seed).faults}
    assert drawn == set(Fault)


@pytest.mark.parametrize("name", QUICKLY_FOUND)
def test_a_planted_bug_is_found(name: str) -> None:
    assert find_planted_bug((name, 0))[2] is not None


def test_at_least_twelve_bugs_are_planted() -> None:
    assert len(PLANTED_BUGS) >= 12


@pytest.mark.parametrize("name", sorted(PLANTED_BUGS))
def test_what_a_bug_is_planted_in_is_there(name: str) -> None:
    with PLANTED_BUGS[name]():
        pass
