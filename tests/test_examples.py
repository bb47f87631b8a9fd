"""The programs in docs/examples do what their heads say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


def run(name: str) -> list[str]:
    """What an example prints, without the log lines."""
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if "[info " not in line]


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'run("{path.name}")' in here, path


def test_the_counting_actors_count_each_for_themselves() -> None:
    assert run("counting_actor.py") == ["apples 2", "pears 1", "apples 5"]


def test_the_page_about_actors_shows_the_counting_actor_as_it_is_run() -> None:
    page = (EXAMPLES.parent / "actors.md").read_text(encoding="utf-8")
    program = (EXAMPLES / "counting_actor.py").read_text(encoding="utf-8")
    assert f"```python\n{program}```" in page


def test_the_durable_counter_counts_on_after_everything_was_started_again() -> None:
    assert run("durable_counter.py") == ["1", "3", "6", "7", "9", "12"]
