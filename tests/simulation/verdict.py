"""The verdict on a run: what its history, its data and its log say.

The functions read a `World` whose run is over, and change nothing in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping
from typing import Any

from tests.simulation.clients import Universe
from tests.simulation.consistency import inconsistencies
from tests.simulation.deliveries import early_deliveries, missing_deliveries, other_deliveries
from tests.simulation.evidence import violations
from tests.simulation.listing_order import disordered_listings
from tests.simulation.plan import Fault, Plan
from tests.simulation.servers import SimulatedCrashError
from tests.simulation.world import World
from tests.support.bug_events import BUG_EVENTS

LogLine = MutableMapping[str, Any]


def judge(world: World, logs: list[LogLine]) -> list[str]:
    """What is wrong with the run, each as a sentence.

    The data and the history are left out if commits were sent again over a gap: records may then
    lack what they rest on.
    """
    found = [] if world.is_over_a_gap else _judge_evidence(world)
    found += [
        f"logged: {line}"
        for line in logs
        if line.get("event") in BUG_EVENTS and not _is_simulated(line, world.plan)
    ]
    found += [
        f"internal error: {operation}"
        for operation in world.history.operations
        if str(operation.answer).startswith("INTERNAL") and not world.plan.crash_chance
    ]
    return found


def _judge_evidence(world: World) -> list[str]:
    plan, history = world.plan, world.history
    universe = Universe(plan)
    universe.add_streamed(history)
    database = world.redis.primary.database
    found = []
    if unfinished := database.values.get(b"dbos:{p0}:agents:deleting"):
        found.append(f"deletions are unfinished in good health: {unfinished}")
    # Unless the network may deliver a deletion after its client has given it up.
    deletions_end = not plan.over_grpc and not world.rollbacks
    found += violations(
        history,
        universe,
        world.rollbacks,
        # What was not written in full is in no listing, though its record can be read.
        absences=Fault.WRONG_TYPE not in plan.faults,
        deletions_end=deletions_end,
    )
    found += early_deliveries(history)
    if not world.rollbacks:
        found += other_deliveries(history)
        found += missing_deliveries(history)
        found += disordered_listings(history)
        found += world.check_watches()
    run_ids = [request_id for _, request_id, _ in universe.runs]
    return found + inconsistencies(database, universe.agents, run_ids)


def _is_simulated(line: LogLine, plan: Plan) -> bool:
    """Whether a log line is about a crash of ours, or what follows from several."""
    if line["event"] == "actor_quarantined":
        return plan.crash_chance > 0.0
    if line["event"] in {"key_damaged", "read_failed"}:
        return Fault.WRONG_TYPE in plan.faults
    return isinstance(line.get("exc_info"), SimulatedCrashError)


def digest(world: World) -> str:
    """A fingerprint of everything that happened."""
    hashed = hashlib.sha256()
    for operation in world.history.operations:
        hashed.update(str(operation).encode())
    for note in world.notes:
        hashed.update(note.encode())
    for entry in world.redis.primary.log:
        for command in entry.commands:
            hashed.update(b"\0".join(command))
    return hashed.hexdigest()
