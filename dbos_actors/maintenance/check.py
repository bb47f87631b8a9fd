"""Reads a whole store and reports what is wrong. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from dbos_actors.maintenance import head
from dbos_actors.maintenance.findings import Finding, Report
from dbos_actors.maintenance.inspection import Inspection
from dbos_actors.maintenance.reading import StoreReader
from dbos_actors.store import Connector, Keys


@dataclass(slots=True)
class Tally:
    """What a walk has come to."""

    entries: int = 0
    """Fields, members and entries read."""
    findings: int = 0
    drops: int = 0
    """Findings whose remedy loses something."""
    unknown_keys: int = 0


async def check(connector: Connector, report: Report) -> Tally:
    """Walk over the store, also beside the server that owns it.

    Raises:
        StoreUnreachableError: nobody answers, or the connection is lost.
        UnusableStoreError: the data are of a later program, or Redis refuses to be read.
    """
    reader = StoreReader(connector)
    keys = Keys()
    tally = Tally()

    async def count(finding: Finding) -> None:
        tally.findings += 1
        tally.drops += finding.drops
        await report(finding)

    async with reader.connected():
        for finding in await head.findings(reader, keys):
            await count(finding)
        inspection = Inspection(reader, keys, count)
        await inspection.types()
        await inspection.contents()
    tally.entries = reader.entries
    tally.unknown_keys = inspection.unknown
    return tally
