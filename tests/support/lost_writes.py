"""Whether a Redis holds what was acknowledged to a load: nothing lost, nothing done twice."""

from __future__ import annotations

from collections import Counter

from bench.recorded_writes import ACKNOWLEDGED, Load, data_of
from tests.support.keyspace import Keyspace


def problems(load: Load, kept: Keyspace) -> list[str]:
    """How what is kept disagrees with itself or with what was acknowledged; empty is well."""
    return kept.problems() + lost(load, kept)


def lost(load: Load, kept: Keyspace) -> list[str]:
    """How what is kept of this load's agents disagrees with what was acknowledged."""
    found: list[str] = []
    agents = {write.agent for write in load.history}
    issued: Counter[tuple[str, str]] = Counter()
    acknowledged: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], int] = {}
    for write in load.history:
        if write.method == "StoreResult":
            stored = kept.results.get(write.agent, {}).get(write.subject)
            if stored is None:
                if write.outcome == ACKNOWLEDGED:
                    found.append(f"result {write.subject} of {write.agent} is lost")
            elif stored.data != data_of(write.number):
                found.append(f"result {write.subject} of {write.agent} has other data")
            continue
        key = (write.agent, write.subject)
        issued[key] += 1
        if write.outcome == ACKNOWLEDGED:
            acknowledged[key] += 1
            last[key] = write.number
    for key, number in last.items():
        agent, run = key
        if not run:
            record = kept.agents.get(agent)
            if record is None or record.total_heartbeats < number:
                found.append(f"a heartbeat of {agent} is lost")
            continue
        state = kept.states.get(agent, {}).get(f"r{run}")
        if state is None or int(state.details["n"]) < number:
            found.append(f"a report about {run} of {agent} is lost: {state}, not {number}")
        elif not acknowledged[key] <= state.version <= issued[key]:
            found.append(
                f"{run} of {agent} has version {state.version}: "
                f"{acknowledged[key]} acknowledged, {issued[key]} issued"
            )
    transitions = kept.transitions()
    for (agent, run, kind), count in transitions.items():
        if count > 1 and agent in agents:
            found.append(f"{kind} of {run} of {agent} happened {count} times")
    began = {(agent, run) for agent, run, _ in transitions}
    for agent, states in kept.states.items():
        if agent not in agents:
            continue
        found += [
            f"{state.request_id} of {agent} began without an event"
            for state in states.values()
            if (agent, state.request_id) not in began
        ]
    return found
