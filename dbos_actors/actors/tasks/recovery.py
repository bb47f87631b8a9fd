"""What the scheduler keeps in Redis, and how it is read back.

The `tasks` hash holds every task as it was scheduled. Everything that changes
afterwards is in the journal, one entry a turn, and in the snapshot that stands
for the journal's beginning. An entry's id in the stream is its sequence number,
so that trimming is exact and a gap cannot hide.

A snapshot is written beside the one in force, chunk by chunk, as the list of the
next generation. One last commit names that generation, drops the list before it
and trims the journal, so that at any moment there is exactly one way to read
all this. What an interrupted snapshot left behind is overwritten by the next one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.journal import JournalError
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.recovery import Recovery
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import raise_sole_cause
from dbos_actors.store import Store, pack

T = TypeVar("T")

_CHUNKS_READ = 8
"""Snapshot chunks in one reply: 1 to 2 MB."""

_ENTRIES_READ = 1_000
"""Journal entries in one reply, at most: some 150 KB."""

_JOURNAL_BYTES_READ = 1 << 20
"""In one reply, if the next entries are as large as those before: a turn may touch thousands
of tasks, each with a long error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A task book read back, and which snapshot it rests on."""

    book: TaskBook
    generation: int
    """Of the snapshot in force; 0 if there is none."""
    sequence: int
    """The journal holds the entries after this one."""
    snapshot_bytes: int
    journal_bytes: int


async def recover(store: Store, limits: TaskLimits, now: Now) -> Recovered:
    """Read everything back, in slices that let other tasks run in between.

    Raises:
        JournalError: what is stored is damaged, incomplete or of another format.
        UnavailableError: Redis is away, or refuses.
    """
    keys = store.keys
    recovery = Recovery(limits)
    await _check_types(
        store, {keys.tasks: b"hash", keys.tasks_snapshot: b"hash", keys.tasks_journal: b"stream"}
    )
    values, length, records = await store.read(
        pack("HMGET", keys.tasks_snapshot, "generation", "sequence"),
        pack("XLEN", keys.tasks_journal),
        pack("HLEN", keys.tasks),
    )
    if not all(value is None or value.isdigit() for value in values):
        raise JournalError(f"{keys.tasks_snapshot} holds {values}, not two numbers")
    generation, sequence = (int(value or 0) for value in values)
    if generation:
        key = f"{keys.tasks_snapshots}{generation}"
        await _check_types(store, {key: b"list"})
        await _read_snapshot(store, recovery, key)
    recovery.expect(sequence)
    if length:
        await _read_journal(store, recovery)
    for _ in recovery.build(now):
        await trio.lowlevel.checkpoint()
    if records > len(recovery.book):
        # The journal's end is lost, or all of it: an entry's tasks are written with the entry.
        raise JournalError(
            f"{keys.tasks} holds {records} tasks, snapshot and journal know {len(recovery.book)}"
        )
    return Recovered(
        book=recovery.book,
        generation=generation,
        sequence=sequence,
        snapshot_bytes=recovery.snapshot_bytes,
        journal_bytes=recovery.journal_bytes,
    )


async def _check_types(store: Store, expected: Mapping[str, bytes]) -> None:
    found = await store.read(*(pack("TYPE", key) for key in expected))
    for (key, kind), actual in zip(expected.items(), found, strict=True):
        if actual not in (kind, b"none"):
            raise JournalError(f"{key} is a {_text(actual)}, not a {_text(kind)}")


def _text(reply: object) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


async def _read_snapshot(store: Store, recovery: Recovery, key: str) -> None:
    async def read(position: int) -> tuple[list[bytes], int | None]:
        (chunks,) = await store.read(pack("LRANGE", key, position, position + _CHUNKS_READ - 1))
        return chunks, position + _CHUNKS_READ if len(chunks) == _CHUNKS_READ else None

    async with _read_ahead(read, 0) as pages:
        async for chunks in pages:
            for chunk in chunks:
                recovery.load_chunk(chunk)
                await trio.lowlevel.checkpoint()


async def _read_journal(store: Store, recovery: Recovery) -> None:
    key = store.keys.tasks_journal

    async def read(position: tuple[bytes, int]) -> tuple[list[Any], tuple[bytes, int] | None]:
        last, count = position
        (entries,) = await store.read(pack("XRANGE", key, b"(" + last, "+", "COUNT", count))
        if len(entries) < count:
            return entries, None
        size_bytes = sum(len(part) for _, fields in entries for part in fields)
        return entries, (entries[-1][0], _entries_to_read(count, size_bytes))

    async with _read_ahead(read, (b"%d-0" % recovery.sequence, _ENTRIES_READ_FIRST)) as pages:
        async for entries in pages:
            for number, (_, fields) in enumerate(entries):
                recovery.replay(fields[1] if len(fields) > 1 else b"")
                if number % _ENTRIES_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()


_ENTRIES_READ_FIRST = 32


def _entries_to_read(count: int, size_bytes: int) -> int:
    """How many entries to read after ``count`` that took ``size_bytes``; twice as many at most."""
    fitting = _JOURNAL_BYTES_READ * count // max(size_bytes, 1)
    return max(1, min(fitting, 2 * count, _ENTRIES_READ))


@asynccontextmanager
async def _read_ahead(
    read: Callable[[T], Awaitable[tuple[list[Any], T | None]]], position: T
) -> AsyncIterator[trio.MemoryReceiveChannel[list[Any]]]:
    """Pages, each read while the one before it is worked on.

    ``read`` gives the page at a position and the position of the next page, None after the last.
    """
    sender, receiver = trio.open_memory_channel[list[Any]](0)

    async def fetch() -> None:
        following: T | None = position
        # Closed without a checkpoint: there, whoever takes the end for the last page would
        # cancel us, and the error that ended us would be lost.
        with sender:
            while following is not None:
                page, following = await read(following)
                await sender.send(page)

    try:
        async with trio.open_nursery() as nursery, receiver:
            nursery.start_soon(fetch)
            yield receiver
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_sole_cause(group)


_ENTRIES_AT_ONCE = 100  # replayed before other tasks run: 2 ms
