"""docs/commands.md: its examples print what it says, and its list of commands is complete."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dbos_actors.cli import main
from dbos_actors.cli.remote import COMMANDS
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")


@pytest.fixture
def address(valkey: ValkeyServer) -> Iterator[str]:
    server = ServerThread(valkey.address, clock=SteppedClock()).start()
    yield server.address
    server.stop()


def test_the_examples_print_what_the_page_says(address: str) -> None:
    (examples,) = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for command, expected in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", examples, re.MULTILINE):
        program, *arguments = shlex.split(command)
        assert program == "dbos-actors"
        result = CliRunner().invoke(main, arguments, env={"DBOS_ADDRESS": address})
        printed = "".join(f"{line.rstrip()}\n" for line in result.output.splitlines())
        assert printed.replace(address, "localhost:50051") == expected


def test_every_command_that_calls_a_server_is_on_the_page() -> None:
    table = PAGE.partition("|---|---|\n")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| ([^|]*)", table, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"\w+", cell)}
    for name in COMMANDS:
        assert name in named
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):
            assert set(command.commands) <= named
