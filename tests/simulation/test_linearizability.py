"""The checker accepts what can have happened and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.history import KeyOperation, Operation
from tests.simulation.linearizability import Rollback, Verdict, check
from tests.simulation.models import (
    ABSENT,
    DELETE,
    OK,
    READ,
    STORED,
    Report,
    RunState,
    result_model,
    run_model,
)

YES, NO = Verdict.LINEARIZABLE, Verdict.VIOLATION


def done(start: int, end: int | None, kind: str, argument: Any, result: Any) -> KeyOperation:
    operation = Operation(0, "c", kind, {}, start=start, start_s=0.0)
    return KeyOperation(operation, kind, argument, result, start, end)


def write(start: int, end: int | None, data: str, result: str | None = STORED) -> KeyOperation:
    return done(start, end, "store", data, result if end is not None else None)


def read(start: int, end: int, data: str) -> KeyOperation:
    return done(start, end, READ, None, data)


@pytest.mark.parametrize(
    ("operations", "verdict"),
    [
        ([write(1, 2, "a"), read(3, 4, "a")], YES),
        ([write(1, 2, "a"), read(3, 4, ABSENT)], NO),
        ([write(1, 4, "a"), read(2, 3, ABSENT)], YES),
        ([write(1, 4, "a"), read(2, 3, "a"), read(5, 6, "a")], YES),
        # Seen, then gone: a read of what was never committed.
        ([write(1, None, "a"), read(2, 3, "a"), read(4, 5, ABSENT)], NO),
        ([write(1, None, "a"), read(2, 3, ABSENT), read(4, 5, "a")], YES),
        ([write(1, None, "a"), read(2, 3, ABSENT)], YES),
        # The first write wins.
        ([write(1, 2, "a"), write(3, 4, "b", "duplicate"), read(5, 6, "a")], YES),
        ([write(1, 2, "a"), write(3, 4, "b"), read(5, 6, "b")], NO),
        ([write(1, 2, "a", "duplicate")], NO),
        ([write(1, None, "a"), write(2, 3, "a", "duplicate")], YES),
        ([write(1, 2, "a"), done(3, 4, DELETE, None, OK), read(5, 6, ABSENT)], YES),
        ([write(1, 2, "a"), done(3, None, DELETE, None, None), read(5, 6, ABSENT)], YES),
    ],
)
def test_results(operations: list[KeyOperation], verdict: Verdict) -> None:
    assert check(operations, result_model) is verdict


def report(  # noqa: PLR0917 - one line of a history
    start: int, end: int | None, state: str, version: int, tag: str, result: str | None = OK
) -> KeyOperation:
    return done(start, end, "report", Report(state, version, tag), result)


@pytest.mark.parametrize(
    ("operations", "verdict"),
    [
        ([report(1, 2, "created", 0, "x"), read_run := done(3, 4, READ, None, ABSENT)], NO),
        (
            [
                report(1, 2, "created", 0, "x"),
                done(3, 4, READ, None, RunState("created", 1, "x")),
                report(5, 6, "completed", 2, "y"),
                report(7, 8, "running", 0, "z", "invalid transition completed -> running"),
                report(9, 10, "completed", 0, "w"),
                done(11, 12, READ, None, RunState("completed", 2, "y")),
            ],
            YES,
        ),
        # A retry without an answer that was applied once, then found to be a repeat.
        (
            [
                report(1, None, "created", 1, "x", None),
                report(2, 3, "created", 1, "x"),
                done(4, 5, READ, None, RunState("created", 1, "x")),
            ],
            YES,
        ),
        # Applied twice although its version allows it once.
        (
            [
                report(1, None, "created", 1, "x", None),
                report(2, 3, "created", 1, "x"),
                done(4, 5, READ, None, RunState("created", 2, "x")),
            ],
            NO,
        ),
        (
            [
                report(1, 2, "created", 0, "x"),
                report(3, 4, "created", 3, "y", "version conflict: expected 2, got 3"),
            ],
            YES,
        ),
        (
            [
                report(1, 2, "created", 0, "x"),
                report(3, 4, "created", 3, "y", "version conflict: expected 3, got 3"),
            ],
            NO,
        ),
    ],
)
def test_runs(operations: list[KeyOperation], verdict: Verdict) -> None:
    assert check(operations, run_model) is verdict


def test_what_has_not_happened_when_all_was_quiet_never_may() -> None:
    operations = [write(1, None, "a"), read(5, 6, ABSENT), read(7, 8, "a")]
    assert check(operations, result_model) is YES
    assert check(operations, result_model, settled_at=4) is NO
    operations = [write(1, None, "a"), read(5, 6, "a")]
    assert check(operations, result_model, settled_at=4) is YES


def test_a_rollback_takes_back_what_was_not_certain_and_no_more() -> None:
    lost = [write(1, 2, "a"), read(3, 4, "a"), read(7, 8, ABSENT)]
    assert check(lost, result_model) is NO
    assert check(lost, result_model, rollbacks=[Rollback(certain=0, at=5)]) is YES
    assert check(lost, result_model, rollbacks=[Rollback(certain=3, at=5)]) is NO
    kept = [write(1, 2, "a"), read(3, 4, "a"), read(7, 8, "a")]
    assert check(kept, result_model, rollbacks=[Rollback(certain=0, at=5)]) is YES
