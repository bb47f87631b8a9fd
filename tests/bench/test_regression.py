"""The comparison with the commit before: its verdicts, and what it compares with."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import call_cost, regression
from bench.call_cost import Finding
from bench.regression import (
    Cost,
    MeasuringError,
    NothingToCompareError,
    TooBusyError,
    compare,
    extract,
    table,
)


def taking(*costs_us: float, waited: float = 0.0) -> Callable[[], Finding]:
    """One cost after another, the last one for ever."""
    costs: Iterator[float] = chain(costs_us, repeat(costs_us[-1]))
    return lambda: Finding({"32": next(costs)}, waited)


@pytest.fixture(name="repository")
def _repository(tmp_path: Path) -> Path:
    """Two commits of a package; git knows who makes them without being asked."""
    root = tmp_path / "repository"
    package = root / "dbos_actors"
    package.mkdir(parents=True)
    git(root, "init", "-q")
    for text in ("first", "second"):
        (package / "__init__.py").write_text(text)
        git(root, "add", ".")
        git(root, "-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qm", text)
    return root


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


def test_each_side_counts_with_its_cheapest_turn() -> None:
    costs = compare(taking(20.0, 18.0, 30.0), taking(19.0, 25.0, 21.0))
    assert costs["32"].ratio == pytest.approx(19.0 / 18.0)
    assert not costs["32"].is_too_high
    assert len(costs["32"].after) == regression.TURNS


def test_a_cost_that_seems_too_high_is_measured_again_before_it_is_believed() -> None:
    disturbed = compare(taking(18.0), taking(21.0, 22.0, 23.0, 18.5))
    assert not disturbed["32"].is_too_high
    dearer = compare(taking(18.0), taking(20.0))
    assert dearer["32"].is_too_high
    assert len(disturbed["32"].after) == len(dearer["32"].after) == 2 * regression.TURNS


def test_turns_that_waited_for_a_core_do_not_count() -> None:
    findings = iter([Finding({"32": 10.0}, 0.5), *[Finding({"32": 20.0}, 0.05)] * 5])
    costs = compare(taking(20.0), lambda: next(findings))
    assert costs["32"].ratio == 1.0
    assert len(costs["32"].after) == regression.TURNS - 1


def test_a_machine_that_is_always_busy_tells_nothing() -> None:
    with pytest.raises(TooBusyError, match="waited 0% to 40% of their time"):
        compare(taking(20.0), taking(10.0, waited=0.4))


def test_the_table_says_what_is_too_high() -> None:
    text = table({"32": Cost([20.0], [19.0]), "1": Cost([100.0], [120.0])}, "abc1234")
    assert "abc1234" in text
    assert "-5.0%  ok" in text
    assert "+20.0%  TOO HIGH" in text


def test_the_commit_before_is_taken_from_the_repository(repository: Path, tmp_path: Path) -> None:
    assert extract("HEAD^", tmp_path, root=repository)
    assert (tmp_path / "dbos_actors" / "__init__.py").read_text() == "first"


@pytest.mark.parametrize("revision", ["HEAD^^", "nonsense", "--help"])
def test_without_the_other_commit_there_is_nothing_to_compare(
    repository: Path, tmp_path: Path, revision: str
) -> None:
    with pytest.raises(NothingToCompareError, match="there is no commit"):
        extract(revision, tmp_path, root=repository)


def test_outside_a_repository_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(NothingToCompareError):
        extract("HEAD^", tmp_path, root=tmp_path)


def test_the_command_says_that_it_skips_and_is_content() -> None:
    result = CliRunner().invoke(regression.main, ["--base", "nonsense"])
    assert result.exit_code == 0
    assert result.output.startswith("skipped: there is no commit nonsense")


def test_the_command_fails_for_a_dearer_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "extract", lambda *_: "abc1234")
    after = regression.ROOT

    def cost(cost_us: float) -> Finding:
        return Finding({"32": cost_us}, 0.0)

    monkeypatch.setattr(regression, "measure", lambda tree: cost(25.0 if tree == after else 20.0))
    result = CliRunner().invoke(regression.main, [])
    assert result.exit_code == 1
    assert "A call costs over 10% more than at abc1234." in result.output


def test_calls_that_come_together_cost_less_than_one_alone() -> None:
    costs = regression.measure(regression.ROOT).costs_us
    assert list(costs) == [str(calls) for calls in call_cost.BATCHES]
    assert 1.0 < costs["32"] < costs["10"] < costs["1"]


def test_a_side_that_cannot_be_measured_says_why(tmp_path: Path) -> None:
    package = tmp_path / "dbos_actors"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('no such luck')")
    with pytest.raises(MeasuringError, match="no such luck"):
        regression.measure(tmp_path)
