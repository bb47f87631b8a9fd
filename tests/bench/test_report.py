"""Result files: medians and ratios, what is left out of them, and comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import report
from bench.runner import Sample
from bench.scenarios import CLAIMS, PROFILES, SCENARIOS

ABOUT: dict[str, Any] = {
    "when": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "changed": False,
    "machine": {
        "processor": "a processor",
        "cores": 2,
        "memory_gib": 8.0,
        "system": "Linux",
        "load_average": [0.1, 0.1, 0.1],
    },
    "versions": {"python": "3.11"},
}


def sample(server: str, round_: int, rate: float, **values: Any) -> Sample:
    fields = {"scenario": "store-128", "step": "store", "title": "StoreResult"} | values
    return Sample(server=server, round=round_, rate=rate, calls=1, p50_us=1e3, p99_us=3e3, **fields)


def results(*samples: Sample) -> report.Results:
    return report.Results(ABOUT, samples)


ROW = ("store-128", "store", "ours")


def test_a_figure_is_the_median_with_its_range() -> None:
    figure = results(*(sample("ours", n, rate) for n, rate in enumerate([90, 100, 200]))).figure(
        *ROW, "rate"
    )
    assert figure is not None
    assert (figure.median, figure.low, figure.high, figure.rounds) == (100, 90, 200, 3)
    assert figure.spread == pytest.approx(1.1)


def test_ratios_are_taken_within_each_round() -> None:
    # The machine was twice as fast in the second round: for both.
    seen = results(
        sample("ours", 1, 100),
        sample("ours", 2, 200),
        sample("go", 1, 50),
        sample("go", 2, 100),
        sample("go", 3, 1),
    )
    ratio = seen.ratio(ROW, ("store-128", "store", "go"), "rate")
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)


def test_a_sample_whose_answers_were_wrong_does_not_count() -> None:
    seen = results(
        sample("ours", 1, 100), sample("ours", 2, 900, problems=["results: 1 stored, 2 sent"])
    )
    figure = seen.figure(*ROW, "rate")
    assert figure is not None
    assert figure.high == 100
    assert "NOT COUNTED, results: 1 stored, 2 sent" in report.markdown(seen)


def test_a_skipped_step_is_named_and_has_no_figures() -> None:
    seen = results(sample("ours", 1, 0, skipped="UNIMPLEMENTED"))
    assert seen.figure(*ROW, "rate") is None
    assert "skipped, UNIMPLEMENTED" in report.markdown(seen)


def test_samples_taken_beside_other_programs_are_pointed_out() -> None:
    text = report.markdown(results(sample("ours", 1, 100, other_cores=1.2)))
    assert "1 of 1 samples were taken while other programs used" in text


def test_everything_is_written_and_can_be_read_back(tmp_path: Path) -> None:
    seen = results(sample("ours", 1, 100.0), sample("go", 1, 50.0))
    written = report.write(seen, tmp_path, "run")
    assert {path.suffix for path in written} == {".json", ".md", ".svg"}
    again = report.Results.load(tmp_path / "run.json")
    assert [s.to_json() for s in again.samples] == [s.to_json() for s in seen.samples]
    claims = {c["text"]: c for c in json.loads((tmp_path / "run.json").read_text())["claims"]}
    claim = claims["StoreResult, 128 in flight: at least 2 times Go with one round trip"]
    assert claim["shown"] is True
    for path in written:
        if path.suffix == ".svg":
            ET.fromstring(path.read_text())  # noqa: S314 - our own file


def test_a_comparison_marks_only_what_is_beyond_the_spread() -> None:
    before = results(sample("ours", 1, 100), sample("ours", 2, 110), sample("go", 1, 100))
    after = results(sample("ours", 1, 130), sample("ours", 2, 140), sample("go", 1, 101))
    ours, go = report.compare(before, after).splitlines()[-2:]
    assert "+28.6% faster" in ours
    assert "+1.0% |" in go


def test_every_claim_is_about_a_step_that_is_measured() -> None:
    measured = {
        (scenario.name, step.name, server)
        for scenario in SCENARIOS
        for step in scenario.measured
        for server in scenario.servers
    }
    for claim in CLAIMS:
        assert claim.numerator in measured, claim.text
        assert claim.denominator in measured, claim.text


def test_every_reading_step_reads_what_an_earlier_step_writes() -> None:
    for scenario in SCENARIOS:
        before: set[str] = set()
        for step in (*scenario.setup, *scenario.measured):
            assert step.reads is None or step.reads in before, (scenario.name, step.name)
            before.add(step.name)


def test_every_profile_names_scenarios_that_exist() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    for profile in PROFILES.values():
        assert set(profile.scenarios) <= set(names)
    assert PROFILES["full"].rounds >= 5
