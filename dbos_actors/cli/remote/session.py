"""One command's connection to a server, and what becomes of its failures.

Every failure is one line on stderr that names the address and the cause. Exit status: 1 if the
server refused or did not find what was asked for, 2 if the call could not be made or its outcome is
unknown.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, NoReturn

import click

from dbos_actors.cli.remote.output import FORMATS, Output, note, readable
from dbos_actors.cli.remote.records import Record, record_of
from dbos_actors.client import (
    CallError,
    DbosStub,
    GRPCError,
    RefusedError,
    Status,
    StreamTerminatedError,
    connect,
    pages,
)
from dbos_actors.client.environment import (
    ADDRESS_VARIABLE,
    DEFAULT_ADDRESS,
    TOKEN_VARIABLE,
)

REFUSED = 1
FAILED = 2

_ADVICE = {
    Status.UNAUTHENTICATED: f"Give a token with --token-file or {TOKEN_VARIABLE}",
    Status.UNIMPLEMENTED: "The server is older than this program, or another service",
    Status.UNAVAILABLE: "The outcome is unknown; the same command may be sent again",
}


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    stub: DbosStub
    out: Output
    address: str

    async def pages(
        self,
        method: Callable[[Any], Awaitable[Any]],
        request: Any,
        field: str,
        *,
        limit: int | None,
    ) -> AsyncIterator[Record]:
        """The records of a listing, page by page, at most ``limit``; a note if there are more."""
        left = sys.maxsize if limit is None else limit
        size = min(pages.PAGE_SIZE, left)
        async for response in pages.responses(method, request, page_size=size):
            found = getattr(response, field)
            for message in found[:left]:
                yield record_of(message)
            if len(found) > left or (len(found) == left and response.next_page_token):
                note("There are more; --limit or --all shows them.")
                return
            left -= len(found)


def accepted(response: Any, *, found: bool = True) -> Any:
    """The response, unless it says no. Raises `RefusedError`."""
    if response.error or not found:
        raise RefusedError(response.error or "not found")
    return response


def remote(
    name: str, group: click.Group | None = None
) -> Callable[[Callable[Concatenate[Session, ...], Awaitable[None]]], click.Command]:
    """Make a coroutine a command, of ``group`` if it is in one.

    It gets the options that say which server is called, and how the answer is printed.
    """

    def decorate(body: Callable[Concatenate[Session, ...], Awaitable[None]]) -> click.Command:
        @functools.wraps(body)
        def command(**arguments: Any) -> None:
            options = {option: arguments.pop(option) for option in _NAMES}
            _run(body, arguments, **options)

        for option in reversed(_OPTIONS):
            command = option(command)
        made = click.command(name)(command)
        made.params.sort(key=lambda option: option.name in _NAMES)  # its own are listed first
        if group is not None:
            group.add_command(made)
        return made

    return decorate


_OPTIONS = (
    click.option(
        "--address",
        envvar=ADDRESS_VARIABLE,
        default=DEFAULT_ADDRESS,
        show_default=True,
        help=f"The server: HOST:PORT, [IPV6]:PORT or unix:PATH.  [{ADDRESS_VARIABLE}]",
    ),
    click.option(
        "--token",
        envvar=TOKEN_VARIABLE,
        help=f"A token; other users of the machine see it here, unlike in {TOKEN_VARIABLE}.",
    ),
    click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file with the token.",
    ),
    click.option("--tls", is_flag=True, help="Speak TLS, with the system's authorities."),
    click.option(
        "--tls-ca",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="PEM authorities of the server's certificate; implies --tls.",
    ),
    click.option(
        "--tls-cert",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="PEM certificate and key of this client; implies --tls.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0.001),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="How long one call may take.",
    ),
    click.option(
        "--output", "-o", type=click.Choice(FORMATS), default="table", help="How to print."
    ),
)

_NAMES = ("address", "token", "token_file", "tls", "tls_ca", "tls_cert", "timeout", "output")

_limit_options = (
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="How many to show.",
    ),
    click.option("--all", "everything", is_flag=True, help="Show all."),
)


def listing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--limit`` and ``--all``, which reach the command as one argument, ``limit``."""

    @functools.wraps(command)
    def limited(*arguments: Any, everything: bool, limit: int, **others: Any) -> Any:
        return command(*arguments, limit=None if everything else limit, **others)

    decorated: Callable[..., Any] = limited
    for option in reversed(_limit_options):
        decorated = option(decorated)
    return decorated


def confirmed(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone, unless ``yes``. Ends the command at a no."""
    if not yes and not click.confirm(readable(question), err=True):
        _give_up(REFUSED, "nothing was done")


def _run(
    body: Callable[Concatenate[Session, ...], Awaitable[None]],
    arguments: dict[str, Any],
    *,
    address: str,
    token: str | None,
    token_file: Path | None,
    timeout: float,
    output: str,
    **tls: Any,
) -> None:
    if token_file is not None:
        token = token_file.read_text(encoding="ascii").strip()

    async def run() -> None:
        async with connect(
            address,
            token=token or None,
            tls=_context(**tls),
            timeout_s=timeout,
            retries=False,  # whoever typed the command sees the failure and decides
        ) as stub:
            await body(Session(stub, Output(output), address), **arguments)

    try:
        asyncio.run(run())
    except RefusedError as error:
        _give_up(REFUSED, f"{address}: {error}")
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter must not complain at its end.
        sys.stdout = None
        sys.exit(REFUSED)
    except (OSError, GRPCError, StreamTerminatedError, TimeoutError, ValueError) as error:
        # What the channel itself said is more exact than the SDK's error for it.
        cause = error.__cause__ if isinstance(error, CallError) else None
        _give_up(FAILED, f"{address}: {_cause(cause or error, timeout)}")


def _context(*, tls: bool, tls_ca: Path | None, tls_cert: Path | None) -> ssl.SSLContext | bool:
    if tls_ca is None and tls_cert is None:
        return tls
    context = ssl.create_default_context(cafile=tls_ca)
    if tls_cert is not None:
        context.load_cert_chain(tls_cert)
    return context


def _cause(error: BaseException, timeout_s: float) -> str:
    match error:
        case GRPCError():
            advice = _ADVICE.get(error.status)
            text = f"{error.status.name}: {error.message or 'no reason was given'}"
            return f"{text}. {advice}" if advice else text
        case TimeoutError():
            return f"no answer within {timeout_s:g} s. The outcome is unknown"
        case StreamTerminatedError():
            return f"the connection was lost: {error}. Does the server speak TLS? (--tls)"
        case ssl.SSLError():
            return f"no TLS connection: {error.reason or error}"
        case OSError():
            reason = os.strerror(error.errno) if error.errno else str(error)
            return (
                f"nobody answers: {reason}. --address or {ADDRESS_VARIABLE} says "
                "where the server is"
            )
    return str(error)


def _give_up(status: int, text: str) -> NoReturn:
    click.echo(f"dbos-actors: {readable(text)}", err=True)
    sys.exit(status)
