"""The commands that call a running server: each is one more client of the API.

`session` connects and turns every failure into one line; `output` prints records as a table, as
JSON or as JSON lines; `records` says what a message is in JSON. Each other module is one group of
commands. Nothing here imports the server.
"""

from __future__ import annotations

from typing import Final

COMMANDS: Final = {
    name: f"dbos_actors.cli.remote.{name}"
    for name in ("agents", "runs", "results", "tasks", "ping", "selftest")
}
"""Each command and the module that has it. The program imports a module when its command is
called, since the client's messages take a fifth of a second to import."""

__all__ = ["COMMANDS"]
