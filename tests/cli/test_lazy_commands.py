"""Commands that are imported when they are called."""

from __future__ import annotations

import subprocess
import sys

import click

from dbos_actors.cli import main
from dbos_actors.cli.remote import COMMANDS


def test_a_server_starts_without_the_imports_of_the_commands_that_call_one() -> None:
    code = "import sys, dbos_actors.cli, dbos_actors.server; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    imported = set(done.stdout.split())
    assert "dbos_actors.server" in imported
    assert not {"dbos_actors.client", "betterproto", *COMMANDS.values()} & imported


def test_each_lazy_command_is_listed_and_has_the_name_under_which_it_is_found() -> None:
    context = click.Context(main)
    assert set(COMMANDS) <= set(main.list_commands(context))
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name


def test_an_unknown_command_is_no_command() -> None:
    assert main.get_command(click.Context(main), "pong") is None
