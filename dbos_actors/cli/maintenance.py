"""``dbos-actors check`` and ``dbos-actors repair``."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
import trio

from dbos_actors.cli.serving import Exit
from dbos_actors.errors import (
    ConfigurationError,
    OwnedElsewhereError,
    StoreUnreachableError,
    sole_cause,
)
from dbos_actors.maintenance.check import Tally, check
from dbos_actors.maintenance.findings import Finding
from dbos_actors.maintenance.repair import DeclinedError, repair
from dbos_actors.settings import Settings
from dbos_actors.store.connector import Connector, connector_for
from dbos_actors.store.embedded import open_embedded

_SHOWN = 20
"""Findings of one problem that are shown one by one, if nothing is dropped for them."""


class _Printer:
    """Prints findings as they come: everything that is dropped, and some of each other problem."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    async def __call__(self, finding: Finding) -> None:
        self._counts[finding.problem] += 1
        if finding.drops:
            click.echo(f"{finding} -- repair drops it")
        elif self._counts[finding.problem] <= _SHOWN:
            click.echo(str(finding))

    def summary(self) -> None:
        for problem, count in sorted(self._counts.items()):
            click.echo(f"{count:,} x {problem}")


async def run_check(settings: Settings) -> Exit:
    """Check the store of the settings and print what is wrong."""
    printer = _Printer()
    async with _store(settings) as connector:
        tally = await check(connector, printer)
    printer.summary()
    if tally.unknown_keys:
        click.echo(f"{tally.unknown_keys:,} keys beside the service's are left alone")
    damage = f"{tally.findings:,} findings" if tally.findings else "no damage"
    click.echo(f"{damage} in {tally.entries:,} entries of {connector.address}")
    return Exit.DAMAGED if tally.findings else Exit.DRAINED


async def run_repair(settings: Settings, *, yes: bool) -> Exit:
    """Repair the store of the settings; ask first unless ``yes``."""

    async def confirm(found: Tally) -> bool:
        text = f"Mend {found.findings:,} findings, {found.drops:,} of them by dropping something?"
        if yes:
            click.echo(f"{text} yes")
            return True
        # In a thread, so that the lease of the store is renewed while somebody thinks.
        return await trio.to_thread.run_sync(click.confirm, text, abandon_on_cancel=True)

    printer = _Printer()
    async with _store(settings) as connector:
        try:
            left = await repair(connector, report=printer, confirm=confirm)
        except (DeclinedError, click.Abort):
            click.echo("nothing was changed")
            return Exit.DAMAGED
    printer.summary()
    click.echo(f"{left:,} findings are left" if left else "no damage is left")
    return Exit.DAMAGED if left else Exit.DRAINED


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Connector]:
    """Where the store is. Errors have the words of these commands, not those of ``serve``."""
    try:
        async with _opened(settings) as connector:
            yield connector
    except* OwnedElsewhereError as group:
        raise ConfigurationError(f"{sole_cause(group)}. Stop it first") from group
    except* StoreUnreachableError as group:
        raise ConfigurationError(str(sole_cause(group))) from group


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Connector]:
    if not settings.embedded:
        yield connector_for(settings.redis_addr)
        return
    data_dir = settings.data_dir
    if not await trio.Path(data_dir / "appendonlydir").is_dir():
        raise ConfigurationError(f"DBOS_DATA_DIR={data_dir} holds no embedded store")
    async with open_embedded(data_dir, durability=settings.durability) as embedded:
        yield connector_for(embedded.address)
