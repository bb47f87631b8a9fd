"""The random search: every property-based test, with examples that are new each time.

    python -m tests.search --minutes 60                       # with this Python
    python -m tests.search --minutes 60 --python python3.13   # and with others

The gate tries the same examples at each run, so it never fails by chance. This is what
looks for others: before a release, for an hour or more on every Python that is supported
(3.11 to 3.14). For ``--python`` a temporary environment is made with pip. A search that finds
something prints the failure and the command that repeats it, and ends with status 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import SystemRandom

SEED_BITS = 32


def main() -> int:
    """Search with each interpreter in turn; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.search", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=60.0, help="for each Python (60)")
    parser.add_argument("--seed", type=int, help="search one round, with this seed")
    parser.add_argument("--python", action="append", default=[], help="an interpreter; repeatable")
    parser.add_argument("tests", nargs="*", default=["tests"], help="where to look (tests)")
    options = parser.parse_args()
    if not options.python:
        return _search(sys.executable, options)
    for python in options.python:
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([python, "-m", "venv", directory], check=True)
            installed = str(Path(directory) / "bin" / "python")
            install = [installed, "-m", "pip", "install", "-q", "-e", ".[dev]"]
            subprocess.run(install, check=True)
            if status := _search(installed, options):
                return status
    return 0


def _search(python: str, options: argparse.Namespace) -> int:
    """Rounds until the time is over, each with a seed of its own; the exit status."""
    version = subprocess.run([python, "--version"], check=True, capture_output=True, text=True)
    end_s = time.monotonic() + options.minutes * 60
    rounds = 0
    while True:
        seed = SystemRandom().getrandbits(SEED_BITS) if options.seed is None else options.seed
        print(f"{version.stdout.strip()}, round {rounds + 1}, seed {seed}", flush=True)
        search = ["-m", "hypothesis", "--hypothesis-profile=search", f"--hypothesis-seed={seed}"]
        command = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *search]
        if status := subprocess.run([*command, *options.tests], check=False).returncode:
            print(f"found; again: python -m tests.search --seed {seed}", flush=True)
            return status
        rounds += 1
        if options.seed is not None or time.monotonic() >= end_s:
            return 0


if __name__ == "__main__":
    sys.exit(main())
