"""What is measured, as data: scenarios, profiles and the ratios that matter.

A scenario runs on an empty store with a fresh server: first its `setup` loads,
then each of `measured`, every one a row of the result. A step that writes has
an id space of its own; a step that reads names the step whose writes it reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

AGENTS: Final = 13_000
"""As many as the largest measurement network has probes."""

PYTHON: Final = ("ours", "grpc-aio", "grpclib")
GO: Final = ("go", "go-separate")
ALL: Final = PYTHON + GO


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of call on connections of its own."""

    kind: str
    """A name in `bench.load.workloads.WORKLOADS`."""
    connections: int = 4
    in_flight: int = 128
    rate: float | None = None
    """Calls a second, open loop; None is a closed loop."""
    stream: bool = False
    counted: bool = True
    """Whether its replies are in the step's figures."""


@dataclass(frozen=True, slots=True)
class Step:
    """Traffic of one or more kinds at once."""

    name: str
    title: str
    traffic: tuple[Traffic, ...]
    reads: str | None = None
    """The step whose results or runs are read."""
    count: int | None = None
    """Calls (or runs, or tasks) of each kind, instead of a time."""
    limit_s: float = 120.0
    """The longest a step with a ``count`` may take."""
    partial: bool = False
    """Whether the step may be cut short by the profile's ``partial_s``."""
    optional: bool = False
    """A set-up that is left out where the server does not implement it."""
    warmup: bool = True
    page_size: int = 100
    agents: int | None = None
    """Of this step, where not the scenario's."""
    mix: str | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One server after the other does the same."""

    name: str
    title: str
    measured: tuple[Step, ...]
    setup: tuple[Step, ...] = ()
    agents: int = AGENTS
    mix: str = "table"
    servers: tuple[str, ...] = ALL
    no_op: bool = False
    """The server needs no store, or another program serves the method."""
    style: str = "load"
    """"load"; "hold": an open loop whose rates are lowered until the server holds them;
    "recovery": the server is killed and started again after the set-up."""
    notes: str = ""


def _touch(agents: int = AGENTS) -> Step:
    """A result of every agent, so that what is measured does not begin with first meetings.

    A server that is too slow to meet them all in the profile's time is measured all the same.
    """
    return Step(
        "touch",
        "first result of every agent",
        (Traffic("store_result"),),
        count=agents,
        partial=True,
        warmup=False,
        mix="small",
    )


def _store(in_flight: int, connections: int, mix: str = "table") -> Scenario:
    suffix = "" if mix == "table" else f"-{mix}"
    sizes = {"table": "0.4 to 8 KB", "network": "0.8 KB on average", "small": "0.2 KB"}[mix]
    return Scenario(
        f"store-{in_flight}{suffix}",
        f"StoreResult, {in_flight:,} in flight, {sizes}",
        setup=(_touch(),),
        measured=(
            Step(
                "store",
                f"StoreResult, {in_flight:,} in flight, {sizes}",
                (Traffic("store_result", connections=connections, in_flight=in_flight),),
            ),
        ),
        mix=mix,
    )


def _grown(agents: int) -> Scenario:
    return Scenario(
        f"agents-{agents}",
        f"StoreResult over {agents:,} agents",
        setup=(_touch(agents),),
        measured=(
            Step(
                "store",
                f"StoreResult, 128 in flight, {agents:,} agents",
                (Traffic("store_result"),),
            ),
        ),
        agents=agents,
        mix="network",
        servers=("ours", "go"),
        notes="memory and CPU per call beside the rate",
    )


def _recovery(results: int) -> Scenario:
    return Scenario(
        f"recovery-{results}",
        f"recovery with {results:,} results stored",
        setup=(
            Step(
                "fill",
                "results",
                (Traffic("store_result"),),
                count=results,
                limit_s=120.0,
                warmup=False,
                mix="small",
            ),
            Step(
                "runs",
                "runs",
                (Traffic("runs"),),
                count=max(1, results // 10),
                limit_s=120.0,
                warmup=False,
            ),
            Step(
                "tasks",
                "pending tasks",
                (Traffic("schedule_task"),),
                count=results,
                limit_s=120.0,
                optional=True,
                warmup=False,
            ),
        ),
        measured=(
            Step("store", "StoreResult after recovery", (Traffic("store_result"),), warmup=False),
        ),
        servers=("ours", "go"),
        style="recovery",
    )


ATLAS_RESULTS_PER_S: Final = 15_000.0
ATLAS_HEARTBEATS_PER_S: Final = AGENTS / 10

SCENARIOS: Final[tuple[Scenario, ...]] = (
    Scenario(
        "no-op",
        "a call that does nothing",
        measured=(
            Step("small", "no-op, 70-byte request, 128 in flight", (Traffic("no_op"),)),
            Step(
                "result", "no-op, StoreResult's request, 128 in flight", (Traffic("no_op_result"),)
            ),
            Step(
                "single",
                "no-op, one in flight",
                (Traffic("no_op", connections=1, in_flight=1),),
            ),
        ),
        no_op=True,
        servers=("ours", "grpc-aio", "grpclib", "go"),
    ),
    _store(1, 1),
    _store(10, 2),
    _store(128, 4),
    _store(1_000, 10),
    Scenario(
        "open",
        "StoreResult at fixed rates",
        setup=(_touch(),),
        measured=tuple(
            Step(
                f"open-{rate}",
                f"StoreResult, {rate:,}/s at fixed times, 8 connections",
                (Traffic("store_result", 8, 4_000, rate=float(rate)),),
            )
            for rate in (15_000, 25_000, 35_000)
        ),
        mix="network",
        servers=("ours", "go"),
        notes="the rate column says whether the rate was held",
    ),
    _store(128, 4, "network"),
    Scenario(
        "stream",
        "StoreResults, one stream a connection",
        setup=(_touch(),),
        measured=(
            Step(
                "stream",
                "StoreResults stream, 4 streams, 1,000 messages in flight",
                (Traffic("store_result", connections=4, in_flight=1_000, stream=True),),
            ),
            Step("unary", "StoreResult in the same run, 128 in flight", (Traffic("store_result"),)),
        ),
        mix="network",
        servers=("ours",),
    ),
    Scenario(
        "heartbeats",
        "RegisterAgent",
        measured=(
            Step(
                "heartbeat",
                "RegisterAgent, 3.2 KB of configuration, 128 in flight",
                (Traffic("heartbeat"),),
            ),
        ),
    ),
    Scenario(
        "runs",
        "state transitions",
        setup=(_touch(),),
        measured=(
            Step(
                "runs",
                "SetModuleState, whole runs in order, 128 in flight",
                (Traffic("runs"),),
            ),
        ),
        servers=("ours", "grpc-aio", "grpclib", "go"),
    ),
    Scenario(
        "reads",
        "reads of resident agents",
        setup=(
            Step("agents", "agents", (Traffic("heartbeat"),), count=AGENTS, warmup=False),
            Step("runs", "runs", (Traffic("runs"),), count=AGENTS, warmup=False),
            Step("results", "results", (Traffic("store_result"),), count=2 * AGENTS, warmup=False),
            Step(
                "pages",
                "results of few agents",
                (Traffic("store_result"),),
                count=2_000,
                agents=20,
                warmup=False,
            ),
        ),
        measured=(
            Step(
                "get-module-state",
                "GetModuleState, 128 in flight",
                (Traffic("get_module_state"),),
                reads="runs",
            ),
            Step("get-agent", "GetAgent, 128 in flight", (Traffic("get_agent"),), reads="agents"),
            Step(
                "get-result",
                "GetResult, 128 in flight",
                (Traffic("get_result"),),
                reads="results",
            ),
            Step(
                "list-results",
                "ListResults, pages of 100, 16 in flight",
                (Traffic("list_results", connections=4, in_flight=16),),
                reads="pages",
                agents=20,
            ),
        ),
        servers=("ours", "grpc-aio", "go"),
    ),
    Scenario(
        "tasks",
        "ScheduleTask and drain",
        measured=(
            Step(
                "schedule",
                "ScheduleTask, 20,000 tasks, 128 in flight",
                (Traffic("schedule_task"),),
                count=20_000,
                warmup=False,
            ),
            Step(
                "drain",
                "LeaseTasks by the hundred and AckTask, 20,000 tasks",
                (
                    Traffic("lease_tasks", connections=1, in_flight=4, counted=False),
                    Traffic("ack_task"),
                ),
                count=20_000,
                reads="schedule",
                warmup=False,
            ),
        ),
        servers=("ours",),
    ),
    Scenario(
        "atlas-minute",
        "the Atlas minute",
        setup=(
            Step("agents", "agents", (Traffic("heartbeat"),), count=AGENTS, warmup=False),
            Step("known", "runs", (Traffic("runs"),), count=AGENTS, warmup=False),
        ),
        measured=(
            Step(
                "minute",
                "open loop: results, heartbeats, runs, reads",
                (
                    Traffic("store_result", 8, 4_000, rate=ATLAS_RESULTS_PER_S),
                    Traffic("heartbeat", 2, 2_000, rate=ATLAS_HEARTBEATS_PER_S),
                    Traffic("runs", 2, 2_000, rate=400.0),
                    Traffic("get_module_state", 1, 1_000, rate=200.0),
                    Traffic("get_agent", 1, 1_000, rate=200.0),
                ),
                reads="known",
            ),
        ),
        mix="network",
        servers=("ours", "go"),
        style="hold",
        notes="rates in proportion are tried from 100% down until nothing piles up",
    ),
    *(_grown(agents) for agents in (1, 100, 10_000, AGENTS, 100_000)),
    *(_recovery(results) for results in (1_000, 100_000)),
)

HOLD_SHARES: Final = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05)
"""Shares of a "hold" scenario's rates, tried in turn."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How long everything takes."""

    name: str
    rounds: int
    warmup_s: float
    duration_s: float
    hold_probe_s: float
    hold_s: float
    partial_s: float
    """The longest a set-up that may be cut short takes."""
    scenarios: tuple[str, ...] = field(default=())
    """Only these, unless some are named; empty is all."""
    servers: tuple[str, ...] = ()
    """Only these, unless some are named; empty is all."""


PROFILES: Final = {
    "full": Profile("full", 5, 1.0, 4.0, 10.0, 60.0, 15.0),
    "quick": Profile(
        "quick",
        2,
        0.5,
        1.2,
        3.0,
        5.0,
        1.5,
        scenarios=("no-op", "store-1", "store-128"),
        servers=("ours", "grpc-aio", "go", "go-separate"),
    ),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A ratio of two medians of one run, and the bound it is held to."""

    text: str
    numerator: tuple[str, str, str]
    """Scenario, step, server."""
    denominator: tuple[str, str, str]
    bound: float
    metric: str = "rate"
    at_least: bool = True


CLAIMS: Final = (
    Claim(
        "StoreResult, 128 in flight: at least 20 times grpc.aio",
        ("store-128", "store", "ours"),
        ("store-128", "store", "grpc-aio"),
        20.0,
    ),
    Claim(
        "StoreResult, 128 in flight: at least 3 times Go with separate round trips",
        ("store-128", "store", "ours"),
        ("store-128", "store", "go-separate"),
        3.0,
    ),
    Claim(
        "StoreResult, 128 in flight: at least 2 times Go with one round trip",
        ("store-128", "store", "ours"),
        ("store-128", "store", "go"),
        2.0,
    ),
    Claim(
        "one in flight: p50 no worse than Go's",
        ("store-1", "store", "ours"),
        ("store-1", "store", "go"),
        1.0,
        metric="p50_us",
        at_least=False,
    ),
    Claim(
        "one in flight: p99 below 2 times p50",
        ("store-1", "store", "ours"),
        ("store-1", "store", "ours"),
        2.0,
        metric="p99_us/p50_us",
        at_least=False,
    ),
    Claim(
        "StoreResult at least 60% of the no-op with the same request",
        ("store-128", "store", "ours"),
        ("no-op", "result", "ours"),
        0.6,
    ),
    Claim(
        "no-op at least 1.2 times grpc-go's",
        ("no-op", "small", "ours"),
        ("no-op", "small", "go"),
        1.2,
    ),
    Claim(
        "StoreResults stream at least 2 times unary",
        ("stream", "stream", "ours"),
        ("stream", "unary", "ours"),
        2.0,
    ),
    Claim(
        "GetModuleState at least 80% of the no-op",
        ("reads", "get-module-state", "ours"),
        ("no-op", "small", "ours"),
        0.8,
    ),
    Claim(
        "GetAgent at least 80% of the no-op",
        ("reads", "get-agent", "ours"),
        ("no-op", "small", "ours"),
        0.8,
    ),
    Claim(
        "13,000 agents at least 85% of 100 agents",
        (f"agents-{AGENTS}", "store", "ours"),
        ("agents-100", "store", "ours"),
        0.85,
    ),
)
