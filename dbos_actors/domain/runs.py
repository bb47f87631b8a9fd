"""Module states: the life of a run, and reports about a module itself.

A run is named by (agent_id, request_id). Its states have a rank,

    created < started < running < completed, error, failed

and the last three are terminal. Reports travel from the agent through queues
and retries, so some are lost, late or doubled, and a run may first be heard of
in any state. Hence one rule and two exceptions:

- The rank must rise; how far does not matter. A lost report never blocks the
  outcome, and a late one cannot undo it.
- The same non-terminal state again is progress: the report replaces the record.
- The same terminal state again is a repeat: it succeeds and changes nothing,
  whatever else it says. One outcome may be reported hundreds of times.

`TRANSITIONS` says so in full. Row by row it is checked against the rule in the
tests; the code asks only the table.

**Versions.** The server numbers a run's records from 1, one up per change. A
report with version 0 is unconditional (and so, in a non-terminal state, always
a change). One with a version must name the next one, or the current one with
the current content: that is a retry, which succeeds and changes nothing. The
table is asked first, since no version makes a forbidden transition good.

**Inferred failures.** When an agent falls silent the server fails its
unfinished runs (`fail_unfinished`) and notes in ``inferred_from`` what the
agent had said last. That is a guess: the agent's own later report is judged as
if the guess had not been made, except that versions go on, and clears it.

A report without a request id is about the module, not a run: any state name,
always accepted, kept per (agent_id, module_name) (`report_module`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from dbos_actors.api.messages import ModuleState
from dbos_actors.domain import events
from dbos_actors.errors import (
    InvalidFieldError,
    InvalidTransitionError,
    MissingFieldError,
    VersionConflictError,
)

CREATED: Final = "created"
STARTED: Final = "started"
RUNNING: Final = "running"
COMPLETED: Final = "completed"
ERROR: Final = "error"
FAILED: Final = "failed"

STATES: Final = (CREATED, STARTED, RUNNING, COMPLETED, ERROR, FAILED)
TERMINAL_STATES: Final = frozenset({COMPLETED, ERROR, FAILED})


def check_filter_state(field: str, name: str) -> None:
    """Raise `InvalidFieldError` for a name in a filter that no state can have been meant by.

    A module's own state may have any name, so only what is nearly a run's state is refused.
    """
    if name in STATES:
        return
    plain = name.strip().lower()
    if not plain or plain in STATES:
        raise InvalidFieldError(
            field,
            f"has the name {name!r}: the states of a run are {', '.join(STATES)}, in lower case; "
            "a module's own state may have any other name",
        )


class Step(Enum):
    """What a permitted report does to a run."""

    ENTER = "enter"
    """The run enters another state, or begins."""
    PROGRESS = "progress"
    """It stays in its state; the report replaces the record."""
    REPEAT = "repeat"
    """It stays as it is."""
    REFUSED = "refused"


_E, _P, _R, _X = Step.ENTER, Step.PROGRESS, Step.REPEAT, Step.REFUSED

TRANSITIONS: Final[Mapping[str | None, Mapping[str, Step]]] = MappingProxyType(
    {
        current: MappingProxyType(dict(zip(STATES, row, strict=True)))
        for current, row in (
            # to:    created, started, running, completed, error, failed
            (None, (_E, _E, _E, _E, _E, _E)),
            (CREATED, (_P, _E, _E, _E, _E, _E)),
            (STARTED, (_X, _P, _E, _E, _E, _E)),
            (RUNNING, (_X, _X, _P, _E, _E, _E)),
            (COMPLETED, (_X, _X, _X, _R, _X, _X)),
            (ERROR, (_X, _X, _X, _X, _R, _X)),
            (FAILED, (_X, _X, _X, _X, _X, _R)),
        )
    }
)
"""From the current state (None: no such run yet) to the reported one."""

_ERROR_CHARS_IN_EVENT = 256  # the record has it all; the log is bounded by count


class Report(NamedTuple):
    """What a report has come to."""

    record: ModuleState
    """The run's record now: a new message, or ``current`` itself if not changed."""
    changed: bool
    """Whether there is anything to write."""
    began: bool = False
    """The run is unfinished now and was not before (new, or a failure taken back)."""
    finished: bool = False
    """The run is finished now and was not before (unfinished, or unknown)."""
    event: bytes | None = None
    """Of the transition, to be logged in the same commit; progress has none."""


def is_finished(record: ModuleState) -> bool:
    """Whether a run's record is in a terminal state."""
    return record.state in TERMINAL_STATES


def report(current: ModuleState | None, reported: ModuleState, *, now_s: int) -> Report:
    """Judges a report about a run; ``current`` is None if nothing is known of it.

    A timestamp of 0 means now. Neither argument is changed. Raises
    `InvalidFieldError` (no such state, another module than the run's),
    `MissingFieldError` (first report without a module), `InvalidTransitionError`,
    `VersionConflictError`.
    """
    requested = reported.state
    if current is None:
        said = None
        version = 0
        module_name = reported.module_name
        if not module_name:
            raise MissingFieldError("state.module_name")
    else:
        said = current.inferred_from or current.state
        version = current.version
        module_name = current.module_name
        if reported.module_name and reported.module_name != module_name:
            raise InvalidFieldError(
                "state.module_name", f"is {reported.module_name!r}, this run's is {module_name!r}"
            )
    step = TRANSITIONS[said].get(requested)
    if step is None:
        raise InvalidFieldError(
            "state.state", f"is {requested!r}, must be one of {', '.join(STATES)}"
        )
    if current is not None and step is Step.REPEAT:
        return Report(current, changed=False)
    was = current.state if current is not None else None
    if step is Step.REFUSED:
        raise InvalidTransitionError(str(was), requested)
    confirms = was == requested and step is Step.ENTER  # an inferred failure was right
    if reported.version and reported.version != version + 1 and not confirms:
        if current is not None and reported.version == version and _same(current, reported):
            return Report(current, changed=False)
        raise VersionConflictError(expected=version + 1, got=reported.version)

    record = ModuleState()
    record.CopyFrom(reported)
    record.ClearField("inferred_from")
    record.module_name = module_name
    record.version = version + 1
    if not record.timestamp:
        record.timestamp = now_s
    if was == requested:
        return Report(record, changed=True)
    now_finished = requested in TERMINAL_STATES
    was_finished = was in TERMINAL_STATES
    return Report(
        record,
        changed=True,
        began=not now_finished and (was is None or was_finished),
        finished=now_finished and not was_finished,
        event=_event(record, was, now_s),
    )


def fail_unfinished(current: ModuleState, reason: str, *, now_s: int) -> Report:
    """Fails an unfinished run whose agent has fallen silent.

    Details stay as the agent last gave them. Raises `InvalidTransitionError` if
    the run is finished.
    """
    was = current.state
    if TRANSITIONS[was][FAILED] is not Step.ENTER:
        raise InvalidTransitionError(was, FAILED)
    record = ModuleState()
    record.CopyFrom(current)
    record.state = FAILED
    record.inferred_from = was
    record.error_message = reason
    record.timestamp = now_s
    record.version = current.version + 1
    return Report(record, changed=True, finished=True, event=_event(record, was, now_s))


def report_module(current: ModuleState | None, reported: ModuleState, *, now_s: int) -> Report:
    """Takes a report about a module itself: always a change, with the next version.

    Its own version is ignored, since such a report is never refused for it. No
    event: it is not a run. Raises `MissingFieldError` without a module name.
    """
    if not reported.module_name:
        raise MissingFieldError("state.module_name")
    record = ModuleState()
    record.CopyFrom(reported)
    record.ClearField("inferred_from")
    record.version = 1 if current is None else current.version + 1
    if not record.timestamp:
        record.timestamp = now_s
    return Report(record, changed=True)


def _same(current: ModuleState, reported: ModuleState) -> bool:
    """Whether the report says what the record says; what it leaves out is not compared."""
    return (
        reported.state == current.state
        and reported.timestamp in (0, current.timestamp)
        and reported.error_message == current.error_message
        and reported.details == current.details
    )


def _event(record: ModuleState, was: str | None, now_s: int) -> bytes:
    """What `events.event` would make of it, in a third of the time: most changes have one."""
    quoted = events.quoted
    state, before = record.state, was or ""
    agent_id, request_id = quoted(record.agent_id), quoted(record.request_id)
    module_name = quoted(record.module_name)
    more = ""
    if record.error_message:
        more = f',"error_message":{quoted(record.error_message[:_ERROR_CHARS_IN_EVENT])}'
    if record.inferred_from:
        more += f',"inferred_from":"{record.inferred_from}"'
    # A run's states are names of ours, so only what a client chose is quoted.
    return (
        f'{{"type":"{events.RUN_PREFIX}{state}",'
        f'"message":"run {request_id[1:-1]} of agent {agent_id[1:-1]} ({module_name[1:-1]}): '
        f'{was or "new"} -> {state}",'
        f'"metadata":{{"agent_id":{agent_id},"request_id":{request_id},'
        f'"module_name":{module_name},"state":"{state}","previous_state":"{before}",'
        f'"version":"{record.version}"{more}}},"timestamp":{now_s}}}'
    ).encode()
