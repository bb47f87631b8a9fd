"""A recovery reads all of the journal, or fails."""

from __future__ import annotations

import pytest

from dbos_actors.actors.tasks.recovery import (
    _ENTRIES_READ,
    _JOURNAL_BYTES_READ,
    _entries_to_read,
    _read_ahead,
)
from dbos_actors.errors import UnavailableError

PAGES = 3
RUNS = 20
"""Trio runs what is ready in a random order: enough for every order to come up."""


async def pages_until(failing: int | None) -> list[int]:
    """What is read of some pages, of which one may not be had."""

    async def read(position: int) -> tuple[list[int], int | None]:
        if position == failing:
            raise UnavailableError("Redis is away")
        return [position], position + 1 if position + 1 < PAGES else None

    found: list[int] = []
    async with _read_ahead(read, 0) as pages:
        async for page in pages:
            found += page
    return found


async def test_every_page_is_read() -> None:
    for _ in range(RUNS):
        assert await pages_until(None) == list(range(PAGES))


@pytest.mark.parametrize("failing", range(PAGES))
async def test_a_page_that_cannot_be_read_is_never_taken_for_the_end(failing: int) -> None:
    # Mutation: close the channel with a checkpoint. Who waits for a page ends the reading there.
    for _ in range(RUNS):
        with pytest.raises(UnavailableError):
            await pages_until(failing)


def test_a_page_of_the_journal_is_bounded_in_bytes_whatever_its_entries_take() -> None:
    count = 32
    for _ in range(10):  # small entries: as many as there may be
        count = _entries_to_read(count, 150 * count)
    assert count == _ENTRIES_READ
    large = _JOURNAL_BYTES_READ // 10
    count = _entries_to_read(count, large * count)
    assert count == 10
    assert _entries_to_read(count, 100 * _JOURNAL_BYTES_READ * count) == 1
    assert _entries_to_read(1, 100) == 2
