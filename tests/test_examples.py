"""The programs in docs/examples do what their heads say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


def run(name: str, address: str = "") -> list[str]:
    """What an example prints, without the log lines; a client's calls go to ``address``."""
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        env={**os.environ, "DBOS_ADDRESS": address},
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
        assert f'run("{path.name}"' in here, path


def test_the_counting_actors_count_each_for_themselves() -> None:
    assert run("counting_actor.py") == ["apples 2", "pears 1", "apples 5"]


def test_the_page_about_actors_shows_the_counting_actor_as_it_is_run() -> None:
    page = (EXAMPLES.parent / "actors.md").read_text(encoding="utf-8")
    program = (EXAMPLES / "counting_actor.py").read_text(encoding="utf-8")
    assert f"```python\n{program}```" in page


def test_the_durable_counter_counts_on_after_everything_was_started_again() -> None:
    assert run("durable_counter.py") == ["1", "3", "6", "7", "9", "12"]


@pytest.fixture
def address(valkey: ValkeyServer) -> Iterator[str]:
    server = ServerThread(valkey.address).start()
    yield server.address
    server.stop()


def shown(name: str) -> list[str]:
    """What the page about clients says that an example prints; it shows the example as it is."""
    page = (EXAMPLES.parent / "clients.md").read_text(encoding="utf-8")
    program = (EXAMPLES / name).read_text(encoding="utf-8")
    printed = re.match(r"```\n\n((?:    .*\n)+)", page.partition(program)[2])
    assert printed is not None
    return [line.removeprefix("    ") for line in printed[1].splitlines()]


def test_results_are_written_as_the_page_about_clients_says(address: str) -> None:
    assert run("write_results.py", address) == shown("write_results.py")


def test_tasks_are_done_as_the_page_about_clients_says(address: str) -> None:
    assert run("do_tasks.py", address) == shown("do_tasks.py")


def test_a_run_is_waited_for_as_the_page_about_clients_says(address: str) -> None:
    assert run("wait_for_run.py", address) == shown("wait_for_run.py")
