"""``python -m tests.chaos.quotas``: one principal floods, and how the others fare.

A calm principal stores results at a steady rate: first alone, then while another one sends many
times its own quota over many connections. The calm one's rate has to be admitted in full, and its
p99 may be three times that of before. Clients, server and Valkey share the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench.load.histogram import Histogram
from bench.load.requests import Parameters, id_prefix
from dbos_actors.access import token_file
from dbos_actors.access.entries import Entry, digest_of, new_token
from dbos_actors.access.roles import Role
from tests.chaos.flood import Flood, FloodProcess, Outcome
from tests.chaos.stage import MB, Report, Stage, publish, stage, told
from tests.support.result_files import add_result_option, command_line, kept_in

CALM_RATE = 1_000
FLOOD_QUOTA = 200


@dataclass(frozen=True, slots=True)
class Load:
    """What one process offers."""

    rate: float
    connections: int
    s: float
    nice: int = 0


def add(path: Path, name: str, calls_per_second: float | None = None) -> str:
    """A token of a new control server."""
    token = new_token()
    digest = digest_of(token.encode())
    entry = Entry(name=name, role=Role.CONTROL, sha256=digest, calls_per_second=calls_per_second)
    token_file.add(path, entry)
    return token


def start(on: Stage, token: str, run: int, load: Load) -> FloodProcess:
    """Results of other agents for each ``run``."""
    parameters = asdict(Parameters("store_result", id_prefix(run, 0), agents=1_000, mix="small"))
    process = FloodProcess(
        Flood(on.address, parameters, load.rate, load.connections, 500, load.s, token, load.nice)
    )
    process.go()
    return process


def good(outcome: Outcome) -> Histogram:
    """The times of the calls that were answered well."""
    return Histogram.from_json(outcome.good_us)


def flooded(rounds: int, duration_s: float, connections: int, rate: float) -> Report:
    """The calm principal alone, and beside a flood, in turns: the machine has other users."""
    report = Report(
        f"One principal sends {rate:,.0f} calls/s over {connections} connections, "
        f"with a quota of {FLOOD_QUOTA}"
    )
    calm, flood = Load(CALM_RATE, 4, duration_s), Load(rate, connections, duration_s + 2, nice=19)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokens")
        quotas = {"probe": None, "calm": 2 * CALM_RATE, "flood": FLOOD_QUOTA}
        tokens = {name: add(path, name, quota) for name, quota in quotas.items()}
        variables = {"DBOS_AUTH_TOKEN_FILE": str(path)}
        with stage(token=tokens["probe"], variables=variables) as on:
            ratios = []
            for number in range(rounds):
                alone = good(start(on, tokens["calm"], 3 * number + 1, calm).outcome())
                flooding = start(on, tokens["flood"], 3 * number + 2, flood)
                on.cpu_share()
                beside = start(on, tokens["calm"], 3 * number + 3, calm).outcome()
                share = on.cpu_share()
                outcome = flooding.outcome()
                ratios.append(good(beside).percentile_us(99) / alone.percentile_us(99))
                report.add(f"round {number + 1}: calm, alone", told(alone))
                report.add("calm, beside the flood", told(good(beside)))
                tell_rates(report, beside, outcome, share)
            ratio = median(ratios)
            report.add(
                "calm's p99 beside the flood, of alone",
                f"median {ratio:.1f} times ({', '.join(f'{one:.1f}' for one in ratios)})",
                "< 3 times",
                ok=ratio < 3,
            )
            grown = (on.watch.most - on.watch.before) / MB
            report.add(
                "server's memory grew by at most", f"{grown:.0f} MB", "< 200", ok=grown < 200
            )
    return report


def tell_rates(report: Report, calm: Outcome, flood: Outcome, share: float) -> None:
    """What was admitted of both."""
    answered = len(good(calm))
    report.add(
        "calm's calls admitted",
        f"{answered:,} of {calm.offered:,}, refused {calm.refused}",
        "all",
        ok=not calm.refused and answered == calm.sent == calm.offered,
    )
    sent_s = flood.sent / flood.duration_s
    report.add("the flood sent", f"{sent_s:,.0f} calls/s, of which refused {flood.refused}")
    admitted_s = flood.good_in_time / flood.duration_s
    report.add(
        "admitted of it",
        f"{admitted_s:,.0f} calls/s",
        f"<= {FLOOD_QUOTA} and a second's worth",
        ok=admitted_s <= FLOOD_QUOTA * (1 + 1.5 / flood.duration_s),
    )
    report.add("server's CPU then", f"{share:.0%} of a core")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: every limit is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.quotas", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (%(default)s)")
    parser.add_argument("--connections", type=int, default=50, help="of the flood (%(default)s)")
    parser.add_argument("--rate", type=float, default=50_000, help="offered (%(default)s)")
    add_result_option(parser)
    options = parser.parse_args(arguments)
    report = flooded(options.rounds, options.seconds, options.connections, options.rate)
    with kept_in(options.result, command_line("tests.chaos.quotas", arguments)):
        return publish([report])


if __name__ == "__main__":
    sys.exit(main())
