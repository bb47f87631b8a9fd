"""Run the suites that others wrote against the gRPC library: `python -m tests.conformance`.

Prints the table that `docs/rpc.md` holds. The exit status is 1 if a case fails that is not listed
with its reason, or if the page holds another table. Suites that need Go are left out where there is
none.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.conformance.suites import ROOT, SUITES, Outcome, Suite
from tests.conformance.tools import has_go

PAGE = ROOT / "docs" / "rpc.md"
BEGIN, END = "<!-- suites -->\n", "<!-- end of suites -->"

HEAD = "| suite | against the | cases that pass |\n| --- | --- | --- |\n"


def row(suite: Suite, outcome: Outcome) -> str:
    """A suite's line in the table."""
    return f"| {suite.title} | {suite.subject} | {outcome.passed} of {outcome.total} |\n"


def table_of_page(page: str) -> str:
    """The table in a page's text."""
    return page.partition(BEGIN)[2].partition(END)[0]


def with_table(page: str, table: str) -> str:
    """A page's text with another table. Raises ValueError if it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"no {BEGIN.strip()} and {END} in the page")
    return before + begin + table + end + after


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    keys = [suite.key for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(keys)}; or all")
    parser.add_argument("--write", action="store_true", help="put the table into docs/rpc.md")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(keys):
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are: {', '.join(keys)}")
    page = PAGE.read_text()
    lines, is_good = [], True
    for suite in SUITES:
        if options.suites and suite.key not in options.suites:
            continue
        if suite.needs_go and not has_go():
            print(f"left out, because there is no Go: {suite.key}", file=sys.stderr)
            continue
        began_s = time.monotonic()
        outcome = suite.run()
        seconds = time.monotonic() - began_s
        print(
            f"{suite.key}: {outcome.passed} of {outcome.total} in {seconds:.0f} s", file=sys.stderr
        )
        for failure in outcome.failures:
            print(f"  {failure}", file=sys.stderr)
        lines.append(row(suite, outcome))
        is_good = is_good and outcome.is_good
        if not options.write and lines[-1] not in table_of_page(page):
            print(f"docs/rpc.md says something else than:\n  {lines[-1]}", file=sys.stderr)
            is_good = False
    table = HEAD + "".join(lines)
    print(table, end="")
    if options.write and len(lines) == len(SUITES):
        PAGE.write_text(with_table(page, table))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
