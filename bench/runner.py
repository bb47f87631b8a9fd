"""Runs scenarios round by round, the servers of each one after another, and keeps what it saw.

A *sample* is one step of one scenario on one server in one round.
"""

from __future__ import annotations

import resource
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import servers, verify
from bench.driver import GENERATOR_LIMIT, LoadError, Run, run_load
from bench.load.histogram import Histogram
from bench.load.plan import Group, GroupOutcome, Load
from bench.load.requests import Parameters, id_prefix
from bench.scenarios import HOLD_SHARES, Profile, Scenario, Step
from bench.servers import Process, ServerError, ServerKind

_UNIMPLEMENTED = "grpc 12"
HELD_P99_US = 50_000.0
"""A "hold" step is held if no kind of call exceeds this at the 99th percentile..."""
HELD_BACKLOG_S = 0.1
"""... and what is owed at the end of each second is worth less than this of the rate."""


@dataclass(slots=True)
class Sample:
    """One step's figures."""

    scenario: str
    step: str
    title: str
    server: str
    round: int
    skipped: str | None = None
    """Why there are no figures."""
    rate: float = 0.0
    """Good replies a second."""
    p50_us: float = 0.0
    p95_us: float = 0.0
    p99_us: float = 0.0
    calls: int = 0
    in_flight: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What the check of the store found."""
    generator_cpu: float = 0.0
    """Cores used by the generator."""
    server_cpu_us: float = 0.0
    """CPU time of the server per good reply."""
    valkey_cpu_us: float = 0.0
    server_bytes: int = 0
    """Resident memory after the step."""
    valkey_bytes: int = 0
    other_cores: float = 0.0
    """Cores used by programs that are none of the harness's, while the step ran."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the figures may be compared."""
        return self.skipped is None and not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Sample:
        """The inverse of `to_json`."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose."""

    profile: Profile
    workers: int = 1
    samples: str | None = None
    """A file of real results to send."""
    external: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Servers that are running already: name to (address, Redis address or None)."""


@dataclass(slots=True)
class _Stage:
    """A server under measurement and what was written to its store."""

    address: str
    layout: str
    redis_address: str | None
    server: Process | None = None
    valkey: Process | None = None
    directory: Path | None = None
    written: list[tuple[Parameters, GroupOutcome]] = field(default_factory=list)
    steps: dict[str, tuple[Parameters, int]] = field(default_factory=dict)
    """Parameters of a step's first traffic, and how many of its calls were good."""

    def stop(self) -> None:
        """Stops the server, whichever it is by then."""
        if self.server is not None:
            self.server.stop()


class Runner:
    """Measures the chosen scenarios on the chosen servers."""

    def __init__(
        self,
        kinds: dict[str, ServerKind],
        options: Options,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._kinds = kinds
        self._options = options
        self._say = say

    def servers_of(self, scenario: Scenario, chosen: Sequence[str]) -> list[str]:
        """The servers that run ``scenario`` here."""
        return [
            name
            for name in chosen
            if name in self._options.external or (name in scenario.servers and name in self._kinds)
        ]

    def samples(
        self, scenarios: Sequence[Scenario], chosen: Sequence[str]
    ) -> Iterator[list[Sample]]:
        """All samples, those of one scenario on one server in one round at a time."""
        missing: set[tuple[str, str]] = set()
        for round_ in range(1, self._options.profile.rounds + 1):
            for scenario in scenarios:
                names = self.servers_of(scenario, chosen)
                # Whoever comes first in one round comes last in another.
                turn = round_ % max(1, len(names))
                for name in names[turn:] + names[:turn]:
                    if (scenario.name, name) in missing:
                        yield []
                        continue
                    samples = self._samples(scenario, name, round_)
                    if all(sample.skipped for sample in samples):
                        missing.add((scenario.name, name))
                    yield samples

    def _samples(self, scenario: Scenario, name: str, round_: int) -> list[Sample]:
        self._say(f"{scenario.name} · {name} · round {round_}")
        begun = [
            Sample(scenario.name, step.name, step.title, name, round_) for step in scenario.measured
        ]
        try:
            with self._stage(scenario, name) as stage:
                for step in scenario.setup:
                    self._set_up(stage, scenario, step)
                if scenario.style == "recovery":
                    self._recover(stage, name, begun[0])
                for step, sample in zip(scenario.measured, begun, strict=True):
                    if any(other.skipped and other.step == step.reads for other in begun):
                        sample.skipped = f"needs {step.reads}"
                    elif scenario.style == "hold":
                        self._hold(stage, scenario, step, sample)
                    else:
                        self._measure(stage, scenario, step, sample)
                self._verify(stage, begun)
        except (ServerError, LoadError, _StepError) as error:
            self._say(f"  {scenario.name} · {name}: {error}")
            for sample in begun:
                if not sample.calls:
                    sample.skipped = sample.skipped or str(error)
        return begun

    # ---------------------------------------------------------------- stages

    @contextmanager
    def _stage(self, scenario: Scenario, name: str) -> Iterator[_Stage]:
        external = self._options.external.get(name)
        if external is not None:
            layout = self._kinds[name].layout if name in self._kinds else "ours"
            yield _Stage(external[0], layout, external[1])
            return
        kind = self._kinds[name]
        with ExitStack() as stack:
            directory = stack.enter_context(servers.scratch_directory())
            valkey = servers.start_valkey(directory)
            stack.callback(valkey.stop, kill=True)
            server = servers.start_server(kind, valkey.address, directory, no_op=scenario.no_op)
            stage = _Stage(server.address, kind.layout, valkey.address, server, valkey, directory)
            stack.callback(stage.stop)
            yield stage

    def _recover(self, stage: _Stage, name: str, sample: Sample) -> None:
        """Kills the server and starts it again on the same store."""
        if stage.server is None or stage.valkey is None or stage.directory is None:
            raise _StepError("recovery needs a server of the harness's own")
        stage.server.stop(kill=True)
        stage.server = servers.start_server(
            self._kinds[name], stage.valkey.address, stage.directory
        )
        stage.address = stage.server.address
        sample.details["recovery_s"] = stage.server.start_s

    # ----------------------------------------------------------------- steps

    def _parameters(self, stage: _Stage, scenario: Scenario, step: Step, kind: str) -> Parameters:
        known = 0
        prefix = id_prefix(secrets.randbits(32), 0)
        reading = kind.startswith(("get_", "list_", "lease_", "ack_"))
        if step.reads is not None and reading:
            source, known = stage.steps[step.reads]
            prefix = source.prefix
        return Parameters(
            kind=kind,
            prefix=prefix,
            agents=step.agents or scenario.agents,
            mix=step.mix or scenario.mix,
            samples=self._options.samples,
            count=step.count,
            known=known,
            page_size=step.page_size,
        )

    def _run(
        self, stage: _Stage, scenario: Scenario, step: Step, *, share: float, duration_s: float
    ) -> Run:
        groups = []
        for traffic in step.traffic:
            parameters = self._parameters(stage, scenario, step, traffic.kind)
            groups.append(
                Group(
                    name=traffic.kind,
                    workload=parameters,
                    connections=traffic.connections,
                    in_flight=traffic.in_flight,
                    rate=None if traffic.rate is None else traffic.rate * share,
                    stream=traffic.stream,
                )
            )
        counted = step.count is not None
        load = Load(
            address=stage.address,
            groups=tuple(groups),
            warmup_s=self._options.profile.warmup_s if step.warmup and not counted else 0.0,
            duration_s=_limit_s(step, self._options.profile) if counted else duration_s,
            until_exhausted=counted,
        )
        run = run_load(load, workers=self._options.workers)
        if run.total.error is not None:
            raise _StepError(run.total.error)
        for part, outcome in run.parts:
            stage.written += [(group.workload, outcome.groups[group.name]) for group in part.groups]
        first = groups[0]
        stage.steps[step.name] = (
            first.workload,
            _known(first.workload, run.total.groups[first.name]),
        )
        return run

    def _set_up(self, stage: _Stage, scenario: Scenario, step: Step) -> None:
        run = self._run(stage, scenario, step, share=1.0, duration_s=0.0)
        for group in run.total.groups.values():
            if step.optional and not group.acknowledged and set(group.failures) == {_UNIMPLEMENTED}:
                continue
            if group.failures:
                raise _StepError(f"set-up {step.name}: {group.failures} {group.examples[:1]}")

    def _measure(self, stage: _Stage, scenario: Scenario, step: Step, sample: Sample) -> None:
        before = _Usages.of(stage)
        run = self._run(
            stage, scenario, step, share=1.0, duration_s=self._options.profile.duration_s
        )
        _fill(sample, step, run, before, _Usages.of(stage))

    def _hold(self, stage: _Stage, scenario: Scenario, step: Step, sample: Sample) -> None:
        """Finds the highest share of the rates that is held, and holds it for the whole time."""
        profile = self._options.profile
        tried = []
        for share in HOLD_SHARES:
            probe = self._run(stage, scenario, step, share=share, duration_s=profile.hold_probe_s)
            held = _held(probe, step, share)
            tried.append({"share": share, "held": held, "kinds": _kinds(probe)})
            if not held:
                continue
            before = _Usages.of(stage)
            run = self._run(stage, scenario, step, share=share, duration_s=profile.hold_s)
            held = _held(run, step, share)
            tried.append({"share": share, "held": held, "kinds": _kinds(run), "whole": True})
            if held:
                _fill(sample, step, run, before, _Usages.of(stage))
                sample.details["share"] = share
                sample.details["backlog"] = {
                    name: group.backlog for name, group in run.total.groups.items()
                }
                break
        else:
            sample.skipped = "holds none of the rates tried"
        sample.details["tried"] = tried

    def _verify(self, stage: _Stage, samples: Sequence[Sample]) -> None:
        if stage.redis_address is None:
            for sample in samples:
                sample.details["unverified"] = "no Redis address given"
            return
        with servers.client_of(stage.redis_address) as client:
            layout = verify.LAYOUTS[stage.layout](client)
            # A server that was running before may hold more than was sent now.
            problems = verify.check(
                layout, stage.written, seed=samples[0].round, exactly=stage.valkey is not None
            )
        for sample in samples:
            sample.problems += problems


class _StepError(Exception):
    """A step could not be carried out."""


def _limit_s(step: Step, profile: Profile) -> float:
    return min(step.limit_s, profile.partial_s) if step.partial else step.limit_s


def _known(parameters: Parameters, outcome: GroupOutcome) -> int:
    """How many things a finished load has put into the store."""
    return outcome.acknowledged // 4 if parameters.kind == "runs" else outcome.acknowledged


@dataclass(frozen=True, slots=True)
class _Usages:
    """What everything has used at one moment."""

    at_s: float
    server: servers.Usage
    valkey: servers.Usage
    machine_cpu_s: float
    own_cpu_s: float
    """Of the harness and of its load processes that have ended."""

    @classmethod
    def of(cls, stage: _Stage) -> _Usages:
        """Now."""
        own = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(
            at_s=time.perf_counter(),
            server=stage.server.usage() if stage.server else servers.Usage(),
            valkey=stage.valkey.usage() if stage.valkey else servers.Usage(),
            machine_cpu_s=servers.machine_cpu_s(),
            own_cpu_s=sum(usage.ru_utime + usage.ru_stime for usage in own),
        )

    def others_since(self, before: _Usages) -> float:
        """Cores that programs of others have used since ``before``."""
        known_s = (
            self.own_cpu_s
            - before.own_cpu_s
            + self.server.cpu_s
            - before.server.cpu_s
            + self.valkey.cpu_s
            - before.valkey.cpu_s
        )
        busy_s = self.machine_cpu_s - before.machine_cpu_s
        return max(0.0, busy_s - known_s) / max(self.at_s - before.at_s, 1e-9)


def _kinds(run: Run) -> dict[str, dict[str, float]]:
    """Rate and percentiles of each kind of call."""
    figures = {}
    for name, group in run.total.groups.items():
        histogram = Histogram.from_json(group.histogram)
        figures[name] = {
            "rate": group.measured / max(run.total.window_s, 1e-9),
            "p50_us": histogram.percentile_us(50),
            "p99_us": histogram.percentile_us(99),
        }
    return figures


def _held(run: Run, step: Step, share: float) -> bool:
    for traffic in step.traffic:
        group = run.total.groups[traffic.kind]
        assert traffic.rate is not None
        limit = max(20.0, traffic.rate * share * HELD_BACKLOG_S)
        if group.failures or group.unanswered or any(owed > limit for owed in group.backlog):
            return False
        if Histogram.from_json(group.histogram).percentile_us(99) > HELD_P99_US:
            return False
    return True


def _fill(
    sample: Sample,
    step: Step,
    run: Run,
    before: _Usages,
    after: _Usages,
) -> None:
    total = run.total
    histogram = Histogram()
    calls = acknowledged = 0
    failures: dict[str, int] = {}
    counted = {traffic.kind for traffic in step.traffic if traffic.counted}
    for name, group in total.groups.items():
        if name not in counted:
            continue
        histogram.add(Histogram.from_json(group.histogram))
        calls += group.measured
        acknowledged += group.acknowledged
        sample.in_flight += group.in_flight
        for reason, count in group.failures.items():
            failures[reason] = failures.get(reason, 0) + count
        if group.unanswered:
            failures["unanswered"] = failures.get("unanswered", 0) + group.unanswered
        if group.examples:
            sample.details.setdefault("examples", []).extend(group.examples)
    if not acknowledged and set(failures) == {_UNIMPLEMENTED}:
        sample.skipped = "UNIMPLEMENTED"
        return
    if not calls and not failures:
        sample.problems = ["no call was answered"]
    sample.calls = calls
    sample.failures = failures
    sample.rate = calls / max(total.window_s, 1e-9)
    sample.p50_us = histogram.percentile_us(50)
    sample.p95_us = histogram.percentile_us(95)
    sample.p99_us = histogram.percentile_us(99)
    sample.generator_cpu = total.cpu_s / max(total.window_s, 1e-9)
    if sample.generator_cpu > GENERATOR_LIMIT * len(run.parts):
        sample.details["generator_bound"] = True
    # CPU was read around the whole load, so it is spread over all its replies.
    sample.server_cpu_us = (after.server.cpu_s - before.server.cpu_s) / max(1, acknowledged) * 1e6
    sample.valkey_cpu_us = (after.valkey.cpu_s - before.valkey.cpu_s) / max(1, acknowledged) * 1e6
    sample.server_bytes = after.server.resident_bytes
    sample.valkey_bytes = after.valkey.resident_bytes
    sample.other_cores = after.others_since(before)
    if len(total.groups) > 1:
        sample.details["kinds"] = _kinds(run)
    if failures:
        sample.problems = [*sample.problems, f"failed calls: {failures}"]
