"""All listings together hold a bounded number of bytes, and small ones wait for no large ones."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from dbos_actors.actors.listings import SMALL_BYTES, STEP_BYTES, ListingBudget, Room, reads

MIB = 1 << 20


def budget_of(places: int) -> ListingBudget:
    return ListingBudget(places * 2 * (4 * MIB + STEP_BYTES), message_bytes=4 * MIB)


class Running:
    """Listings that reserve a size and then stay until they are told to end."""

    def __init__(self, budget: ListingBudget, nursery: trio.Nursery) -> None:
        self._budget = budget
        self._nursery = nursery
        self.reading: list[str] = []

    def start(self, name: str, *sizes: int) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                async with self._budget.room() as room:
                    for size in sizes:
                        await room.reserve(size)
                    self.reading.append(name)
                    try:
                        await trio.sleep_forever()
                    finally:
                        self.reading.remove(name)

        self._nursery.start_soon(run)
        return scope


async def test_large_listings_wait_for_a_place_and_small_ones_do_not() -> None:
    async with trio.open_nursery() as nursery:
        running = Running(budget_of(2), nursery)
        scopes = {}
        for number in range(500):
            scopes[f"large{number}"] = running.start(f"large{number}", STEP_BYTES, STEP_BYTES)
            await wait_all_tasks_blocked()
        assert running.reading == ["large0", "large1"]
        for number in range(10):
            running.start(f"small{number}", SMALL_BYTES // 2, SMALL_BYTES // 2)
        await wait_all_tasks_blocked()
        assert sorted(running.reading[2:]) == [f"small{number}" for number in range(10)]
        scopes["large2"].cancel()  # its caller has given up
        scopes["large0"].cancel()
        await wait_all_tasks_blocked()
        assert "large3" in running.reading
        assert sum(name.startswith("large") for name in running.reading) == 2
        nursery.cancel_scope.cancel()


async def test_nothing_is_held_when_all_listings_have_ended() -> None:
    budget = budget_of(1)
    async with trio.open_nursery() as nursery:
        running = Running(budget, nursery)
        for number in range(5):
            running.start(str(number), MIB)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert budget.large.borrowed_tokens == budget.running.borrowed_tokens == 0


async def test_what_is_read_and_dropped_does_not_make_a_listing_large() -> None:
    budget = budget_of(1)
    room = Room(budget)
    await room.run()
    for _ in range(100):
        await room.reserve(SMALL_BYTES)
        room.release(SMALL_BYTES)
    assert budget.large.borrowed_tokens == 0
    room.close()


async def test_one_large_listing_runs_however_little_memory_there_is() -> None:
    async with trio.open_nursery() as nursery:
        running = Running(ListingBudget(1, message_bytes=4 * MIB), nursery)
        running.start("large", 3 * MIB)
        await wait_all_tasks_blocked()
        assert running.reading == ["large"]
        nursery.cancel_scope.cancel()


@given(st.lists(st.sampled_from([0, 1, 800, STEP_BYTES // 2, STEP_BYTES, 5 * STEP_BYTES])))
def test_records_are_read_in_order_and_no_read_is_larger_than_a_step_or_a_record(
    sizes: list[int],
) -> None:
    cut = list(reads(sizes))
    assert [size for first, behind, _ in cut for size in sizes[first:behind]] == sizes
    for first, behind, size_bytes in cut:
        assert size_bytes == sum(sizes[first:behind])
        assert behind > first
        assert size_bytes <= STEP_BYTES or behind == first + 1


@pytest.mark.parametrize("sizes", [[800] * 256, [STEP_BYTES // 4] * 4])
def test_records_that_fit_into_one_step_are_one_read(sizes: list[int]) -> None:
    assert len(list(reads(sizes))) == 1
