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
BEAT: Final = "beat"
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
    if kind == BEAT:
        return _beaten(state, argument, result)
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


class Beat(NamedTuple):
    """A heartbeat without the rest of the record."""

    last_seen: int
    heartbeats: int


def _beaten(state: AgentState | None, beat: Beat, result: Any) -> State:
    if result not in (None, ABSENT if state is None else OK):
        raise Impossible
    if state is None:
        return None
    return state._replace(
        last_seen=max(state.last_seen, beat.last_seen),
        heartbeats=max(state.heartbeats, beat.heartbeats),
        alive=state.alive or beat.last_seen > state.last_seen,
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
SETTLED: Final = "settled"
"""Stored or known before: a stream says which of both in numbers only."""


def result_model(state: str | None, kind: str, argument: Any, result: Any) -> State:
    """The first write wins; a repeat may be told that it is one, and another content must be."""
    if kind == READ:
        return _check_read(state, result)
    if kind == DELETE:
        return None
    if state is None:
        if result not in (None, STORED, SETTLED):
            raise Impossible
        return argument
    if result == STORED and state != argument:
        raise Impossible
    return state


# -------------------------------------------------------------------- tasks


class TaskState(NamedTuple):
    """Of a task's record, what a sequence of deliveries decides."""

    status: str
    deliveries: int
    token: str
    """Of the last delivery; UNKNOWN_TOKEN if its answer was lost, empty if there was none."""
    settled: str
    """How that ended: "", ack, unfenced, nack, expired or cancelled."""
    payload: bytes


class TaskView(NamedTuple):
    """Of a task, what a read shows."""

    status: str
    retry_count: int
    payload: bytes


UNKNOWN_TOKEN: Final = "?"
REFUSED: Final = "refused"
ATTEMPTS: Final = 3
"""Deliveries that every task of the simulation is allowed."""

GONE: Final[frozenset[TaskState | None]] = frozenset({None})

_REPEATED: Final = {"ack": ("ack", "unfenced"), "nack": ("nack",)}


class Scheduled(NamedTuple):
    """A task as it was sent to be scheduled."""

    payload: bytes
    revive: bool


def task_model(state: State, kind: str, argument: Any, result: Any) -> State:
    """Deliveries end in one way each; leases may expire at any moment, unseen.

    The state is the set of what the task may be: that a lease has expired shows only later.
    """
    before = _with_expired(GONE if state is None else state)
    after = frozenset(
        new
        for was in before
        for new, said in _task_steps(was, kind, argument, result)
        if result is None or said == result
    )
    if not after:
        raise Impossible
    return after


def _with_expired(states: frozenset[TaskState | None]) -> frozenset[TaskState | None]:
    expired = {_given_up(task, "expired") for task in states if task and task.status == "inflight"}
    return states | expired


def _given_up(task: TaskState, how: str) -> TaskState:
    status = "dead" if task.deliveries >= ATTEMPTS else "pending"
    return task._replace(status=status, settled=how)


def _task_steps(
    task: TaskState | None, kind: str, argument: Any, result: Any
) -> list[tuple[TaskState | None, Any]]:
    """What may become of a task, each with what is answered."""
    match kind:
        case "read":
            if task is None:
                return [(None, ABSENT)]
            view = TaskView(task.status, max(task.deliveries - 1, 0), task.payload)
            return [(task, view)]
        case "delete":
            return [(task if task and task.status == "completed" else None, result)]
        case "schedule":
            return _scheduled(task, argument)
        case "lease":
            return _leased(task, result, has_key=argument)
        case "ack" | "nack":
            return _settled(task, kind, argument)
        case "cancel":
            return _cancelled(task)
        case "requeue":
            return _requeued(task)
    raise AssertionError(kind)


def _scheduled(task: TaskState | None, sent: Scheduled) -> list[tuple[TaskState | None, Any]]:
    payload = sent.payload
    if task is None or (task.status == "dead" and sent.revive):
        return [(TaskState("pending", 0, "", "", payload), OK)]
    if task.payload == payload:
        # The same again: nothing changes, unless a wall clock set back makes it another one.
        same: list[tuple[TaskState | None, Any]] = [(task, OK)]
        if task.status == "pending":
            same.append((task._replace(token="", settled=""), OK))
        return same
    if task.status == "pending":
        return [(task._replace(token="", settled="", payload=payload), OK)]
    return [(task, REFUSED)]


def _leased(
    task: TaskState | None, result: Any, *, has_key: bool
) -> list[tuple[TaskState | None, Any]]:
    unchosen: list[tuple[TaskState | None, Any]] = [(task, None)]
    token = UNKNOWN_TOKEN if result is None else result[0]
    if task and task.status == "inflight" and has_key and task.token in (token, UNKNOWN_TOKEN):
        # The same request again, which tells the token that its first answer told.
        told = task._replace(token=token)
        return [*unchosen, (told, (token, told.deliveries - 1, told.payload))]
    if task is None or task.status != "pending":
        return unchosen
    taken = task._replace(
        status="inflight", deliveries=task.deliveries + 1, token=token, settled=""
    )
    return [*unchosen, (taken, (token, taken.deliveries - 1, task.payload))]


def _settled(task: TaskState | None, kind: str, token: str) -> list[tuple[TaskState | None, Any]]:
    refused: list[tuple[TaskState | None, Any]] = [(task, REFUSED)]
    if task is None:
        return refused
    if not token:
        if kind == "ack" and task.status == "completed" and task.settled == "unfenced":
            return [(task, OK)]
        if kind == "nack" and task.status == "dead" and task.settled == "nack":
            return [(task, OK)]
        if task.status not in ("pending", "inflight"):
            return refused
        # Until it is due again a task that was given back is given back already.
        repeated: list[tuple[TaskState | None, Any]] = []
        if kind == task.settled == "nack" and task.status == "pending":
            repeated = [(task, OK)]
        if task.status == "pending":
            task = task._replace(deliveries=task.deliveries + 1)
        return [*repeated, (_ended(task, kind, "unfenced" if kind == "ack" else "nack"), OK)]
    if task.token not in (token, UNKNOWN_TOKEN):
        return refused
    matched: list[tuple[TaskState | None, Any]]
    if task.status == "inflight":
        matched = [(_ended(task, kind, kind), OK)]
    elif task.settled in _REPEATED[kind]:
        matched = [(task, OK)]
    else:
        matched = refused
    return matched if task.token == token else matched + refused


def _cancelled(task: TaskState | None) -> list[tuple[TaskState | None, Any]]:
    if task is None or task.status in ("completed", "dead"):
        return [(task, REFUSED)]
    settled = "cancelled" if task.status == "inflight" else task.settled
    return [(task._replace(status="cancelled", settled=settled), OK)]


def _requeued(task: TaskState | None) -> list[tuple[TaskState | None, Any]]:
    if task is None or task.status == "completed":
        return [(task, REFUSED)]
    if task.status in ("dead", "cancelled"):
        task = TaskState("pending", 0, "", "", task.payload)
    return [(task, OK)]


def _ended(task: TaskState, kind: str, how: str) -> TaskState:
    if kind == "ack":
        return task._replace(status="completed", settled=how)
    return _given_up(task, how)


def only_looks(kind: str, result: Any) -> bool:
    """Whether an operation that was answered so changes no state whatsoever."""
    return kind == READ or (isinstance(result, str) and result not in (OK, STORED, SETTLED))


MODELS: Final[dict[str, Model]] = {
    "agent": agent_model,
    "run": run_model,
    "module": module_model,
    "result": result_model,
    "task": task_model,
}
