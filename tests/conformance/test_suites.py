"""The table of suites in the page on gRPC, and what is read from the suites' output."""

from __future__ import annotations

from tests.conformance.__main__ import HEAD, PAGE, row, table_of_page, with_table
from tests.conformance.suites import (
    H2SPEC_FAILURES,
    SUITES,
    Outcome,
    conformance_outcome,
    h2spec_outcome,
)


def test_the_page_has_a_row_for_every_suite_and_no_other() -> None:
    rows = table_of_page(PAGE.read_text()).removeprefix(HEAD).splitlines()
    assert len(rows) == len(SUITES)
    for line, suite in zip(rows, SUITES, strict=True):
        passed, total = map(int, line.rstrip(" |").rpartition("| ")[2].split(" of "))
        assert line + "\n" == row(suite, Outcome(passed, total))
        assert total - passed == (len(H2SPEC_FAILURES) if suite.key == "h2spec" else 0)


def test_the_table_can_be_replaced() -> None:
    page = PAGE.read_text()
    other = with_table(page, "other\n")
    assert table_of_page(other) == "other\n"
    assert with_table(other, table_of_page(page)) == page


def test_every_failure_of_connectrpcs_suite_is_read() -> None:
    output = (
        "FAILED: A/b:\n\tone\n\ttwo\nFAILED: C:\n\tthree\n\nTotal cases: 5\n3 passed, 2 failed\n"
    )
    assert conformance_outcome(output) == Outcome(3, 5, ("A/b:\n\tone\n\ttwo", "C:\n\tthree"))
    assert conformance_outcome("Total cases: 5\n5 passed, 0 failed\n").is_good
    assert not conformance_outcome("it could not be started").is_good
    assert not conformance_outcome("3 passed, 1 failed").is_good


def h2spec_report(*failed: str) -> str:
    cases = ['<testcase package="http2/1" classname="Works"/>']
    for name in failed:
        section, _, title = name.partition(" ")
        head = f'<testcase package="http2/{section}" classname="{title}">'
        cases.append(f"{head}<failure>?</failure></testcase>")
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def test_h2spec_may_fail_where_it_is_listed_and_must_fail_there() -> None:
    assert h2spec_outcome(h2spec_report(*H2SPEC_FAILURES)).is_good
    more = h2spec_outcome(h2spec_report(*H2SPEC_FAILURES, "9 Surprises"))
    assert more.failures == ("failed or skipped: 9 Surprises",)
    fewer = h2spec_outcome(h2spec_report(*list(H2SPEC_FAILURES)[1:]))
    assert fewer.failures == (f"passes, but is listed: {next(iter(H2SPEC_FAILURES))}",)
    assert not h2spec_outcome("<testsuites/>").is_good
