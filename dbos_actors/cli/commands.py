"""The commands and their options.

An option that is given overrides its environment variable; one that is not leaves the
setting alone, so defaults are in `dbos_actors.settings.declaration` only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.table import Table

from dbos_actors.cli.lazy_group import LazyGroup
from dbos_actors.cli.logs import configure_logs
from dbos_actors.cli.remote import COMMANDS as REMOTE_COMMANDS
from dbos_actors.cli.serving import Exit, exit_of, serve
from dbos_actors.cli.tokens import token_group
from dbos_actors.errors import ConfigurationError
from dbos_actors.loggers import get_logger
from dbos_actors.settings import (
    Settings,
    descriptions,
    load_settings,
    markdown,
    unknown_variables,
)

_log = get_logger(__name__)


@click.group(
    cls=LazyGroup,
    lazy_commands=REMOTE_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="dbos-actors", message="%(prog)s %(version)s")
def main() -> None:
    """State and coordination service of an Internet measurement network."""


main.add_command(token_group)


def _loaded(overrides: dict[str, Any]) -> Settings:
    try:
        return load_settings(
            **{name: value for name, value in overrides.items() if value is not None}
        )
    except ConfigurationError as error:
        _give_up(Exit.REFUSED, str(error))
        raise  # pragma: no cover - it has exited


def _give_up(status: Exit, text: str) -> None:
    click.echo(f"dbos-actors: {text}", err=True)
    sys.exit(status)


_embedded = click.option(
    "--embedded/--no-embedded",
    default=None,
    help="Start a private Valkey on the data directory instead of using REDIS_ADDR."
    "  [DBOS_EMBEDDED]",
)
_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data of the embedded store.  [DBOS_DATA_DIR]",
)


@main.command(
    "serve",
    epilog="Every other setting is an environment variable: see 'dbos-actors settings'. Exit "
    "status: 0 drained after SIGTERM or SIGINT, 1 failed, 2 cannot serve so (one line on stderr "
    "says why), 3 another server has taken over.",
)
@click.option("--host", help="Address to listen on; 0.0.0.0 or :: in a container.  [DBOS_HOST]")
@click.option("--port", type=int, help="TCP port; 0 takes any free one.  [PORT]")
@click.option(
    "--listen",
    multiple=True,
    metavar="HOST:PORT|unix:PATH",
    help="Listen there instead; may be repeated.  [DBOS_LISTEN]",
)
@_embedded
@_data_dir
@click.option(
    "--durability",
    type=click.Choice(["replay", "fsync"]),
    help="What an acknowledged write survives.  [DBOS_DURABILITY]",
)
@click.option(
    "--wait-for-redis",
    is_flag=True,
    default=None,
    help="Wait at the start while Redis is unreachable or owned by another server."
    "  [DBOS_WAIT_FOR_REDIS]",
)
@click.option(
    "--metrics-port",
    type=int,
    help="TCP port of /metrics, /healthz and /readyz; 0 takes any free one.  [DBOS_METRICS_PORT]",
)
@click.option(
    "--take-over", is_flag=True, help="Take the store from the server that owns it; that one stops."
)
def serve_command(*, take_over: bool, listen: tuple[str, ...], **overrides: Any) -> None:
    """Serve gRPC, on REDIS_ADDR or (--embedded) on a store of its own.

    Prints one line, 'ready address=... redis=...', when it can serve; with a metrics port,
    'metrics=...' ends it. Logs go to stderr. SIGHUP reads tokens and certificates again.
    """
    if listen:
        overrides["listen"] = ",".join(listen)
    elif overrides["host"] is not None or overrides["port"] is not None:
        overrides["listen"] = ""
    settings = _loaded(overrides)
    configure_logs(level=settings.log_level, json=settings.log_format == "json", stream=sys.stderr)
    for name, meant in unknown_variables(dict(os.environ)):
        _log.warning("unknown_setting", name=name, probably=meant)
    # The server is the heaviest import, and the other commands do without it.
    from dbos_actors.server import open_supervisor  # noqa: PLC0415

    async def run() -> None:
        await serve(
            settings, open_supervisor=open_supervisor, announce=_announce, take_over=take_over
        )

    _run(run, settings, json=settings.log_format == "json")


def _run(
    main_task: Callable[[], Awaitable[Exit | None]], settings: Settings, *, json: bool = False
) -> None:
    """Runs a command to its end, and exits with its status or that of its error.

    With ``json`` what ends it is told as a line of the log, for who reads nothing else.
    """
    try:
        status = trio.run(main_task)
    except Exception as error:  # noqa: BLE001  # the last place that can tell
        status, text = exit_of(error, settings)
        if text is None:
            _log.critical("failed", exc_info=error)
            sys.exit(status)
        if json:
            _log.critical("refused", reason=text, exit_status=int(status))
            sys.exit(status)
        _give_up(status, text)
    if status:
        sys.exit(status)


def _announce(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


_STATUSES = (
    "Exit status: 0 no damage (left), 2 it cannot be read or is owned by a server (one line says "
    "which), 4 damage was found (check) or is left (repair)."
)


@main.command("check", epilog=_STATUSES)
@_embedded
@_data_dir
def check_command(**overrides: Any) -> None:
    """Look for damage in a store: REDIS_ADDR or (--embedded) a data directory.

    Reads everything in small steps and changes nothing. A Redis may be checked beside its server; a
    data directory only while no server uses it.
    """
    from dbos_actors.cli.maintenance import run_check  # noqa: PLC0415  # as heavy as the server

    settings = _maintained(overrides)
    _run(partial(run_check, settings), settings)


@main.command("repair", epilog=_STATUSES)
@_embedded
@_data_dir
@click.option("--yes", is_flag=True, help="Mend without asking.")
def repair_command(*, yes: bool, **overrides: Any) -> None:
    """Mend what check finds, as far as it follows from the records.

    Lists what it drops and asks first. Owns the store meanwhile, so no server may run on it. May
    be interrupted at any time and run again.
    """
    from dbos_actors.cli.maintenance import run_repair  # noqa: PLC0415  # as heavy as the server

    settings = _maintained(overrides)
    _run(partial(run_repair, settings, yes=yes), settings)


def _maintained(overrides: dict[str, Any]) -> Settings:
    settings = _loaded(overrides)
    configure_logs(level="error", json=settings.log_format == "json", stream=sys.stderr)
    return settings


@main.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the script that completes this program's commands in a shell.

    For bash, put into ~/.bashrc: source <(dbos-actors completion bash)
    """
    name = "dbos-actors"
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(main, {}, name, f"_{name.replace('-', '_').upper()}_COMPLETE").source())


@main.command("settings")
@click.option("--markdown", "as_markdown", is_flag=True, help="The table of the documentation.")
def settings_command(*, as_markdown: bool) -> None:
    """Show every setting: its variable, its present value and its meaning."""
    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    settings = _loaded({})
    table = Table("variable", "value", "unit", "meaning")
    for item in descriptions():
        value = getattr(settings, item.name)
        shown = "" if value is None else str(value)
        if item.is_secret and item.name in settings.model_fields_set:
            shown = "(set)"
        table.add_row(item.variable, shown, item.unit, item.text.replace("`", ""))
    Console().print(table)
