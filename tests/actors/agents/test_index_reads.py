"""An index is read step by step while entries come, go and move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from dbos_actors.actors.agents.index import Index
from dbos_actors.store import Store
from dbos_actors.store.resp import unpacked
from tests.simulation.redis.database import Database

KEY = "index"


class Data:
    """A store that reads a simulated Redis."""

    def __init__(self, *entries: tuple[str, int]) -> None:
        self._database = Database()
        self.before_read: Callable[[], None] = lambda: None
        for member, score in entries:
            self.put(member, score)

    def put(self, member: str, score: int) -> None:
        self._execute(b"ZADD", str(score).encode(), member.encode())

    def remove(self, member: str) -> None:
        self._execute(b"ZREM", member.encode())

    async def read(self, *commands: bytes) -> list[Any]:
        self.before_read()
        return [self._database.execute(unpacked(command), 0) for command in commands]

    def _execute(self, name: bytes, *arguments: bytes) -> None:
        self._database.execute([name, KEY.encode(), *arguments], 0)


async def listed(
    data: Data, *, step: int, reverse: bool, between: Callable[[list[str]], None]
) -> list[str]:
    """All members, a step at a time; ``between`` is called with those so far."""
    index = Index(cast("Store", data), KEY, reverse=reverse)
    found: list[str] = []
    last: tuple[float, bytes] | None = None
    for _ in range(100):
        entries = await index.entries_after(last, step)
        if not entries:
            return found
        found += [member.decode() for member in entries.members]
        last = entries[len(entries) - 1]
        if entries.are_last:
            assert not await index.entries_after(last, step)
        between(found)
    raise AssertionError("no end")


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
async def test_what_stays_is_listed_though_the_last_one_read_moves_to_the_end(
    step: int, reverse: bool
) -> None:
    # Mutation: go on from where the rank of the one that moved leads. All have one score.
    members = list("abcdef")
    data = Data(*((member, 5) for member in members))
    order = members[::-1] if reverse else members

    moved: list[str] = []

    def move(found: list[str]) -> None:
        if len(found) > step and not moved:
            moved.append(found[-1])
            data.put(found[-1], 1 if reverse else 9)

    found = await listed(data, step=step, reverse=reverse, between=move)
    assert found == [*order, *moved]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
async def test_what_stays_is_listed_though_what_was_read_goes(step: int, reverse: bool) -> None:
    members = list("abcdef")
    data = Data(*((member, 5) for member in members))
    order = members[::-1] if reverse else members

    def remove(found: list[str]) -> None:
        if len(found) >= 3:
            for member in found:
                data.remove(member)

    assert await listed(data, step=step, reverse=reverse, between=remove) == order


@pytest.mark.parametrize("reads", range(1, 8))
@pytest.mark.parametrize("reverse", [False, True])
async def test_what_stays_is_listed_though_the_last_one_moves_between_two_reads(
    reads: int, reverse: bool
) -> None:
    # Mutation: count on from an offset that an earlier read has led to.
    members = list("abcdef")
    data = Data(*((member, 5) for member in members))
    order = members[::-1] if reverse else members
    left = reads

    def move() -> None:
        nonlocal left
        left -= 1
        if not left:
            data.put(order[1], 1 if reverse else 9)

    def begin(found: list[str]) -> None:
        if len(found) == 2:
            data.before_read = move

    found = await listed(data, step=1, reverse=reverse, between=begin)
    assert [member for member in found if member != order[1]] == [order[0], *order[2:]]
