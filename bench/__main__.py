"""`python -m bench`: measure, and write the results."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import proof, report
from bench.peers.go_build import GoBuildError
from bench.runner import Options, Runner, Sample
from bench.scenarios import ALL, PROFILES, SCENARIOS, Profile, Scenario
from bench.servers import ServerKind, server_kinds

_RESULTS = Path(__file__).parent / "results"


def _chosen_scenarios(names: tuple[str, ...], profile: Profile) -> list[Scenario]:
    known = {scenario.name: scenario for scenario in SCENARIOS}
    wanted = names or profile.scenarios or tuple(known)
    for name in wanted:
        if name not in known:
            raise click.BadParameter(f"no scenario {name}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _external(values: tuple[str, ...], redis: str | None) -> dict[str, tuple[str, str | None]]:
    servers = {}
    for value in values:
        name, separator, address = value.rpartition("=")
        servers[name if separator else "external"] = (address, redis)
    return servers


def _line(sample: Sample) -> str:
    where = f"{sample.scenario:14} {sample.step:16} {sample.server:12}"
    if sample.skipped:
        return f"{where} skipped: {sample.skipped[:100]}"
    problems = f"  NOT COUNTED: {sample.problems[0][:100]}" if sample.problems else ""
    return (
        f"{where} {sample.rate:10,.0f}/s  p50 {sample.p50_us / 1e3:8.2f}"
        f"  p99 {sample.p99_us / 1e3:8.2f} ms  server {sample.server_cpu_us:6.1f} µs"
        f"  Valkey {sample.valkey_cpu_us:5.1f} µs  generator {sample.generator_cpu:4.2f}"
        f"  others {sample.other_cores:4.2f}{problems}"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scenario", "-s", "names", multiple=True, help="Only this scenario (repeatable).")
@click.option("--server", "-S", "servers", multiple=True, help="Only this server (repeatable).")
@click.option("--quick", is_flag=True, help="A look, not a measurement: under two minutes.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds, instead of the profile's.")
@click.option(
    "--duration", type=float, help="Seconds a step is measured, instead of the profile's."
)
@click.option("--workers", type=click.IntRange(1), default=1, help="Load processes.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    help="[NAME=]HOST:PORT of a server that is running already, measured beside the others.",
)
@click.option("--redis", help="HOST:PORT of the Redis behind --address, to check its answers.")
@click.option(
    "--samples",
    type=click.Path(exists=True, path_type=Path),
    help="Results to send, one JSON a line.",
)
@click.option("--out", type=click.Path(path_type=Path), default=_RESULTS, help="Where results go.")
@click.option("--name", help="Of the result files; the time, by default.")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(exists=True, path_type=Path),
    help="Compare two result files and measure nothing.",
)
@click.option(
    "--generator", is_flag=True, help="Measure the load generator itself, against h2load if there."
)
@click.option("--list", "listing", is_flag=True, help="Name the scenarios and servers.")
def main(  # noqa: PLR0917 - click passes every option by name
    names: tuple[str, ...],
    servers: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    duration: float | None,
    workers: int,
    addresses: tuple[str, ...],
    redis: str | None,
    samples: Path | None,
    out: Path,
    name: str | None,
    compare: tuple[Path, Path] | None,
    generator: bool,
    listing: bool,
) -> None:
    """Measures dbos-actors and its peers with private stores; see bench/README.md."""
    console = Console(stderr=True)
    if compare is not None:
        before, after = (report.Results.load(path) for path in compare)
        print(report.compare(before, after))
        return
    if listing:
        for scenario in SCENARIOS:
            print(f"{scenario.name:18} {scenario.title} ({', '.join(scenario.servers)})")
        return
    profile = PROFILES["quick" if quick else "full"]
    chosen = _chosen_scenarios(names, profile)
    profile = _adjusted(profile, rounds, duration)
    about = report.surroundings()
    external = _external(addresses, redis)
    try:
        kinds = server_kinds()
    except GoBuildError as error:
        console.print(f"The Go peer cannot be built: {error}")
        raise SystemExit(1) from error
    if generator:
        print(proof.table(proof.measure(kinds, duration or 3.0)))
        return
    wanted = (
        [*external, *(servers or profile.servers or ALL)]
        if servers or not external
        else list(external)
    )
    seen = _measure(
        console, Options(profile, workers, _path(samples), external), kinds, chosen, wanted
    )
    results = report.Results(about | {"profile": profile.name, "rounds": profile.rounds}, seen)
    file_name = name or about["when"].replace(":", "").replace("+0000", "Z")
    for path in report.write(results, out, file_name):
        console.print(f"wrote {path}")
    print(report.markdown(results))
    if any(sample.problems for sample in seen):
        sys.exit(1)


def _path(samples: Path | None) -> str | None:
    return None if samples is None else str(samples.resolve())


def _adjusted(profile: Profile, rounds: int | None, duration: float | None) -> Profile:
    if rounds is not None:
        profile = replace(profile, rounds=rounds)
    if duration is not None:
        profile = replace(profile, duration_s=duration)
    return profile


def _measure(
    console: Console,
    options: Options,
    kinds: dict[str, ServerKind],
    chosen: list[Scenario],
    wanted: list[str],
) -> list[Sample]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    seen: list[Sample] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting")
        runner = Runner(kinds, options, say=lambda text: progress.update(task, description=text))
        total = options.profile.rounds * sum(len(runner.servers_of(s, wanted)) for s in chosen)
        progress.update(task, total=total)
        for samples in runner.samples(chosen, wanted):
            seen += samples
            for sample in samples:
                console.print(_line(sample), highlight=False, soft_wrap=True)
            progress.advance(task)
    return seen


if __name__ == "__main__":
    main()
