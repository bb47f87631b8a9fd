"""What each register of the service may do: small sequential models, written from the contract.

They share nothing with the product but the contract: an agent's record, a run,
a module's own state and a result are registers, each with a few operations. A
model is a function from state and operation to the next state; it raises
`Impossible` when the answer cannot follow from the state. No answer (None) is
possible from any state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

State = Any
Model = Callable[[State, str, Any, Any], State]


class Impossible(Exception):  # noqa: N818 - a verdict, not a failure
    """No such answer in this state."""


DELETE: Final = "delete"
READ: Final = "read"
OK: Final = "ok"
ABSENT: Final = "absent"
"""What a read answers about nothing; None would be no answer at all."""


def _check_read(state: State, result: Any) -> State:
    if result is not None and result != (ABSENT if state is None else state):
        raise Impossible
    return state


# ------------------------------------------------------------------- agents


class AgentState(NamedTuple):
    """Of an agent's record, what a sequence of reports decides."""

    first_seen: int
    last_seen: int
    heartbeats: int
    alive: bool
    tag: str
    """Which report's hostname and configuration it has."""


def agent_model(state: AgentState | None, kind: str, argument: Any, result: Any) -> State:
    """Reads, deletions, and reports: earliest, latest, largest, and the last one's rest."""
    if kind == READ:
        return _check_read(state, result)
    if kind == DELETE:
        return None
    reported: AgentState = argument
    if result not in (None, OK):
        raise Impossible
    if state is None:
        return reported
    return AgentState(
        min(state.first_seen, reported.first_seen),
        max(state.last_seen, reported.last_seen),
        max(state.heartbeats, reported.heartbeats),
        reported.alive,
        reported.tag,
    )


# --------------------------------------------------------------------- runs


class RunState(NamedTuple):
    """Of a run's record, what a sequence of reports decides."""

    state: str
    version: int
    tag: str
    """Which report's details it has."""


class Report(NamedTuple):
    """A report as it was sent."""

    state: str
    version: int
    """0: unconditional."""
    tag: str


RANK: Final = {"created": 0, "started": 1, "running": 2, "completed": 3, "error": 3, "failed": 3}
TERMINAL: Final = 3


def run_model(state: RunState | None, kind: str, argument: Any, result: Any) -> State:
    """Reads, deletions, and reports whose rank must rise."""
    if kind == READ:
        return _check_read(state, result)
    if kind == DELETE:
        return None
    new, outcome = _reported(state, argument)
    if result is not None and result != outcome:
        raise Impossible
    return new


def _reported(state: RunState | None, report: Report) -> tuple[RunState | None, str]:
    """The state after a report, and what its sender is told."""
    version = 0 if state is None else state.version
    if state is not None:
        was, wanted = RANK[state.state], RANK[report.state]
        if was == TERMINAL and report.state == state.state:
            return state, OK
        if was == TERMINAL or wanted < was:
            return state, f"invalid transition {state.state} -> {report.state}"
    if report.version not in (0, version + 1):
        content = None if state is None else (state.state, state.tag)
        if report.version == version and content == (report.state, report.tag):
            return state, OK
        return state, f"version conflict: expected {version + 1}, got {report.version}"
    return RunState(report.state, version + 1, report.tag), OK


def module_model(state: RunState | None, kind: str, argument: Any, result: Any) -> State:
    """Reads, deletions, and reports, which are always taken."""
    if kind == READ:
        return _check_read(state, result)
    if kind == DELETE:
        return None
    report: Report = argument
    if result not in (None, OK):
        raise Impossible
    version = 0 if state is None else state.version
    return RunState(report.state, version + 1, report.tag)


# ------------------------------------------------------------------ results


STORED: Final = "stored"
DUPLICATE: Final = "duplicate"


def result_model(state: str | None, kind: str, argument: Any, result: Any) -> State:
    """The first write wins; a repeat may be told that it is one, and another content must be."""
    if kind == READ:
        return _check_read(state, result)
    if kind == DELETE:
        return None
    if state is None:
        if result not in (None, STORED):
            raise Impossible
        return argument
    if result == STORED and state != argument:
        raise Impossible
    return state


def only_looks(kind: str, result: Any) -> bool:
    """Whether an operation that was answered so changes no state whatsoever."""
    return kind == READ or (result is not None and result not in (OK, STORED))


MODELS: Final[dict[str, Model]] = {
    "agent": agent_model,
    "run": run_model,
    "module": module_model,
    "result": result_model,
}
