"""Long runs of the simulation.

    python -m tests.simulation --seeds 10000 [--start N] [--jobs 2]
    python -m tests.simulation --seed N           # one, with everything that happened
    python -m tests.simulation --planted-bugs     # how many seeds each of them takes

A run that finds something prints the seed and ends with status 1.
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.campaign import find_planted_bugs, run_many, tell
from tests.simulation.planted_bugs import PLANTED_BUGS
from tests.support.result_files import add_result_option, command_line, kept_in


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=1_000, help="how many (1000)")
    parser.add_argument("--start", type=int, default=0, help="the first one (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--seed", type=int, help="run one and tell its story")
    parser.add_argument("--bug", choices=sorted(PLANTED_BUGS), help="plant this one first")
    parser.add_argument("--planted-bugs", action="store_true", help="find each planted bug")
    add_result_option(parser)
    options = parser.parse_args()
    with kept_in(options.result, command_line("tests.simulation", None)):
        if options.planted_bugs:
            return find_planted_bugs(options.start, options.jobs)
        if options.seed is not None:
            return tell(options.seed, options.bug)
        return run_many(range(options.start, options.start + options.seeds), options.jobs)


if __name__ == "__main__":
    sys.exit(main())
