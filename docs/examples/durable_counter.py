"""The counting actor, durable in Redis.

It prints 1, 3 and 6. Then everything is stopped and started again, and it prints 7, 9 and 12.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import trio

from dbos_actors.clock import SystemClock
from dbos_actors.runtime import Actor, ActorCell, Supervisor, SupervisorLimits, Turn
from dbos_actors.store import Store, StoreSettings, connector_for, open_store, pack
from dbos_actors.store.embedded import open_embedded

COUNTERS = "example:counters"


class Counter(Actor):
    """A message is a number to add, the answer is the sum."""

    count = 0

    def __init__(self, key: str, cell: ActorCell, store: Store) -> None:
        super().__init__(key, cell)
        self._store = store

    async def load(self) -> None:
        (stored,) = await self._store.read(pack("HGET", COUNTERS, self.key))
        self.count = int(stored or 0)

    def handle(self, request: int) -> Turn:
        count = self.count + request
        command = pack("HSET", COUNTERS, self.key, count)
        return Turn(count, commands=[command], changes=[("count", count)])


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
            make=lambda key, cell: Counter(key, cell, store),
            log=store,
            clock=clock,
            limits=SupervisorLimits(),
        )
        store.on_reload(counters.reload_all)
        await nursery.start(counters.run)
        for number in numbers:
            print(await counters.ask("visits", number))  # answered when the commit is in Redis
        nursery.cancel_scope.cancel()


async def main() -> None:
    """Count, stop, and count on."""
    with tempfile.TemporaryDirectory() as directory:
        async with open_embedded(Path(directory)) as redis:
            await count(redis.address, 1, 2, 3)
            await count(redis.address, 1, 2, 3)


if __name__ == "__main__":
    trio.run(main)
