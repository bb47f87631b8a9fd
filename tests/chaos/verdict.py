"""The verdict on a scene: what clients saw, what Redis holds, and what the servers logged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bench.recorded_writes import ACKNOWLEDGED, Load, Write
from tests.simulation.clients import Universe
from tests.simulation.deliveries import early_deliveries
from tests.simulation.evidence import violations
from tests.simulation.history import History
from tests.simulation.linearizability import Rollback
from tests.simulation.plan import Plan
from tests.support.bug_events import BUG_EVENTS
from tests.support.keyspace import Keyspace
from tests.support.lost_writes import lost

LOST_S_MAX: Final = 3.0
"""What ``everysec`` may lose. A sync begins up to two seconds after the one before it began, since
Redis's clock for it has whole seconds; what it writes counts once it is done, and the disk here has
other work."""

_KNOWN_OUTCOMES: Final = {
    ACKNOWLEDGED,
    "unknown",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}


@dataclass(slots=True)
class Verdict:
    """What came of a scene."""

    acknowledged: int = 0
    unanswered: int = 0
    judged: int = 0
    """Calls of the careful clients, reads included."""
    lost: int = 0
    """Acknowledged writes that are gone, within what the level of durability documents."""
    lost_age_s: float = 0.0
    """The oldest of them had been acknowledged so long before the power went."""
    violations: list[str] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    """Of each fault: the longest time without an acknowledged write."""


@dataclass(slots=True)
class Blackout:
    """All power went, and came back."""

    at_s: float
    until_s: float = 0.0
    until: int = 0
    """The history's moment."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is looked at, once nothing can happen any more."""

    load: Load
    history: History
    """Of the careful clients."""
    stored: Keyspace
    blackouts: list[Blackout]
    """Those that may have lost acknowledged writes."""
    logs: list[str]
    """Of every server there was."""


def judge(evidence: Evidence, plan: Plan, *, found: list[str], pauses_s: list[float]) -> Verdict:
    """Judge a scene that is over. ``found`` are the violations that the scene itself has seen."""
    load, history, stored = evidence.load, evidence.history, evidence.stored
    outcomes = load.outcomes()
    verdict = Verdict(
        acknowledged=outcomes[ACKNOWLEDGED],
        unanswered=sum(outcomes.values()) - outcomes[ACKNOWLEDGED],
        judged=len(history.operations),
        violations=[*found, *stored.problems()],
        pauses_s=pauses_s,
    )
    _count_lost(verdict, evidence)
    bad = verdict.violations
    bad += lost(load, stored)
    bad += violations(history, Universe(plan), _rollbacks(evidence))
    bad += early_deliveries(history)
    bad += [
        f"a write ended as {outcome!r}" for outcome in outcomes if outcome not in _KNOWN_OUTCOMES
    ]
    bad += [
        f"a call ended as {operation}"
        for operation in history.operations
        if str(operation.answer).startswith(("INTERNAL", "UNKNOWN"))
    ]
    for log in evidence.logs:
        bad += [f"logged: {line}" for line in log.splitlines() if _is_bug(line)]
    return verdict


def _count_lost(verdict: Verdict, evidence: Evidence) -> None:
    """Count what the level allows to be lost; from then on it counts as not acknowledged."""
    for write in evidence.load.history:
        blackout = next((one for one in evidence.blackouts if one.until_s >= write.settled_s), None)
        if write.outcome != ACKNOWLEDGED or blackout is None:
            continue
        age_s = blackout.at_s - write.settled_s
        if age_s <= LOST_S_MAX:
            write.outcome = "excused"
            if not _is_stored(write, evidence.stored):
                verdict.lost += 1
                verdict.lost_age_s = max(verdict.lost_age_s, age_s)


def _rollbacks(evidence: Evidence) -> list[Rollback]:
    found = []
    for blackout in evidence.blackouts:
        ends = [
            operation.end
            for operation in evidence.history.operations
            if operation.end is not None and operation.end_s <= blackout.at_s - LOST_S_MAX
        ]
        found.append(Rollback(max(ends, default=0), blackout.until))
    return found


def _is_stored(write: Write, stored: Keyspace) -> bool:
    if write.method == "StoreResult":
        return write.subject in stored.results.get(write.agent, {})
    if write.method == "RegisterAgent":
        record = stored.agents.get(write.agent)
        return record is not None and record.total_heartbeats >= write.number
    state = stored.states.get(write.agent, {}).get(f"r{write.subject}")
    return state is not None and int(state.details["n"]) >= write.number


def _is_bug(line: str) -> bool:
    return "Traceback" in line or any(bug in line for bug in BUG_EVENTS)
