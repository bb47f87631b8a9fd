"""The commands that call a running server: each is one more client of the API.

`session` connects and turns every failure into one line; `output` prints records as a table, as
JSON or as JSON lines; `records` says what a message is in JSON. Each other module is one group of
commands. Nothing here imports the server.
"""

from __future__ import annotations

from dbos_actors.cli.remote import agents, ping, results, runs, selftest, tasks

COMMANDS = (
    agents.agents,
    runs.runs,
    results.results,
    tasks.tasks,
    ping.ping,
    selftest.selftest,
)
"""What `dbos_actors.cli.commands` adds to the program."""

__all__ = ["COMMANDS"]
