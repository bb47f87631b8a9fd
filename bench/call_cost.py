"""`python -m bench.call_cost`: CPU time of a call in a server inside this process.

Client and server share a thread, and the client sends a fixed number of calls at once: they come
in one read and go into the same commits each time. A round takes less than a millisecond, so among
many there are some that nothing on the machine disturbs. The cheapest twentieth tells the cost.

The server uses the Redis and port of the environment (`REDIS_ADDR`, `PORT`). Prints a `Finding` as
JSON.
"""

from __future__ import annotations

import gc
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, thread_time
from typing import Final

import trio

from bench.load.connection import UnaryConnection
from bench.load.requests import Parameters, id_prefix
from bench.load.task_workloads import Leases
from bench.load.wire import Tally
from bench.load.workloads import make_workload
from dbos_actors.server import open_supervisor

BATCHES: Final = (32, 10, 1)
"""Calls in a round: the largest number that goes into one commit; a small one; the smallest."""

DURATION_S: Final = 1.0
"""For each of them, but at least so many rounds..."""
ROUNDS_MIN: Final = 400
DURATION_S_MAX: Final = 4.0
"""... unless that takes longer than this."""

AGENTS: Final = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured."""

    costs_us: dict[str, float]
    """CPU time per call, the client's 2 us included, by the number of calls in a round."""

    waited: float
    """Of the time in which the thread could have run, the share in which others did: the caches
    were theirs then, and a call costs more. 0 where the system does not tell."""


class Client:
    """Sends StoreResult calls over one connection."""

    def __init__(self, address: str) -> None:
        parameters = Parameters(
            kind="store_result",
            prefix=id_prefix(secrets.randbits(32), 0),
            agents=AGENTS,
            mix="network",
        )
        self._tally = Tally()
        workload = make_workload(parameters, Leases())
        self._connection = UnaryConnection(address, workload, self._tally, max(BATCHES))

    async def connect(self) -> None:
        """Exchange settings; in a thread, since that blocks."""
        await trio.to_thread.run_sync(self._connection.connect)

    async def call(self, count: int) -> None:
        """Send so many calls and wait for their answers. Raises `RuntimeError` if one fails."""
        connection = self._connection
        sent = connection.issue(count, perf_counter(), None)
        while connection.in_flight:
            await trio.lowlevel.wait_readable(connection.fileno())
            connection.receive()
        self._tally.samples.clear()
        if sent != count or self._tally.failures or connection.hollow:
            raise RuntimeError(f"{count - sent} calls were not sent, {self._tally.failures}")

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()


async def cost_us(client: Client, calls: int) -> float:
    """CPU time of this thread per call, in us: the limit of the cheapest twentieth of rounds."""
    costs: list[float] = []
    begin_s = perf_counter()
    while (elapsed_s := perf_counter() - begin_s) < DURATION_S_MAX:
        if elapsed_s >= DURATION_S and len(costs) >= ROUNDS_MIN:
            break
        before_s = thread_time()
        await client.call(calls)
        costs.append(thread_time() - before_s)
    costs.sort()
    return costs[len(costs) // 20] / calls * 1e6


async def measure() -> Finding:
    """The cost of a call for each of `BATCHES`."""
    async with open_supervisor() as server:
        client = Client(server.address)
        await client.connect()
        try:
            # The first result of an agent costs more than the others.
            for _ in range(0, 4 * AGENTS, max(BATCHES)):
                await client.call(max(BATCHES))
            gc.collect()
            gc.freeze()
            gc.disable()
            before = _times_ns()
            costs_us = {str(calls): await cost_us(client, calls) for calls in BATCHES}
            after = _times_ns()
            ran, waited = after[0] - before[0], after[1] - before[1]
            return Finding(costs_us, waited / max(1, ran + waited))
        finally:
            client.close()


def _times_ns() -> tuple[int, int]:
    """How long this thread has run, and how long it has waited for a core."""
    try:
        ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except OSError:
        return 0, 0
    return int(ran), int(waited)


if __name__ == "__main__":
    print(json.dumps(asdict(trio.run(measure))))
