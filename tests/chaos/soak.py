"""``python -m tests.chaos.soak --minutes 15``: mixed work, agents that come and go, no growth.

Every few seconds a new generation of agents begins: it reports runs and results, is read and
listed, and has tasks scheduled, leased and acknowledged. A generation later it falls silent and
leaves memory; later still it is deleted. Retention is on, with ages short enough to bite, and every
burst of writes has new connections. After a warm-up everything there is should stay as large as it
was: the server's memory, tasks, descriptors and objects, and Redis's keys.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import trio
from grpclib.exceptions import GRPCError

from bench.recorded_writes import Load, Write
from dbos_actors.api import messages
from dbos_actors.rpc.client.channel import Channel
from dbos_actors.store.keys import Keys
from tests.chaos.inspected import InspectedServer, resident_bytes
from tests.support.result_files import add_result_option, command_line, kept_in
from tests.support.valkey import ValkeyServer

AGENTS: Final = 200
"""Of one generation."""
GENERATION_S: Final = 5.0
DELETED_AFTER: Final = 4
"""Generations."""
AGE_S: Final = 15
"""Results and finished runs are kept for so long."""
BURST_S: Final = 1.0
CONNECTIONS: Final = 5
SAMPLE_S: Final = 10.0
WARM_UP_SHARE: Final = 0.25
"""Of the run: caches fill, Python's and Valkey's allocators find their size."""

GROWTH_MAX: Final = {
    "tasks": 0.05,
    "descriptors": 0.25,
    "resident_bytes": 0.10,
    "objects": 0.10,
    "redis_bytes": 0.15,
    "keys": 0.10,
}
"""Of each figure's mean, from the first third after the warm-up to the last."""

JOURNAL: Final = Keys().tasks_journal

SETTINGS: Final = {
    "DBOS_IDLE_PASSIVATION": "2s",
    "DBOS_RESULTS_MAX_AGE": f"{AGE_S}s",
    "DBOS_RUNS_MAX_AGE": f"{AGE_S}s",
    "DBOS_TASKS_MAX_AGE": f"{AGE_S}s",
    "DBOS_HEARTBEAT_TIMEOUT": "3s",
    "DBOS_MAX_EVENTS": "10000",
    "DBOS_RUN_CACHE_BYTES": "1MiB",
}


class Soak:
    """The clients' work; `generation` tells who is there."""

    def __init__(self, address: str, per_s: int) -> None:
        self.load = Load(keeps_history=False)
        self.calls = 0
        self.errors: dict[str, int] = {}
        self._address = address
        self._per_burst = int(per_s * BURST_S)
        self._started_s = trio.current_time()
        self._number = itertools.count(1)

    @property
    def generation(self) -> int:
        return int((trio.current_time() - self._started_s) / GENERATION_S)

    async def run(self, *, until_s: float) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, until_s)
            nursery.start_soon(self._talk, until_s)

    async def _write(self, until_s: float) -> None:
        while (now_s := trio.current_time()) < until_s:
            share = self._per_burst // CONNECTIONS
            writes = [list(itertools.islice(self._writes(), share)) for _ in range(CONNECTIONS)]
            await self.load.run(
                self._address, in_flight_each=20, writes=[iter(part) for part in writes]
            )
            await trio.sleep_until(now_s + BURST_S)

    def _writes(self) -> Iterator[Write]:
        """Whole runs with their results; heartbeats in between."""
        generation = self.generation
        for number in self._number:
            agent = f"g{generation}-{number % AGENTS}"
            run = f"run-{number // 4}"
            match number % 4:
                case 0 | 1 | 2 as step:
                    state = messages.ModuleState(
                        agent_id=f"g{generation}-{number // 4 % AGENTS}",
                        module_name=("ping", "dns")[number // 4 % 2],
                        request_id=run,
                        state=("started", "running", "completed")[step],
                        details={"n": str(number)},
                    )
                    request: Any = messages.SetModuleStateRequest(state=state)
                    yield Write("SetModuleState", request.SerializeToString(), agent, run, number)
                    result = messages.MeasurementResult(
                        id=f"result-{number}", agent_id=agent, module_name="ping", data=b"x" * 400
                    )
                    request = messages.StoreResultRequest(result=result)
                    yield Write("StoreResult", request.SerializeToString(), agent, run, number)
                case _:
                    record = messages.Agent(id=agent, hostname="h", alive=True)
                    request = messages.RegisterAgentRequest(agent=record)
                    yield Write("RegisterAgent", request.SerializeToString(), agent, "", number)

    async def _talk(self, until_s: float) -> None:
        """Reads, tasks and deletions, one after the other."""
        host, _, port = self._address.rpartition(":")
        deleted = -1
        while trio.current_time() < until_s:
            # A channel of its own each time: it comes and goes too.
            async with Channel(host, int(port)) as channel:
                call = partial(self._call, channel)
                agent = f"g{self.generation}-{next(self._number) % AGENTS}"
                await call("GetAgent", agent_id=agent)
                await call("ListAgents", page_size=50)
                await call("ListModuleStates", agent_id=agent)
                await call("ListResults", agent_id=agent, page_size=100)
                await call("GetEvents", limit=20)
                await self._work_on_tasks(call, agent)
                while deleted < self.generation - DELETED_AFTER:
                    deleted += 1
                    for index in range(AGENTS):
                        await call("DeleteAgent", agent_id=f"g{deleted}-{index}")
            await trio.sleep(0.05)

    async def _work_on_tasks(self, call: Callable[..., Any], agent: str) -> None:
        for _ in range(5):
            task = {"id": f"task-{next(self._number)}", "agent_id": agent, "module_name": "ping"}
            await call("ScheduleTask", task=task)
        leased = await call("LeaseTasks", agent_id=agent, limit=5, lease_seconds=30)
        for task in leased.tasks if leased is not None else ():
            await call("AckTask", task_id=task.id, lease_token=task.lease_token)

    async def _call(self, channel: Channel, method: str, **fields: Any) -> Any:
        request = getattr(messages, f"{method}Request")(**fields)
        self.calls += 1
        try:
            body = await channel.unary(
                f"/dbos.DBOS/{method}", request.SerializeToString(), timeout=10.0
            )
        except GRPCError as error:
            name = f"{method} {error.status.name}"
            self.errors[name] = self.errors.get(name, 0) + 1
            return None
        response = getattr(messages, f"{method}Response").FromString(body)
        if response.error and method != "GetAgent":
            name = f"{method} {response.error[:60]}"
            self.errors[name] = self.errors.get(name, 0) + 1
        return response


Sample = dict[str, float]


def take(started: float, server: InspectedServer, valkey: ValkeyServer, soak: Soak) -> Sample:
    """The figures now."""
    figures = server.ask(precisely=True)
    memory = valkey.execute("INFO", "memory")
    return {
        "second": time.monotonic() - started,
        "writes": soak.load.acknowledged,
        "calls": soak.calls,
        "resident_bytes": figures["resident_bytes"],
        "tasks": figures["tasks"],
        "descriptors": figures["descriptors"],
        "objects": figures["objects"],
        "agents": figures["agents.resident"],
        "keys": valkey.execute("DBSIZE"),
        # The journal of tasks is trimmed at 100,000 entries, which takes longer than this run.
        "redis_bytes": memory["used_memory"] - (valkey.execute("MEMORY", "USAGE", JOURNAL) or 0),
        "journal_entries": valkey.execute("XLEN", JOURNAL),
        "redis_resident_bytes": resident_bytes(valkey.pid),
    }


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """How much larger each figure is in the last third than in the first, after the warm-up."""
    steady = samples[int(len(samples) * WARM_UP_SHARE) :]
    third = max(1, len(steady) // 3)
    found = {}
    for name in GROWTH_MAX:
        first = sum(sample[name] for sample in steady[:third]) / third
        last = sum(sample[name] for sample in steady[-third:]) / third
        found[name] = last / first - 1.0
    return found


def table(samples: Sequence[Sample], rows: int = 16) -> str:
    """Markdown: the figures over time."""
    head = (
        "| minute | writes | calls | server MB | tasks | fds | objects | resident agents "
        "| Redis keys | Redis MB without journal | journal entries |"
    )
    step = max(1, len(samples) // rows)
    body = [
        f"| {sample['second'] / 60:.1f} | {sample['writes']:,} | {sample['calls']:,} "
        f"| {sample['resident_bytes'] / 1e6:.1f} | {sample['tasks']} "
        f"| {sample['descriptors']} | {sample['objects']:,} | {sample['agents']} "
        f"| {sample['keys']:,} | {sample['redis_bytes'] / 1e6:.1f} "
        f"| {sample['journal_entries']:,} |"
        for sample in samples[step - 1 :: step]
    ]
    return "\n".join([head, "|" + "---:|" * 11, *body])


async def soak(minutes: float, per_s: int) -> tuple[list[Sample], Soak]:
    """Run it all."""
    samples: list[Sample] = []
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer(appendfsync="everysec"))
        server = stack.enter_context(
            await trio.to_thread.run_sync(partial(InspectedServer, valkey.address, **SETTINGS))
        )
        work = Soak(server.address, per_s)
        started = time.monotonic()
        until_s = trio.current_time() + 60.0 * minutes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(work.run, until_s=until_s))
            at_s = trio.current_time()
            while at_s + SAMPLE_S <= until_s:
                at_s += SAMPLE_S
                await trio.sleep_until(at_s)
                samples.append(await trio.to_thread.run_sync(take, started, server, valkey, work))
                print(samples[-1], file=sys.stderr)
    return samples, work


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--rate", type=int, default=1_000, help="writes a second (%(default)s)")
    add_result_option(parser)
    options = parser.parse_args(arguments)
    samples, work = trio.run(soak, options.minutes, options.rate)
    with kept_in(options.result, command_line("tests.chaos.soak", arguments)):
        return publish(samples, work)


def publish(samples: Sequence[Sample], work: Soak) -> int:
    """Print the figures over time and how much they grew; the exit status."""
    print(table(samples))
    print()
    failed = False
    for name, grown in growth(samples).items():
        limit = GROWTH_MAX[name]
        failed |= grown > limit
        print(f"- {name}: {grown:+.1%} (limit {limit:+.0%})")
    print(f"- errors: {work.errors or 'none'}")
    return 1 if failed or work.errors else 0


if __name__ == "__main__":
    sys.exit(main())
