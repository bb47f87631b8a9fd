"""An actor that counts: one for each name, durable in Redis.

It prints 1, 3 and 6. Then everything is stopped and started again, and it prints 7, 9 and 12.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from random import Random
from typing import NoReturn

import trio

from dbos_actors.clock import SystemClock
from dbos_actors.runtime import Supervisor, SupervisorLimits, Turn, Waiter
from dbos_actors.store import Store, StoreSettings, open_store, pack
from dbos_actors.store.connector import connector_for
from dbos_actors.store.embedded import open_embedded

COUNTERS = "example:counters"


class Counter:
    """A `dbos_actors.runtime.Behaviour`. A message is a number to add, the answer is the sum."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._count = 0

    async def load(self) -> None:
        """Read the state when the actor begins to live. Messages wait meanwhile."""
        (stored,) = await self._store.read(pack("HGET", COUNTERS, self._name))
        self._count = int(stored or 0)

    def handle(self, request: int) -> Turn:
        """Decide what a message does. Nothing is changed here: the turn says what is to change."""
        count = self._count + request
        command = pack("HSET", COUNTERS, self._name, count)
        return Turn(count, commands=[command], changes=[("count", count)])

    def apply(self, part: Hashable, value: int) -> None:
        """Take over a change, together with the commands that were handed in for it."""
        self._count = value

    def missing(self, request: int) -> None:
        """No part of the state has to be read before a message can be handled."""

    def fetch(self, part: Hashable, arrived: Callable[..., None]) -> NoReturn:
        """Read a part that was missing."""
        raise AssertionError("nothing is ever missing")

    def released(self) -> None:
        """The actor leaves memory; it holds nothing outside."""


async def count(address: str, *numbers: int) -> None:
    """Send numbers to the counter `visits`, on the Redis at an address, and print the answers."""
    clock = SystemClock()
    async with (
        open_store(
            connector_for(address), settings=StoreSettings(), clock=clock, random=Random()
        ) as store,
        trio.open_nursery() as nursery,
    ):
        counters = Supervisor(
            make=lambda name, _: Counter(store, name),
            log=store,
            clock=clock,
            limits=SupervisorLimits(),
        )
        await nursery.start(counters.run)
        for number in numbers:
            call = Waiter(number)
            counters.deliver("visits", call)
            print(await call.wait())  # answered when the commit is in Redis
        nursery.cancel_scope.cancel()


async def main() -> None:
    """Count, stop, and count on."""
    with tempfile.TemporaryDirectory() as directory:
        async with open_embedded(Path(directory)) as redis:
            await count(redis.address, 1, 2, 3)
            await count(redis.address, 1, 2, 3)


if __name__ == "__main__":
    trio.run(main)
