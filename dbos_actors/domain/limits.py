"""How large a request's fields may be, and which of them must be there.

Each ``check_`` function takes a request as it was decoded, refuses it with an
error that names the field as it is on the wire (``state.agent_id``), and
returns the message inside. These run once for every call, so the usual case is
decided by lengths in characters: a string of n characters has at most 4n bytes.

Fields the contract does not know are dropped from the request here: no limit
covers them, and they would be kept for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dbos_actors.api.messages import (
    Agent,
    MeasurementResult,
    ModuleState,
    RegisterAgentRequest,
    ScheduleTaskRequest,
    SetModuleStateRequest,
    StoreResultRequest,
    Task,
)
from dbos_actors.errors import FieldLimitError, InvalidFieldError, MissingFieldError

_UTF8_BYTES_MAX = 4  # of one character, RFC 3629

SCORE_MAX = 2**53
"""Times that order a listing are kept as doubles; up to here they are exact."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on what a request carries; sizes are in bytes of UTF-8."""

    id_bytes: int = 256
    """Of an agent, request, result or task id."""
    name_bytes: int = 256
    """Of a module, state, host or version name."""
    text_bytes: int = 64 * 1024
    """Of an error message or a reason."""
    data_bytes: int = 1024 * 1024
    """Of a result's ``data`` and a task's ``payload``."""
    map_entries: int = 256
    """Of an agent's ``config`` and a state's ``details``."""
    map_bytes: int = 64 * 1024
    """Of all keys and values of such a map together."""
    message_bytes: int = 4 * 1024 * 1024
    """Of a whole message, either way; the transport enforces it."""


def check_text(field: str, text: str, limit_bytes: int) -> None:
    """Raises `FieldLimitError` if ``text`` exceeds the limit. Empty is fine."""
    if len(text) * _UTF8_BYTES_MAX > limit_bytes:
        size = len(text.encode())
        if size > limit_bytes:
            raise FieldLimitError(field, size=size, limit=limit_bytes)


def echoed(identifier: str, limits: Limits) -> str:
    """An identifier as an answer about a refused request repeats it.

    Cut to the length of the longest valid one, so that no answer is much larger than that.
    """
    encoded = identifier.encode()
    if len(encoded) <= limits.id_bytes:
        return identifier
    return encoded[: limits.id_bytes].decode(errors="ignore")


def check_id(field: str, identifier: str, limits: Limits) -> None:
    """Raises `MissingFieldError` or `FieldLimitError` unless this can be an id."""
    if not identifier:
        raise MissingFieldError(field)
    check_text(field, identifier, limits.id_bytes)


def check_name(field: str, name: str, limits: Limits) -> None:
    """Raises `MissingFieldError` or `FieldLimitError` unless this can be a name."""
    if not name:
        raise MissingFieldError(field)
    check_text(field, name, limits.name_bytes)


def check_data(field: str, data: bytes, limits: Limits) -> None:
    """Raises `FieldLimitError` if ``data`` exceeds the limit. Empty is fine."""
    if len(data) > limits.data_bytes:
        raise FieldLimitError(field, size=len(data), limit=limits.data_bytes)


def check_map(
    field: str, entries: Mapping[str, str], limits: Limits, *, message_bytes: int
) -> None:
    """Raises `FieldLimitError` if there are too many entries, or too large ones.

    ``message_bytes``, the size of the message that they are in, is at least theirs. It is known
    in 3 us for 40 entries, and to visit them all takes 25.
    """
    count = len(entries)
    if not count:
        return
    if count > limits.map_entries:
        raise FieldLimitError(field, size=count, limit=limits.map_entries, unit="entries")
    if message_bytes <= limits.map_bytes:
        return
    characters = 0
    for key, value in entries.items():
        characters += len(key) + len(value)
    if characters * _UTF8_BYTES_MAX > limits.map_bytes:
        size = sum(len(key.encode()) + len(value.encode()) for key, value in entries.items())
        if size > limits.map_bytes:
            raise FieldLimitError(field, size=size, limit=limits.map_bytes)


def check_agent(request: RegisterAgentRequest, limits: Limits) -> Agent:
    """The agent of a RegisterAgent request, fit to be recorded.

    Raises `MissingFieldError`, `FieldLimitError`.
    """
    if not request.HasField("agent"):
        raise MissingFieldError("agent")
    agent = request.agent
    agent.DiscardUnknownFields()
    check_id("agent.id", agent.id, limits)
    check_text("agent.hostname", agent.hostname, limits.name_bytes)
    if agent.config:
        check_map("agent.config", agent.config, limits, message_bytes=request.ByteSize())
    return agent


def check_state(request: SetModuleStateRequest, limits: Limits) -> ModuleState:
    """The report of a SetModuleState request, fit to be judged.

    Whether its module name may be empty and its state's name is known depends
    on the run: `runs` decides. Raises `MissingFieldError`, `FieldLimitError`.
    """
    if not request.HasField("state"):
        raise MissingFieldError("state")
    state = request.state
    state.DiscardUnknownFields()
    check_id("state.agent_id", state.agent_id, limits)
    check_name("state.state", state.state, limits)
    message_bytes = request.ByteSize()
    # Most reports are so small that no text in them can be too long.
    if message_bytes > min(limits.name_bytes, limits.id_bytes, limits.text_bytes):
        check_text("state.module_name", state.module_name, limits.name_bytes)
        check_text("state.request_id", state.request_id, limits.id_bytes)
        check_text("state.error_message", state.error_message, limits.text_bytes)
    check_map("state.details", state.details, limits, message_bytes=message_bytes)
    return state


def check_result(request: StoreResultRequest, limits: Limits) -> MeasurementResult:
    """The result of a StoreResult request, fit to be kept.

    Raises `MissingFieldError`, `FieldLimitError`, `InvalidFieldError`.
    """
    if not request.HasField("result"):
        raise MissingFieldError("result")
    result = request.result
    result.DiscardUnknownFields()
    check_id("result.id", result.id, limits)
    check_id("result.agent_id", result.agent_id, limits)
    check_name("result.module_name", result.module_name, limits)
    data_bytes = len(result.data)
    if data_bytes > limits.data_bytes:
        raise FieldLimitError("result.data", size=data_bytes, limit=limits.data_bytes)
    if not 0 <= result.received_at <= SCORE_MAX:
        raise InvalidFieldError("result.received_at", f"must be from 0 to {SCORE_MAX}")
    name_bytes = limits.name_bytes
    # Most results are so small besides their data that no text in them can be too long.
    if request.ByteSize() - data_bytes > name_bytes:
        check_text("result.agent_runtime_version", result.agent_runtime_version, name_bytes)
        check_text("result.module_revision", result.module_revision, name_bytes)
        check_text("result.dbos_server_id", result.dbos_server_id, name_bytes)
        check_text("result.ingest_source", result.ingest_source, name_bytes)
    return result


def check_task(request: ScheduleTaskRequest, limits: Limits) -> Task:
    """The task of a ScheduleTask request, fit to be judged.

    Raises `MissingFieldError`, `FieldLimitError`, `InvalidFieldError`.
    """
    if not request.HasField("task"):
        raise MissingFieldError("task")
    task = request.task
    task.DiscardUnknownFields()
    check_id("task.id", task.id, limits)
    check_id("task.agent_id", task.agent_id, limits)
    check_name("task.module_name", task.module_name, limits)
    check_data("task.payload", task.payload, limits)
    if not 0 <= task.scheduled_at <= SCORE_MAX:
        raise InvalidFieldError("task.scheduled_at", f"must be from 0 to {SCORE_MAX}")
    if task.max_attempts < 0:
        raise InvalidFieldError("task.max_attempts", "must not be negative")
    return task
