"""One run, from its seed to its report.

A run is a function of its seed, and so is its `Report.digest`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from dbos_actors.settings import Settings
from tests.simulation.determinism import collected_logs, run_seeded
from tests.simulation.history import Ending
from tests.simulation.plan import Plan, plan_of
from tests.simulation.servers import simulated_surroundings
from tests.simulation.verdict import digest, judge
from tests.simulation.world import World


@dataclass(slots=True)
class Report:
    """What came of a run."""

    plan: Plan
    violations: list[str] = field(default_factory=list)
    digest: str = ""
    operations: int = 0
    unknown: int = 0
    """Operations without an answer."""
    commits: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    simulated_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    """Gaps in what is promised that are known, met by this run and not counted as violations."""


def simulate(seed: int, plan: Plan | None = None) -> Report:
    """Run one seed."""
    plan = plan or plan_of(seed)
    report = Report(plan)
    settings = Settings(server_id="server").model_copy(update=plan.settings)

    async def main() -> World:
        async with trio.open_nursery() as nursery:
            world = World(plan, settings, nursery)
            surroundings = simulated_surroundings(
                store=plan.store,
                constants=plan.constants,
                is_dead=world.is_dead,
                crashes=world.crashes,
            )
            with surroundings:
                await world.run()
                report.simulated_s = trio.current_time()
                nursery.cancel_scope.cancel()
        return world

    with collected_logs() as logs:
        world = run_seeded(seed, main)
    report.violations = world.violations + judge(world, logs)
    report.known = world.known
    if world.is_over_a_gap:
        report.known.append("what was sent again over a gap is not whole")
    report.digest = digest(world)
    report.operations = len(world.history.operations)
    report.unknown = sum(o.ending is Ending.UNKNOWN for o in world.history.operations)
    report.commits = len(world.redis.primary.log)
    report.faults = world.misfortune.counts
    report.notes = world.notes
    return report
