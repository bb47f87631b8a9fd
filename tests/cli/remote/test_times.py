"""Times as people type and read them."""

from __future__ import annotations

import time

import click
import pytest

from dbos_actors.cli.remote.times import TIME, shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1700000000", 1_700_000_000),
        ("2023-11-14T22:13:20", 1_700_000_000),
        ("2023-11-14 22:13:20Z", 1_700_000_000),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000),
        ("2023-11-14", 1_699_920_000),
    ],
)
def test_a_time_of_day(text: str, seconds: int) -> None:
    assert TIME.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("text", "ahead_s"), [("now", 0), ("-2h", -7_200), ("+30s", 30), ("-1d", -86_400)]
)
def test_a_time_from_now(text: str, ahead_s: int) -> None:
    assert abs(TIME.convert(text, None, None) - time.time() - ahead_s) < 5


@pytest.mark.parametrize("text", ["", "soon", "2h", "-2y", "1.5", "٣", "2023-13-01", "-", "1e9"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time: give Unix seconds"):
        TIME.convert(text, None, None)


def test_how_a_time_is_shown() -> None:
    assert shown(1_700_000_000) == "2023-11-14 22:13:20Z"
    assert shown(0) == ""
    assert shown(1 << 62) == str(1 << 62)
