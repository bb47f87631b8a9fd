"""One call of each listing at the largest sizes: what it looks at, takes, and does to others.

``python -m bench.listing_costs`` starts a server on a private Valkey of its own, fills it
with tasks, agents and one agent's results, and calls one listing after another for a while. Beside
it a program of its own stores results, four at a time, and measures how long that takes: alone,
and while the listing is called again and again. The table goes to standard output and, with all
figures, to `bench/results`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import trio

from bench.recorded_writes import ACKNOWLEDGED, Load, Write
from bench.report import surroundings
from dbos_actors.api import messages
from dbos_actors.domain import paging
from tests.support.process import ServerProcess

RESULTS = Path(__file__).parent / "results"
MODULES = ("ping", "dns", "trace")
HEAVY, LATE = "agent-heavy", "agent-late"
RARE_EVERY = 83_333
"""Every so many tasks, or results, are of the module `rare`."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the server is filled with."""

    tasks: int
    agents: int
    results: int
    seconds: float
    """How long each listing is called for, and how long others are measured alone before it."""

    @property
    def due(self) -> int:
        return self.tasks // 2

    @property
    def completed(self) -> int:
        return self.tasks // 50


# --------------------------------------------------------------------- filling


def _module(number: int) -> str:
    return "rare" if number % RARE_EVERY == 1 else MODULES[number % 3]


def _tasks(sizes: Sizes, numbers: range, now_s: int) -> Iterator[Write]:
    """Half due, by the age of a day, half of the future; those of `LATE` are the youngest due."""
    for number in numbers:
        agent = f"agent-{number % sizes.agents:05}"
        if number >= sizes.due:
            at = now_s + 86_400 + number % 3_600
        elif number >= sizes.due - sizes.tasks // 33:
            agent, at = LATE, now_s - 100 + number % 90
        else:
            at = now_s - 86_400 + number * 7_919 % 86_000
        task = messages.Task(
            id=f"task-{number:07}",
            agent_id=agent,
            module_name=_module(number),
            payload=b'{"target":"192.0.2.1","packets":3}',
            scheduled_at=at,
        )
        request = messages.ScheduleTaskRequest(task=task)
        yield Write("ScheduleTask", request.SerializeToString(), agent, task.id, number)


def _acknowledgements(numbers: range) -> Iterator[Write]:
    for number in numbers:
        request = messages.AckTaskRequest(task_id=f"task-{number:07}")
        yield Write("AckTask", request.SerializeToString(), "", request.task_id, number)


def _agents(numbers: range) -> Iterator[Write]:
    for number in numbers:
        agent = messages.Agent(id=f"agent-{number:05}", hostname="h", alive=True)
        request = messages.RegisterAgentRequest(agent=agent)
        yield Write("RegisterAgent", request.SerializeToString(), agent.id, "", number)


def _states(numbers: range) -> Iterator[Write]:
    for number in numbers:
        state = messages.ModuleState(
            agent_id=HEAVY,
            module_name=_module(number),
            request_id=f"run-{number:05}",
            state="running" if number % 100 else "failed",
        )
        request = messages.SetModuleStateRequest(state=state)
        yield Write("SetModuleState", request.SerializeToString(), HEAVY, state.request_id, number)


def _results(numbers: range, agent: str = HEAVY, prefix: str = "result") -> Iterator[Write]:
    for number in numbers:
        result = messages.MeasurementResult(
            id=f"{prefix}-{number:07}",
            agent_id=agent,
            module_name=_module(number),
            data=b'{"rtt_ms":12.5,"hops":11}' * 4,
        )
        request = messages.StoreResultRequest(result=result)
        yield Write("StoreResult", request.SerializeToString(), agent, result.id, number)


async def _write_all(
    address: str, count: int, kind: Callable[[range], Iterator[Write]], *, in_flight_each: int = 200
) -> None:
    """All of them, no more at once than the mailbox of one actor takes."""
    load = Load(keeps_history=False)
    async with trio.open_nursery() as nursery:
        for part in range(4):
            writes = [kind(range(part, count, 4))]
            nursery.start_soon(
                partial(load.run, address, writes=writes, in_flight_each=in_flight_each)
            )
    assert load.acknowledged == count, (load.acknowledged, count)


async def fill(address: str, sizes: Sizes) -> None:
    """Write everything, durably."""
    now_s = int(time.time())
    await _write_all(address, sizes.agents, _agents)
    await _write_all(address, 10_000, _states)
    await _write_all(address, sizes.results, _results)
    await _write_all(address, sizes.tasks, lambda numbers: _tasks(sizes, numbers, now_s))
    await _write_all(address, sizes.completed, _acknowledgements)


def _let_some_die(caller: Caller, count: int = 20) -> None:
    for number in range(count):
        task = {"id": f"dying-{number}", "agent_id": "agent-00000", "module_name": "dying"}
        caller.call("ScheduleTask", task={**task, "max_attempts": 1})
    caller.call("LeaseTasks", module_name="dying", limit=count)
    for number in range(count):
        leased = caller.call("GetTask", task_id=f"dying-{number}").task
        caller.call("NackTask", task_id=leased.id, lease_token=leased.lease_token, reason="broken")
    caller.call("LeaseTasks", limit=1_000, lease_seconds=43_200)


# ------------------------------------------------------------------- measuring


class Caller:
    """A client that leaves responses undecoded, so that it takes little of the machine."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._methods: dict[str, Any] = {}

    def send(self, method: str, request: bytes) -> bytes | None:
        """The response; None if it would be larger than a message may be."""
        call = self._methods.get(method)
        if call is None:
            call = self._methods[method] = self._channel.unary_unary(f"/dbos.DBOS/{method}")
        try:
            response: bytes = call(request, timeout=120)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "set page_size" in str(error):
                return None
            raise
        return response

    def call(self, method: str, **fields: Any) -> Any:
        request = getattr(messages, f"{method}Request")(**fields).SerializeToString()
        response = self.send(method, request)
        assert response is not None
        return getattr(messages, f"{method}Response").FromString(response)


@dataclass(slots=True)
class Cost:
    """What one listing cost."""

    listing: str
    entries: int
    """In the response."""
    rows: float
    """Looked at, for one call."""
    calls: int
    median_ms: float
    longest_ms: float
    alone_p99_ms: float
    beside_p99_ms: float
    beside_longest_ms: float
    answer: str = ""
    """What to say instead of how many entries there are."""
    latencies_ms: list[float] = field(default_factory=list)


def bystander(address: str, seconds: float) -> subprocess.Popen[str]:
    """A program that stores results for so long and prints how long each took, in ms."""
    program = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "--bystander", address, "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "started\n"
    return program


def latencies(program: subprocess.Popen[str]) -> list[float]:
    assert program.stdout is not None
    with program:
        found: list[float] = json.loads(program.stdout.readline())
    return sorted(found)


async def _stand_by(address: str, seconds: float) -> None:
    prefix = f"other-{time.monotonic_ns()}"
    agents = itertools.cycle(f"agent-{number:05}" for number in range(100))

    def writes() -> Iterator[Write]:
        for number in itertools.count():
            yield from _results(range(number, number + 1), next(agents), prefix)

    gc.disable()  # its pauses would be taken for the server's
    load = Load()
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(load.run, address, writes=[writes()], in_flight_each=4, stop=stop)
        )
        await load.wait_acknowledged(200)  # the agents are in memory, the connection is warm
        first = len(load.history)
        print("started", flush=True)
        await trio.sleep(seconds)
        stop.set()
    settled = [write for write in load.history[first:] if write.outcome == ACKNOWLEDGED]
    print(json.dumps([round((w.settled_s - w.issued_s) * 1000, 3) for w in settled]))


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _rows(metrics_port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as page:
        found = re.search(r"^dbos_listings_rows (\S+)$", page.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


class Asked(NamedTuple):
    """One listing with one filter."""

    listing: str
    """Its name in the table."""
    method: str
    fields: dict[str, Any]


def measure(address: str, metrics_port: int, seconds: float, asked: Asked) -> Cost:
    """Call one listing again and again while others work."""
    listing, method, fields = asked
    caller = Caller(address)
    request = getattr(messages, f"{method}Request")(**fields).SerializeToString()
    before = _rows(metrics_port)
    body = caller.send(method, request)
    rows = _rows(metrics_port) - before
    response = getattr(messages, f"{method}Response").FromString(body or b"")
    entries = next((len(value) for d, value in response.ListFields() if d.number == 1), 0)
    alone = latencies(bystander(address, seconds))
    program = bystander(address, seconds)
    took: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        began_s = time.perf_counter()
        caller.send(method, request)
        took.append((time.perf_counter() - began_s) * 1000)
    beside = latencies(program)
    return Cost(
        listing=listing,
        entries=entries,
        rows=rows,
        calls=len(took),
        median_ms=statistics.median(took),
        longest_ms=max(took),
        alone_p99_ms=_percentile(alone, 0.99),
        beside_p99_ms=_percentile(beside, 0.99),
        beside_longest_ms=beside[-1],
        answer="too many" if body is None else "",
        latencies_ms=[round(one, 2) for one in took[:1_000]],
    )


def listings(sizes: Sizes, now_s: int, filled_s: int) -> Iterator[Asked]:
    """Each listing with each filter; ``filled_s`` is when the filling began."""
    agent = "agent-00077"
    page = {"page_size": 100}
    middle = paging.Listing("ListTasks", "", "", "").token(0, f"task-{sizes.tasks // 2:07}")
    ahead = now_s + 86_400 + 1_800
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("first page of 1,000", {"page_size": 1_000}),
        ("page of 1,000 in the middle", {"page_size": 1_000, "page_token": middle}),
        ("page of 10,000", {"page_size": 10_000}),
        ("no pages", {}),
        ("an agent", {"agent_id": agent, **page}),
        ("an agent's module", {"agent_id": agent, "module_name": "dns", **page}),
        ("an agent nobody knows", {"agent_id": "nobody", **page}),
        ("a module of all agents", {"module_name": "dns", **page}),
        ("a rare module", {"module_name": "rare", **page}),
        ("pending", {"status": "pending", **page}),
        ("inflight", {"status": "inflight", **page}),
        ("completed", {"status": "completed", **page}),
        ("dead", {"status": "dead", **page}),
        (
            "completed, a rare module",
            {"status": "completed", "module_name": "rare", "page_size": 9},
        ),
        ("dead, of an agent", {"status": "dead", "agent_id": LATE, **page}),
        ("pending, a module", {"status": "pending", "module_name": "dns", **page}),
    ]
    due: list[tuple[str, dict[str, Any]]] = [
        ("the oldest one", {"limit": 1}),
        ("as many as fit", {}),
        ("the oldest of an agent", {"agent_id": agent, "limit": 1}),
        ("the oldest of a module", {"module_name": "dns", "limit": 1}),
        ("100 of a module", {"module_name": "dns", "limit": 100}),
        ("a rare module", {"module_name": "rare"}),
        ("one of the agent with the youngest", {"agent_id": LATE, "limit": 1}),
        ("a day ahead, the oldest one", {"timestamp": ahead, "limit": 1}),
        ("a day ahead, an agent", {"timestamp": ahead, "agent_id": agent}),
        ("a day ahead, 100 of a module", {"timestamp": ahead, "module_name": "dns", "limit": 100}),
        ("a day ahead, a rare module", {"timestamp": ahead, "module_name": "rare"}),
    ]
    of_heavy: dict[str, Any] = {"agent_id": HEAVY}
    results: list[tuple[str, dict[str, Any]]] = [
        ("first page of 1,000", {"page_size": 1_000}),
        ("newest 100", {"page_size": 100, "newest_first": True}),
        ("newest of a module", {"page_size": 1, "newest_first": True, "module_name": "dns"}),
        ("a rare module", {"page_size": 100, "module_name": "rare"}),
        ("a minute's", {"page_size": 100, "since": filled_s, "until": filled_s + 60}),
        ("no pages", {}),
    ]
    states: list[tuple[str, dict[str, Any]]] = [
        ("page of 1,000", {"page_size": 1_000}),
        ("a module", {"page_size": 100, "module_name": "dns"}),
        ("failed", {"page_size": 100, "states": ["failed"]}),
        ("no pages", {}),
    ]
    for name, fields in tasks:
        yield Asked(f"ListTasks: {name}", "ListTasks", fields)
    for name, fields in due:
        yield Asked(f"ListDueTasks: {name}", "ListDueTasks", fields)
    for name, fields in results:
        yield Asked(f"ListResults: {name}", "ListResults", {**of_heavy, **fields})
    for name, fields in states:
        yield Asked(f"ListModuleStates: {name}", "ListModuleStates", {**of_heavy, **fields})
    yield Asked("ListAgents: page of 1,000", "ListAgents", {"page_size": 1_000})
    yield Asked("ListAgents: no pages", "ListAgents", {})
    yield Asked("GetEvents: newest 100", "GetEvents", {"limit": 100})
    yield Asked("GetEvents: of an agent", "GetEvents", {"limit": 100, "agent_id": agent})
    yield Asked("GetEvents: a rare type", "GetEvents", {"limit": 100, "types": ["task_dead"]})


def table(costs: list[Cost], alone_p99_ms: float) -> str:
    """Markdown; ``alone_p99_ms`` is what the last columns are compared with."""
    titles = ("entries", "rows looked at", "ms, median", "longest")
    others = ("others' p99, ms", "times that alone", "others' longest")
    lines = [f"| listing | {' | '.join(titles + others)} |", "|---" + "|---:" * 7 + "|"]
    for one in costs:
        entries = f"{one.entries:,}" if not one.answer else one.answer
        lines.append(
            f"| {one.listing} | {entries} | {one.rows:,.0f} | {one.median_ms:,.1f} "
            f"| {one.longest_ms:,.1f} | {one.beside_p99_ms:.1f} "
            f"| {one.beside_p99_ms / alone_p99_ms:.1f} | {one.beside_longest_ms:.1f} |"
        )
    return "\n".join(lines)


def alone(costs: list[Cost]) -> float:
    """The others' p99 while no listing ran: the median of all spells, in ms."""
    return statistics.median(cost.alone_p99_ms for cost in costs)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run(sizes: Sizes, name: str, only: str) -> None:
    about = surroundings()
    port = _free_port()
    with (
        tempfile.TemporaryDirectory(prefix="dbos-listings-") as directory,
        ServerProcess(
            "", "--embedded", DBOS_DATA_DIR=f"{directory}/data", DBOS_METRICS_PORT=str(port)
        ) as server,
    ):
        address = server.wait_ready().address
        began_s, filled_s = time.perf_counter(), int(time.time())
        trio.run(fill, address, sizes)
        _let_some_die(Caller(address))
        print(f"filled in {time.perf_counter() - began_s:.0f} s", file=sys.stderr)
        costs: list[Cost] = []
        for asked in listings(sizes, int(time.time()), filled_s):
            if only in asked.listing:
                costs.append(measure(address, port, sizes.seconds, asked))
                print(table(costs[-1:], alone(costs)).splitlines()[-1], file=sys.stderr)
        resident_mib = server.rss_bytes() >> 20
    found = {
        "about": about,
        "sizes": asdict(sizes),
        "resident_mib": resident_mib,
        "costs": [asdict(cost) for cost in costs],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(
        f"# What listings cost\n\n{about['when']}, commit `{about['commit'][:12]}`; "
        f"{sizes.tasks:,} tasks, {sizes.agents:,} agents, {sizes.results:,} results of one agent; "
        f"load average at the start {about['machine']['load_average'][0]}. Others' p99 alone: "
        f"{alone(costs):.1f} ms, the median of {len(costs)} spells of {sizes.seconds} s from "
        f"{min(cost.alone_p99_ms for cost in costs):.1f} to "
        f"{max(cost.alone_p99_ms for cost in costs):.1f}.\n\n{table(costs, alone(costs))}\n"
    )
    print(table(costs, alone(costs)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--agents", type=int, default=13_000)
    parser.add_argument("--results", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each listing, twice")
    parser.add_argument("--name", default="listings", help="of the result files")
    parser.add_argument("--only", default="", help="listings whose name has this in it")
    parser.add_argument("--bystander", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bystander:
        trio.run(_stand_by, options.bystander, options.seconds)
        return
    sizes = Sizes(options.tasks, options.agents, options.results, options.seconds)
    run(sizes, options.name, options.only)


if __name__ == "__main__":
    main()
