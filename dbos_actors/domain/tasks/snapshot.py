"""A task book as the chunks of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.claims import Claim
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.journal import (
    Header,
    claims_chunk,
    end_chunk,
    flows_chunk,
    header_chunk,
    rows_chunk,
)

FLOWS_PER_CHUNK = 2_000
ROWS_PER_CHUNK = 2_000
"""A slice of a snapshot is cut after so many rows, at the next block's end: 2 ms, 200 KB."""


def snapshot_chunks(book: TaskBook, rows_per_chunk: int = ROWS_PER_CHUNK) -> Iterator[bytes]:
    """The book as chunks, cut lazily while changes go on being applied between them.

    With the journal entries after its sequence (`sequence` when this is called)
    it recovers the state of any later moment. The chunks must reach the store in
    order, each after the changes applied before it was cut.
    """
    header = header_chunk(Header(book.sequence, book.ledger, book.next_flow))
    flows, claims = list(book.flows.values()), book.claims.all()
    return _chunks(book, header, flows, claims, rows_per_chunk)


def _chunks(
    book: TaskBook, header: bytes, flows: list[Flow], claims: list[Claim], rows_per_chunk: int
) -> Iterator[bytes]:
    yield header
    chunks = 1
    for start in range(0, len(flows), FLOWS_PER_CHUNK):
        yield flows_chunk(flows[start : start + FLOWS_PER_CHUNK])
        chunks += 1
    if claims:
        yield claims_chunk(claims)
        chunks += 1
    rows: list[tuple[str, bytes]] = []
    last = ""
    while following := book.rows_after(last):
        last = following[-1][0]
        rows += following
        if len(rows) >= rows_per_chunk:
            yield rows_chunk(rows, len(rows))
            chunks += 1
            rows = []
    if rows:
        yield rows_chunk(rows, len(rows))
        chunks += 1
    yield end_chunk(chunks)
