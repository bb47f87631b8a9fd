"""That listings of tasks let everyone else have a turn between two slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import trio

from dbos_actors.actors.listings import ListingBudget
from dbos_actors.actors.tasks import listings as task_listings
from dbos_actors.actors.tasks.listings import TaskListings
from dbos_actors.api.messages import ListDueTasksRequest, ListTasksRequest
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.scan import Slice
from dbos_actors.domain.tasks.timers import Now
from tests.domain.tasks.helpers import Driver


def listings(book: TaskBook, now: Now) -> TaskListings:
    async def loaded_book() -> TaskBook:
        await trio.lowlevel.checkpoint()
        return book

    unused: Any = None
    return TaskListings(
        store=unused,
        commands=unused,
        deliver=lambda call: call.reply(None),
        damaged=unused,
        loaded_book=loaded_book,
        now=lambda: now,
        message_bytes_max=1 << 20,
        leases=False,
    )


async def test_however_many_listings_run_others_have_their_turn_after_each_slice(
    monkeypatch: Any,
) -> None:
    rounds = 0
    seen: list[int] = []

    def slices(*_: object, **__: object) -> Iterator[Slice]:
        for _number in range(20):
            seen.append(rounds)
            yield Slice(500, [], "")

    monkeypatch.setattr(task_listings, "tasks_by_id", slices)
    monkeypatch.setattr(task_listings, "oldest_tasks", slices)
    driver = Driver()
    queries = listings(driver.book, driver.now)
    budget = ListingBudget(1 << 20, message_bytes=1 << 20)

    async def count_rounds() -> None:
        nonlocal rounds
        while True:
            await trio.lowlevel.checkpoint()
            rounds += 1

    async def list_tasks() -> None:
        async with budget.room() as room:
            assert await queries.list_tasks(ListTasksRequest(page_size=10), room) == b""

    async def list_due() -> None:
        async with budget.room() as room:
            assert await queries.list_due_tasks(ListDueTasksRequest(), room) == b""

    async with trio.open_nursery() as others:
        others.start_soon(count_rounds)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(list_tasks)
                nursery.start_soon(list_due)
        others.cancel_scope.cancel()
    assert len(seen) == 20 * 20
    # Within a round Trio chooses the order, so between two slices of the one the counter may
    # already, or not yet, have had its turn.
    assert max(Counter(seen).values()) <= 2
