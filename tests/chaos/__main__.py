"""``python -m tests.chaos --kills 200``: every fault many times, and what was lost."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from random import Random

import trio

from tests.chaos.faults import FAULTS
from tests.chaos.run import repetitions, run_fault, table
from tests.support.result_files import add_result_option, command_line, kept_in


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: nothing was lost but what the level documents, and nothing else was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kill -9 in all (%(default)s)")
    parser.add_argument("--only", action="append", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--seed", type=int, help="of what is drawn; timing stays real")
    parser.add_argument("--minutes", type=float, default=30.0, help="at most (%(default)s)")
    add_result_option(parser)
    options = parser.parse_args(arguments)
    seed = Random().getrandbits(32) if options.seed is None else options.seed
    chosen = [fault for fault in FAULTS if options.only is None or fault.name in options.only]
    print(f"seed {seed}", file=sys.stderr)
    give_up_at = time.monotonic() + 60.0 * options.minutes
    rows = []
    for fault in chosen:
        count = repetitions(fault, chosen, options.kills)
        row = trio.run(partial(run_fault, fault, count, seed=seed, give_up_at=give_up_at))
        rows.append(row)
        said = row.skipped or f"{row.times} times, {len(row.verdict.violations)} violations"
        print(f"{fault.name}: {said}", file=sys.stderr)
        for violation in row.verdict.violations[:20]:
            print(f"  {violation}", file=sys.stderr)
    with kept_in(options.result, command_line("tests.chaos", arguments)):
        print(table(rows))
    return 1 if any(row.verdict.violations for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
