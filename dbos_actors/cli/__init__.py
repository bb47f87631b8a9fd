"""The command line: the only place that prints or exits."""

from __future__ import annotations

from dbos_actors.cli.commands import main

__all__ = ["main"]
