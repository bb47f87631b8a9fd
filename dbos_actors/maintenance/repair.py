"""Mends a store, as its owner: no server runs meanwhile.

Everything that is written is one remedy of one finding, or a step of a fresh snapshot of the
tasks. It is committed as a server's commits are: whole, in order, and only while the store is
ours. A walk over the store follows each round of remedies, until one finds nothing. So a repair
that was killed leaves a store that the next one can go on with.

The head of the store (`head`) is mended first, and asked about by itself, because ownership depends
on it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from dbos_actors.clock import Clock, SystemClock
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import DbosError, UnavailableError, UnusableStoreError
from dbos_actors.maintenance import head
from dbos_actors.maintenance.check import Tally, check
from dbos_actors.maintenance.findings import Finding, Report
from dbos_actors.maintenance.inspection import Inspection
from dbos_actors.maintenance.reading import StoreReader
from dbos_actors.store import (
    Connector,
    Keys,
    Store,
    StoreSettings,
    open_store,
)

_ROUNDS: Final = 5
"""A remedy may uncover something, which the next round mends: a dropped record its index entries,
those nothing more. Two rounds are the most that was seen."""

_WRITTEN_AT_ONCE: Final = 500
"""Remedies in one commit."""

_WRITTEN_BYTES: Final = 1 << 20

Confirm = Callable[[Tally], Awaitable[bool]]
"""Asked before anything is written; False ends the repair."""


class DeclinedError(DbosError):
    """Whoever was asked said no; nothing was written since."""


async def repair(
    connector: Connector, *, report: Report, confirm: Confirm, clock: Clock | None = None
) -> int:
    """Report what is wrong, ask, and mend it; how many findings are left. 0: all is mended.

    Cancelled or killed, it may be begun again.

    Raises:
        DeclinedError: ``confirm`` said no.
        OwnedElsewhereError: a live server owns the store.
        UnusableStoreError: the data are of a later program, or Redis refuses a remedy.
        StoreUnreachableError: nobody answers, or the connection is lost.
        FencedError: a server has taken the store meanwhile.
    """
    clock = clock or SystemClock()
    keys = Keys()
    reader = StoreReader(connector)
    async with reader.connected():
        await _mend_head(reader, keys, report, confirm)
        async with open_store(
            connector,
            settings=StoreSettings(server_address="dbos-actors repair"),
            clock=clock,
            random=random.Random(),  # noqa: S311 - jitter
        ) as store:
            found = await check(connector, report)
            if not found.findings:
                return 0
            await _ask(confirm, found)
            return await _Repair(reader, keys, store, clock).run(report)


async def _mend_head(reader: StoreReader, keys: Keys, report: Report, confirm: Confirm) -> None:
    found = await head.findings(reader, keys)
    await head.refuse_owned(reader, keys)
    if found:
        for finding in found:
            await report(finding)
        await _ask(confirm, Tally(findings=len(found), drops=len(found)))
        await head.mend(reader, keys)


async def _ask(confirm: Confirm, found: Tally) -> None:
    if not await confirm(found):
        raise DeclinedError("nothing was changed")


class _Repair:
    def __init__(self, reader: StoreReader, keys: Keys, store: Store, clock: Clock) -> None:
        self._reader = reader
        self._keys = keys
        self._store = store
        self._clock = clock
        self._commands: list[bytes] = []
        self._size_bytes = 0
        self._found = 0

    async def run(self, report: Report) -> int:
        """Rounds until one finds nothing; how many findings are left."""
        for round_ in range(_ROUNDS):
            self._found = 0
            # What follows from a remedy is told too: it was not there to be found before.
            self._report = report if round_ else _quiet
            inspection = Inspection(self._reader, self._keys, self._mend)
            await inspection.types()
            await self._flush()
            await inspection.contents()
            await self._flush()
            if inspection.tasks.is_damaged:
                now = Now(self._clock.wall_s(), self._clock.monotonic_s())
                await inspection.tasks.renew(now, self._commit)
            if not self._found:
                return 0
        return self._found

    async def _mend(self, finding: Finding) -> None:
        self._found += 1
        await self._report(finding)
        await self._write(finding.remedy)

    async def _commit(self, commands: Sequence[bytes]) -> None:
        await self._write(commands)
        await self._flush()

    async def _write(self, commands: Sequence[bytes]) -> None:
        self._commands += commands
        self._size_bytes += sum(map(len, commands))
        if len(self._commands) >= _WRITTEN_AT_ONCE or self._size_bytes >= _WRITTEN_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if self._commands:
            commands = self._commands
            self._commands = []
            self._size_bytes = 0
            try:
                await self._store.commit(*commands, name="repair", gives_up=False)
            except UnavailableError as error:
                raise UnusableStoreError(f"a remedy was not written: {error}") from error


async def _quiet(finding: Finding) -> None:
    """Reported already, before anything was written."""
