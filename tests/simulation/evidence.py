"""From what clients saw to a verdict: the history, register by register.

A listing is many reads: each entry of it, and each absence, was read at some
moment between the call and its answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.simulation.clients import Universe
from tests.simulation.history import Ending, History, KeyOperation, Operation, Register
from tests.simulation.linearizability import Rollback, Verdict, check
from tests.simulation.models import (
    ABSENT,
    BEAT,
    DELETE,
    DUPLICATE,
    MODELS,
    OK,
    READ,
    REFUSED,
    SETTLED,
    STORED,
    AgentState,
    Beat,
    Report,
    RunState,
    Scheduled,
    TaskView,
    only_looks,
)
from tests.simulation.subscribing import AGENT

Part = tuple[Register, str, Any, Any]
"""A register, and the kind, argument and result of what was done to it."""


class MalformedAnswerError(Exception):
    """An answer that no state could explain."""


def violations(
    history: History,
    universe: Universe,
    rollbacks: list[Rollback],
    *,
    absences: bool = True,
    deletions_end: bool = False,
) -> list[str]:
    """What in the history cannot have happened; empty if everything can.

    What the search gives up on counts as possible. ``absences``: whether what a listing lacks
    counts. ``deletions_end``: whether a deletion without an answer has happened, if it ever
    does, when its agent is heard of again.
    """
    try:
        last = _last_moments(history) if deletions_end else {}
        registers = _by_register(history, universe, last, absences=absences)
    except MalformedAnswerError as error:
        return [str(error)]
    found = []
    for register, operations in registers.items():
        verdict = check(
            operations,
            MODELS[str(register[0])],
            settled_at=history.settled_at,
            rollbacks=rollbacks,
        )
        if verdict is Verdict.VIOLATION:
            lines = "\n".join(f"    {operation.operation}" for operation in operations)
            found.append(f"no order explains the answers about {register}:\n{lines}")
    return found


def _last_moments(history: History) -> dict[int, int]:
    """Until when each deletion without an answer may have happened, by its number.

    The agent's actor finishes what has begun before it takes another message. So a message that
    was sent after the deletion was given up, and was answered, has found it done or not begun.
    """
    last: dict[int, int] = {}
    for deletion in history.operations:
        if deletion.method != "DeleteAgent" or deletion.ending is not Ending.UNKNOWN:
            continue
        agent_id, given_up = deletion.request["agent_id"], deletion.end
        answers = [
            operation.end
            for operation in history.operations
            if operation.end is not None
            and given_up is not None
            and operation.start > given_up
            and operation.ending is Ending.ANSWERED
            and operation.server not in history.overtaken
            and _taken_by(operation) == agent_id
        ]
        if answers:
            last[deletion.number] = min(answers)
    return last


def _taken_by(operation: Operation) -> str:
    """The agent whose actor took a call; empty if none did."""
    request = operation.request
    match operation.method:
        case "RegisterAgent":
            return str(request["agent"]["id"])
        case "SetModuleState":
            return str(request["state"]["agent_id"])
        case "StoreResult":
            return str(request["result"]["agent_id"])
        case "GetAgent" | "GetModuleState" | "Heartbeat":
            return str(request.get("agent_id", ""))
    return ""


def _by_register(
    history: History, universe: Universe, last: Mapping[int, int], *, absences: bool
) -> dict[Register, list[KeyOperation]]:
    registers: dict[Register, list[KeyOperation]] = defaultdict(list)
    deletions = [o for o in history.operations if o.method == "DeleteAgent"]
    for operation in history.operations:
        if operation.ending is Ending.NO_EFFECT:
            continue
        answered = operation.ending is Ending.ANSWERED
        for register, kind, argument, result in _parts(operation, universe, absences=absences):
            unfit = not answered or _may_miss(operation, result, register, deletions)
            if kind == READ and unfit:
                continue
            end, said = (operation.end, result) if answered else (None, result)
            since = history.overtaken.get(operation.server)
            if since is not None and end is not None and end > since:
                # Told from memory, perhaps, and so not to be relied on: a success may be that of
                # an earlier report which says the same.
                if only_looks(kind, said):
                    continue
                end = said = None
            # Tasks are the scheduler's: their agent's actor knows nothing of them.
            until = None if register[0] == "task" else last.get(operation.number)
            registers[register].append(
                KeyOperation(operation, kind, argument, said, operation.start, end, until)
            )
    return registers


def _may_miss(
    operation: Operation, result: Any, register: Register, deletions: list[Operation]
) -> bool:
    """A run is no longer found by its request id alone while its agent is being deleted."""
    if operation.method != "GetModuleState" or result != ABSENT:
        return False
    assert operation.end is not None
    return "agent_id" not in operation.request and any(
        deletion.request["agent_id"] == register[1]
        and deletion.ending is not Ending.NO_EFFECT
        and deletion.start < operation.end
        and (
            deletion.end is None
            or deletion.ending is Ending.UNKNOWN
            or deletion.end > operation.start
        )
        for deletion in deletions
    )


def _parts(operation: Operation, universe: Universe, *, absences: bool) -> Iterator[Part]:
    read: Any
    request, answer = operation.request, operation.answer
    answered = operation.ending is Ending.ANSWERED
    match operation.method:
        case "RegisterAgent":
            agent = request["agent"]
            reported = AgentState(
                agent["first_seen"],
                agent["last_seen"],
                agent["total_heartbeats"],
                agent["alive"],
                agent["config"]["tag"],
            )
            yield ("agent", agent["id"]), "report", reported, _outcome(operation)
        case "Heartbeat":
            beat = Beat(request["last_seen"], request["total_heartbeats"])
            said = _outcome(operation)
            if answered and not answer.found:
                said = ABSENT
            yield ("agent", request["agent_id"]), BEAT, beat, said
        case "SetModuleState":
            state = request["state"]
            report = Report(state["state"], state.get("version", 0), state["details"]["tag"])
            yield _state_register(state), "report", report, _outcome(operation)
        case "StoreResult":
            result = request["result"]
            said = None
            if answered:
                if not answer.success:
                    raise MalformedAnswerError(f"a result was refused: {operation}")
                said = DUPLICATE if answer.duplicate else STORED
            yield ("result", result["agent_id"], result["id"]), "store", result["data"], said
        case "StoreResults":
            result = request["result"]
            said = SETTLED if answered else None
            yield ("result", result["agent_id"], result["id"]), "store", result["data"], said
        case "DeleteAgent":
            agent_id = request["agent_id"]
            outcome = _outcome(operation)
            for register in _registers_of(agent_id, universe):
                yield register, DELETE, None, outcome
        case "GetAgent":
            read = _agent(answer.agent) if answered and answer.found else ABSENT
            yield ("agent", request["agent_id"]), READ, None, read
        case "GetModuleState":
            ((agent_id, request_id, _),) = [
                run for run in universe.runs if run[1] == request["request_id"]
            ]
            read = _run(answer.state) if answered and answer.found else ABSENT
            yield ("run", agent_id, request_id), READ, None, read
        case "GetResult":
            read = answer.result.data if answered and answer.found else ABSENT
            yield ("result", request["agent_id"], request["request_id"]), READ, None, read
        case method if method in _TASK_METHODS:
            yield from _task_parts(operation, universe)
        case _:
            if answered:
                yield from _listed(operation, universe, absences=absences)


_TASK_METHODS: Final = frozenset(
    {
        "ScheduleTask",
        "AckTask",
        "NackTask",
        "CancelTask",
        "RequeueTask",
        "GetTask",
        "LeaseTasks",
    }
)


def _task_parts(operation: Operation, universe: Universe) -> Iterator[Part]:
    request, answer = operation.request, operation.answer
    answered = operation.ending is Ending.ANSWERED
    match operation.method:
        case "ScheduleTask":
            task = request["task"]
            sent = Scheduled(task["payload"], request["revive"])
            yield ("task", task["id"]), "schedule", sent, _accepted(operation)
        case "AckTask" | "NackTask":
            kind = "ack" if operation.method == "AckTask" else "nack"
            register = ("task", request["task_id"])
            yield register, kind, request["lease_token"], _accepted(operation)
        case "CancelTask" | "RequeueTask":
            kind = "cancel" if operation.method == "CancelTask" else "requeue"
            yield ("task", request["task_id"]), kind, None, _accepted(operation)
        case "GetTask":
            read = _task(answer.task) if answered and answer.found else ABSENT
            yield ("task", request["task_id"]), READ, None, read
        case "LeaseTasks":
            has_key = bool(request["request_key"])
            if not answered:
                for task_id, _ in universe.tasks:
                    yield ("task", task_id), "lease", has_key, None
                return
            if answer.error:
                raise MalformedAnswerError(f"a lease was refused: {operation}")
            for leased in answer.tasks:
                if leased.agent_id == AGENT:  # also pushed, which the models do not know
                    continue
                result = (leased.lease_token, leased.retry_count, leased.payload)
                yield ("task", leased.id), "lease", has_key, result


def _listed(operation: Operation, universe: Universe, *, absences: bool) -> Iterator[Part]:
    request, answer = operation.request, operation.answer
    if answer.error:
        raise MalformedAnswerError(f"a listing was refused: {operation}")
    expected: set[Register]
    entries: list[tuple[Register, Any]]
    match operation.method:
        case "ListAgents":
            expected = {("agent", agent) for agent in universe.agents}
            entries = [(("agent", agent.id), _agent(agent)) for agent in answer.agents]
        case "ListModuleStates":
            agent_id, module = request["agent_id"], request.get("module_name", "")
            expected = {
                ("run", agent, request_id)
                for agent, request_id, of in universe.runs
                if agent == agent_id and module in ("", of)
            } | {
                ("module", agent, of)
                for agent, of in universe.modules
                if agent == agent_id and module in ("", of)
            }
            entries = [
                (
                    ("run", state.agent_id, state.request_id)
                    if state.request_id
                    else ("module", state.agent_id, state.module_name),
                    _run(state),
                )
                for state in answer.states
            ]
        case "ListResults":
            agent_id = request["agent_id"]
            expected = {("result", agent, each) for agent, each in universe.results}
            expected = {register for register in expected if register[1] == agent_id}
            entries = [
                (("result", result.agent_id, result.id), result.data) for result in answer.results
            ]
        case method:
            raise AssertionError(method)
    for register, value in entries:
        if register not in expected:
            raise MalformedAnswerError(f"{register} does not belong into {operation}")
        yield register, READ, None, value
    if absences:
        for register in sorted(expected - {register for register, _ in entries}):
            yield register, READ, None, ABSENT


def _registers_of(agent_id: str, universe: Universe) -> Iterator[Register]:
    yield "agent", agent_id
    for agent, request_id, _ in universe.runs:
        if agent == agent_id:
            yield "run", agent, request_id
    for agent, module in universe.modules:
        if agent == agent_id:
            yield "module", agent, module
    for agent, result_id in universe.results:
        if agent == agent_id:
            yield "result", agent, result_id
    for task_id, agent in universe.tasks:
        if agent == agent_id:
            yield "task", task_id


def _state_register(state: dict[str, Any]) -> Register:
    if "request_id" in state:
        return "run", state["agent_id"], state["request_id"]
    return "module", state["agent_id"], state["module_name"]


def _outcome(operation: Operation) -> str | None:
    if operation.ending is not Ending.ANSWERED:
        return None
    return OK if operation.answer.success else str(operation.answer.error)


def _accepted(operation: Operation) -> str | None:
    """As `_outcome`, where the reason of a refusal is not compared."""
    outcome = _outcome(operation)
    return outcome if outcome in (None, OK) else REFUSED


def _task(task: Any) -> TaskView:
    return TaskView(task.status, task.retry_count, task.payload)


def _agent(agent: Any) -> AgentState:
    return AgentState(
        agent.first_seen,
        agent.last_seen,
        agent.total_heartbeats,
        agent.alive,
        agent.config["tag"],
    )


def _run(state: Any) -> RunState:
    return RunState(state.state, state.version, state.details["tag"])
