"""`python -m bench.regression`: whether a call costs more CPU than in the commit before.

The code of this tree and that of another commit are measured in turns by `bench.call_cost`, each
time in a new process with an empty Valkey. What else runs on the machine makes a call dearer. So a
turn that had to wait for a core does not count, and each side counts with its cheapest turn. If
this tree seems to cost over a tenth more, as many turns are added before that is believed. If no
turn counts, the machine is too busy to tell, and the check is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from bench import servers
from bench.call_cost import Finding

ROOT: Final = Path(__file__).parents[1]

ALLOWED: Final = 1.10
"""A call may cost so many times what it does in the other commit."""

TURNS: Final = 3
"""Of each side, at five seconds a turn."""

WAITED_MAX: Final = 0.2
"""A turn that waited for a larger share of its time does not count. With ten other programs on two
cores, turns waited for half of it, and the cheapest of six differed by up to 10 %."""

TIMEOUT_S: Final = 60.0


class NothingToCompareError(Exception):
    """There is no other commit; says why."""


class MeasuringError(Exception):
    """One side could not be measured."""


class TooBusyError(Exception):
    """Other programs have disturbed every turn of one side."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call costs on both sides: CPU time in us, one for each turn."""

    before: list[float]
    after: list[float]

    @property
    def is_settled(self) -> bool:
        """Whether no more turns are needed."""
        return bool(self.before and self.after) and not self.is_too_high

    @property
    def ratio(self) -> float:
        """The cheapest turn of this tree by the cheapest of the other."""
        return min(self.after) / min(self.before)

    @property
    def is_too_high(self) -> bool:
        """Whether this tree costs more than is allowed."""
        return self.ratio > ALLOWED


def extract(revision: str, directory: Path, *, root: Path = ROOT) -> str:
    """Write the package of a commit to a directory; returns the commit's short name.

    Raises `NothingToCompareError` if there is no such commit, no repository, or no git.
    """
    git = shutil.which("git")
    if git is None:
        raise NothingToCompareError("git is not installed")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [git, "-C", str(root), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    found = run("rev-parse", "--verify", "--quiet", "--short", f"{revision}^{{commit}}")
    if found.returncode != 0:
        raise NothingToCompareError(f"there is no commit {revision} in {root}")
    archive = directory / "tree.tar"
    written = run("archive", "--output", str(archive), revision, "dbos_actors")
    if written.returncode != 0:
        raise NothingToCompareError(written.stderr.strip())
    with tarfile.open(archive) as tree:
        tree.extractall(directory, filter="data")
    archive.unlink()
    return found.stdout.strip()


def measure(tree: Path) -> Finding:
    """What `bench.call_cost` finds with the package in ``tree``. Raises `MeasuringError`."""
    with servers.scratch_directory() as directory:
        valkey = servers.start_valkey(directory)
        environment = os.environ | {
            "PYTHONPATH": f"{tree}{os.pathsep}{ROOT}",
            "REDIS_ADDR": valkey.address,
            "PORT": "0",
            "DBOS_LOG_LEVEL": "error",
        }
        command = (sys.executable, "-P", "-m", "bench.call_cost")
        try:
            found = subprocess.run(
                command,
                env=environment,
                cwd=directory,
                check=False,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise MeasuringError(f"{tree}: not done after {TIMEOUT_S:g} s") from None
        finally:
            valkey.stop(kill=True)
    if found.returncode != 0:
        raise MeasuringError(f"{tree}: {found.stderr[-1500:]}")
    return Finding(**json.loads(found.stdout.splitlines()[-1]))


def compare(before: Callable[[], Finding], after: Callable[[], Finding]) -> dict[str, Cost]:
    """What a call costs on both sides, by the number of calls at once; measured in turns.

    Raises `TooBusyError` if one side has no turn that counts.
    """
    costs: dict[str, Cost] = {}
    waited: list[float] = []
    for turn in range(2 * TURNS):
        if turn == TURNS and costs and all(cost.is_settled for cost in costs.values()):
            break
        sides = [("before", before), ("after", after)]
        for name, take in sides if turn % 2 else reversed(sides):
            finding = take()
            waited.append(finding.waited)
            if finding.waited > WAITED_MAX:
                continue
            for calls, cost_us in finding.costs_us.items():
                getattr(costs.setdefault(calls, Cost([], [])), name).append(cost_us)
    if not costs or not all(cost.before and cost.after for cost in costs.values()):
        raise TooBusyError(
            f"the machine is too busy: turns waited {min(waited):.0%} to {max(waited):.0%} of "
            "their time for a core"
        )
    return costs


def table(costs: Mapping[str, Cost], revision: str) -> str:
    """The figures for people."""
    lines = [f"CPU time of a StoreResult in us, at {revision} and in this tree:"]
    for calls, cost in costs.items():
        verdict = "TOO HIGH" if cost.is_too_high else "ok"
        lines.append(
            f"  {calls:>3} at once {min(cost.before):8.1f} {min(cost.after):8.1f}"
            f" {cost.ratio - 1:+8.1%}  {verdict}"
            f" ({len(cost.before)} and {len(cost.after)} turns)"
        )
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--base", default="HEAD^", show_default=True, help="The commit to compare with.")
def main(base: str) -> None:
    """Fail if a StoreResult costs 10% more CPU than in the commit before this one."""
    with tempfile.TemporaryDirectory(prefix="dbos-regression-") as directory:
        tree = Path(directory)
        try:
            revision = extract(base, tree)
            costs = compare(lambda: measure(tree), lambda: measure(ROOT))
        except (NothingToCompareError, TooBusyError) as error:
            click.echo(f"skipped: {error}")
            return
        except MeasuringError as error:
            raise click.ClickException(str(error)) from error
    click.echo(table(costs, revision))
    if any(cost.is_too_high for cost in costs.values()):
        click.echo(f"A call costs over {ALLOWED - 1:.0%} more than at {revision}.")
        sys.exit(1)


if __name__ == "__main__":
    main()
