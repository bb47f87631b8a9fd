"""An actor that counts. Every count it answers with has been committed before."""

import trio

from dbos_actors.clock import SystemClock
from dbos_actors.runtime import Actor, MemoryLog, Supervisor, SupervisorLimits, Turn

stored: dict[str, int] = {}


def write(command: bytes) -> None:
    key, count = command.decode().split("=")
    stored[key] = int(count)


class Counter(Actor):
    count = 0

    async def load(self) -> None:
        self.count = stored.get(self.key, 0)

    def handle(self, added: int, /) -> Turn:
        count = self.count + added
        return Turn(
            count, commands=[b"%s=%d" % (self.key.encode(), count)], changes=[("count", count)]
        )


async def main() -> None:
    log = MemoryLog(write)
    counters = Supervisor(make=Counter, log=log, clock=SystemClock(), limits=SupervisorLimits())
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        await nursery.start(counters.run)
        for key, added in [("apples", 2), ("pears", 1), ("apples", 3)]:
            print(key, await counters.ask(key, added))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
