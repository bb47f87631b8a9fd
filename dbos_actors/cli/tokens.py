"""``dbos-actors token``: the token file's entries are made, listed and revoked."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from dbos_actors.access import token_file
from dbos_actors.access.entries import NAME, PLAIN_NAME, Entry, digest_of, new_token, now
from dbos_actors.access.roles import Role, markdown
from dbos_actors.cli.serving import Exit
from dbos_actors.errors import ConfigurationError
from dbos_actors.settings.quantities import Duration, Size

_file = click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="DBOS_AUTH_TOKEN_FILE",
    required=True,
    help="The token file.  [DBOS_AUTH_TOKEN_FILE]",
)


@click.group("token")
def token_group() -> None:
    """Make, list and revoke the tokens of a token file (DBOS_AUTH_TOKEN_FILE).

    A server that uses the file follows it: a change counts within about a second.
    """


def _refusing(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose `ConfigurationError` is one line on stderr, and the status of a refusal."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ConfigurationError as error:
            click.echo(f"dbos-actors: {error}", err=True)
            raise SystemExit(Exit.REFUSED) from None

    return run


@token_group.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="What the principal may do; 'token roles' has the table.",
)
@click.option(
    "--expires",
    metavar="DURATION",
    help="Count for that long only, such as 90d; default: for ever.",
)
@click.option(
    "--certificate",
    metavar="KIND:NAME",
    help="No token: whoever presents a client certificate with that name. KIND is CN, DNS, URI, "
    "IP or email.",
)
@click.option(
    "--calls-per-second",
    type=click.FloatRange(0, 1e9),
    help="Calls a second, instead of DBOS_PRINCIPAL_CALLS_PER_SECOND; 0 is no limit.",
)
@click.option(
    "--bytes-per-second",
    metavar="SIZE",
    help="Bytes a second, instead of DBOS_PRINCIPAL_BYTES_PER_SECOND; 0 is no limit.",
)
@_file
@_refusing
def create_command(path: Path, name: str, **options: Any) -> None:
    """Give the principal NAME a token, which is printed once, or a certificate's name.

    The file keeps only a hash of the token. A name may have several tokens: to replace one, create
    the new one, move the clients, and revoke the old one by its id.
    """
    token = None if options["certificate"] else new_token()
    entry = _entry(name, token, **options)
    token_file.add(path, entry)
    until = "for ever" if entry.expires is None else f"until {_shown(entry.expires)}"
    shown = f"{name} ({entry.role.value}, id {entry.id})"
    click.echo(f"{path}: added {shown}, which counts {until}", err=True)
    if token is not None:
        click.echo(token)


def _entry(
    name: str,
    token: str | None,
    *,
    role: str,
    expires: str | None,
    certificate: str | None,
    calls_per_second: float | None,
    bytes_per_second: str | None,
) -> Entry:
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"the name {name!r} must be 1 to 64 letters, digits or ._@-, and begin with one of the "
            "first two"
        )
    if name == PLAIN_NAME:
        raise ConfigurationError(f"the name {PLAIN_NAME} is that of plain tokens")
    created = now()
    try:
        return Entry(
            name=name,
            role=Role(role),
            sha256=None if token is None else digest_of(token.encode()),
            certificate=certificate,
            created=created,
            created_by=_user(),
            expires=None if expires is None else created + _duration(expires),
            calls_per_second=calls_per_second,
            bytes_per_second=None if bytes_per_second is None else _size(bytes_per_second),
        )
    except ValidationError:
        raise ConfigurationError(
            f"--certificate {certificate} must be CN:, DNS:, URI:, IP: or email: and a name"
        ) from None


def _duration(text: str) -> timedelta:
    try:
        return timedelta(seconds=TypeAdapter(Duration).validate_python(text))
    except ValidationError:
        raise ConfigurationError(
            f"--expires {text} must be a duration: a number with s, m, h or d"
        ) from None


def _size(text: str) -> int:
    try:
        return TypeAdapter(Size).validate_python(text)
    except ValidationError:
        raise ConfigurationError(
            f"--bytes-per-second {text} must be a size: a number, or one with KiB, MiB or GiB"
        ) from None


def _user() -> str:
    """Who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return ""


@token_group.command("list")
@_file
@_refusing
def list_command(path: Path) -> None:
    """Show every entry of the file: none of them tells its token."""
    table = Table("name", "role", "shown by", "id", "created", "by", "expires")
    now_s = now().timestamp()
    for entry in token_file.read(path):
        expires = "never" if entry.expires is None else _shown(entry.expires)
        if entry.has_expired(now_s):
            expires = f"expired {expires}"
        created = "" if entry.created is None else _shown(entry.created)
        kind = token_file.kind(entry)
        row = (entry.name, entry.role.value, kind, entry.id, created, entry.created_by, expires)
        table.add_row(*row)
    Console().print(table)


@token_group.command("revoke")
@click.argument("name_or_id")
@_file
@_refusing
def revoke_command(path: Path, name_or_id: str) -> None:
    """Take every entry of a name out of the file, or the one of an id.

    A server ends the calls and streams of what was revoked within about a second.
    """
    for entry in token_file.revoke(path, name_or_id):
        shown = f"{entry.name} ({entry.role.value}, id {entry.id})"
        click.echo(f"{path}: revoked the {token_file.kind(entry)} of {shown}", err=True)


@token_group.command("roles")
def roles_command() -> None:
    """Show which role may call which method, as the table of the documentation."""
    click.echo(markdown(), nl=False)


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
