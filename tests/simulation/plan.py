"""What one seed is about: which faults, which limits, how much work.

Drawn once from the seed, so that it can be read before the run. Every seed has
some faults only ("swarm testing"): with all of them at once each would hide what
another one finds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from random import Random
from typing import Any, Final

from tests.simulation.determinism import stream_of_chance
from tests.simulation.network import Conditions

OVER_GRPC: Final = 0.3
"""The share of seeds whose calls are bytes: they take half as long again."""

DAMAGED: Final = 0.15
"""The share of seeds in which somebody else writes to a key."""


class Fault(Enum):
    """What can happen."""

    CUT_REDIS = auto()
    HALF_CLOSE_REDIS = auto()
    CUT_CLIENTS = auto()
    REDIS_CRASH = auto()
    REDIS_LOSES_SECONDS = auto()
    FAIL_OVER = auto()
    STALL = auto()
    OOM = auto()
    READONLY = auto()
    MISCONF = auto()
    KILL_SERVER = auto()
    CANCEL_SERVER = auto()
    DRAIN_SERVER = auto()
    ZOMBIE = auto()
    TAKE_OVER = auto()
    WALL_CLOCK_JUMP = auto()
    WRONG_TYPE = auto()


FREQUENT: Final = frozenset(
    {Fault.CUT_REDIS, Fault.REDIS_LOSES_SECONDS, Fault.KILL_SERVER, Fault.ZOMBIE}
)
"""Drawn three times as often as the others."""


DEATHS: Final = frozenset(
    {
        Fault.KILL_SERVER,
        Fault.CANCEL_SERVER,
        Fault.DRAIN_SERVER,
        Fault.ZOMBIE,
        Fault.TAKE_OVER,
    }
)
"""After one of these the server may not be there to send anything again."""

STEPPED_RETENTION_S: Final = 600.0
"""How long tasks are kept where the clock makes steps of an hour, and no run takes so long. A
server that starts while the clock is wrong cannot know it, so none starts there."""

WORKERS_FAULTS: Final = (
    Fault.DRAIN_SERVER,
    Fault.CUT_CLIENTS,
    Fault.KILL_SERVER,
    Fault.CANCEL_SERVER,
)

WITH_WORKERS: Final = 0.12
"""The share of seeds in which tasks are pushed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run."""

    seed: int
    faults: tuple[Fault, ...]
    fault_gap_s: float
    """Mean time between two."""
    duration_s: float
    both_at_once: bool
    """Whether a server may die while Redis has lost its last second: the one case in which
    acknowledged writes may be lost."""
    agents: int
    runs: int
    results: int
    tasks: int
    clients: int
    operations: int
    """Of each client."""
    think_s: float
    deletes: bool
    redis_conditions: Conditions
    client_conditions: Conditions
    crash_chance: float
    """That a message makes its actor raise, while there are faults."""
    over_grpc: bool
    """Whether calls travel as bytes; otherwise they are handed over as objects."""
    bulk_streams: int
    """StoreResults streams that one client of its own opens, one after the other."""
    subscriptions: int
    """SubscribeTasks streams that one worker of its own opens, one after the other. With some, the
    faults are `WORKERS_FAULTS`: while Redis is away nothing can be taken back."""
    watches: int
    """Watch streams that each of two clients of their own opens, one after the other."""
    one_host: bool
    """Whether a server finds out that another one is dead without waiting for its lease."""
    settings: dict[str, Any] = field(default_factory=dict)
    store: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)


def plan_of(seed: int) -> Plan:
    """The plan of a seed."""
    random = stream_of_chance(seed, "plan")
    pick = random.choice
    faults: list[Fault] = [fault for fault in Fault if fault is not Fault.WRONG_TYPE]
    chosen = random.sample(faults, random.randint(1, 5))
    if random.random() < 0.05:
        chosen = []
    elif stream_of_chance(seed, "damage").random() < DAMAGED:
        chosen.append(Fault.WRONG_TYPE)
    over_grpc = stream_of_chance(seed, "transport").random() < OVER_GRPC
    plan = Plan(
        seed=seed,
        over_grpc=over_grpc,
        crash_chance=stream_of_chance(seed, "crashes").choice([0.0, 0.0, 0.0, 0.03]),
        faults=tuple(chosen),
        fault_gap_s=pick([0.3, 1.0, 2.0]),
        duration_s=pick([4.0, 8.0, 15.0]),
        both_at_once=random.random() < 0.15,
        agents=random.randint(1, 3),
        runs=random.randint(1, 4),
        results=random.randint(1, 3),
        tasks=pick([0, 1, 3]),
        clients=random.randint(2, 5),
        operations=pick([10, 20, 30]),
        think_s=pick([0.0, 0.02, 0.2, 0.5]),
        # A deletion that a damaged key stops half-way goes on later, at no moment of its own.
        deletes=random.random() < 0.4 and Fault.WRONG_TYPE not in chosen,
        redis_conditions=Conditions(
            latency_s=pick([0.0, 0.0, 0.002, 0.05]), split_chance=pick([0.0, 0.3])
        ),
        client_conditions=Conditions(
            latency_s=pick([0.0, 0.01, 0.1]), split_chance=0.3 if over_grpc else 0.0
        ),
        subscriptions=0,
        bulk_streams=stream_of_chance(seed, "streams").choice([0, 0, 4, 8]),
        watches=stream_of_chance(seed, "watches").choice([0, 4, 8]),
        one_host=random.random() < 0.7,
        **_limits(random),
    )
    watching = stream_of_chance(seed, "watching")
    plan.constants["noted_events"] = watching.choice([1, 3, 256])
    plan.constants["ring_bytes"] = watching.choice([1, 3_000, 16 << 20])
    plan.constants["gathers_calls"] = stream_of_chance(seed, "gathering").choice([0, 1])
    if Fault.WALL_CLOCK_JUMP in chosen and not DEATHS.intersection(chosen):
        plan.settings["tasks_max_age_s"] = STEPPED_RETENTION_S
    workers = stream_of_chance(seed, "workers")
    if workers.random() < WITH_WORKERS:
        others = workers.sample(WORKERS_FAULTS[1:], workers.randint(0, 2))
        return replace(
            plan,
            subscriptions=workers.choice([3, 6]),
            faults=(Fault.DRAIN_SERVER, *others),
            duration_s=15.0,
            crash_chance=0.0,
        )
    if Fault.ZOMBIE in chosen and stream_of_chance(seed, "zombie").random() < 0.6:
        # Long enough for its lease to run out while there is still work.
        return replace(plan, duration_s=20.0, operations=40, think_s=0.5)
    return plan


def _limits(random: Random) -> dict[str, dict[str, Any]]:
    """Limits of the server and of its store: often so small that the run meets them."""
    pick = random.choice
    return {
        "settings": {
            "max_resident_agents": pick([1, 2, 100]),
            "idle_passivation_s": pick([0.3, 2.0, 300.0]),
            "run_cache_bytes": pick([0, 1_000, 1_000_000]),
            "event_results": random.random() < 0.3,
        },
        "store": {
            "batch_submissions": pick([1, 3, 2_000]),
            "read_commands": pick([4, 5_000]),
            "replay_bytes": pick([100_000, 256 << 20]),
            "wait_timeout_s": pick([0.5, 5.0]),
            "reply_timeout_s": pick([2.0, 10.0]),
        },
        "constants": {
            "deletion_step": pick([1, 2, 1_000]),
            "runs_loaded": pick([1, 1_000]),
            "listing_step": pick([1, 2, 256]),
            "journal_entries": pick([5, 20, 100_000]),
        },
    }
