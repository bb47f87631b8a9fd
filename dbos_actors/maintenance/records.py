"""Whether the bytes of a record are what stands under its name."""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from dbos_actors.actors.agents.context import MODULE, RUN
from dbos_actors.api.messages import Agent, MeasurementResult, ModuleState, Task
from dbos_actors.domain.runs import STATES

UNDECODABLE: Final = "cannot be decoded"
MISPLACED: Final = "is the record of something else"

T = TypeVar("T", Agent, MeasurementResult, ModuleState, Task)


class DamagedRecordError(ValueError):
    """The bytes are no such record; the text says why."""


def text(name: bytes) -> str:
    """An id as it was sent. Raises `DamagedRecordError`."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise DamagedRecordError("its name is no UTF-8") from None


def agent(name: bytes, data: bytes) -> Agent:
    """The record of an agent. Raises `DamagedRecordError`."""
    record = _decoded(Agent, data)
    _expect(record.id == text(name))
    return record


def result(agent_id: str, name: bytes, data: bytes) -> MeasurementResult:
    """A result of an agent. Raises `DamagedRecordError`."""
    record = _decoded(MeasurementResult, data)
    _expect((record.agent_id, record.id) == (agent_id, text(name)))
    return record


def task(name: bytes, data: bytes) -> Task:
    """A task as it was scheduled. Raises `DamagedRecordError`."""
    record = _decoded(Task, data)
    _expect(record.id == text(name))
    return record


def state(agent_id: str, name: bytes, data: bytes) -> ModuleState:
    """The state of a run or a module. Raises `DamagedRecordError`."""
    record = _decoded(ModuleState, data)
    field = text(name)
    expected = RUN + record.request_id if record.request_id else MODULE + record.module_name
    _expect(record.agent_id == agent_id and field == expected and bool(record.module_name))
    if record.request_id and record.state not in STATES:
        raise DamagedRecordError("is a run in no known state")
    if record.inferred_from and record.inferred_from not in STATES:
        raise DamagedRecordError("is a run in no known state")
    return record


def event(fields: list[bytes]) -> None:
    """An entry of the event log. Raises `DamagedRecordError`."""
    try:
        content: Any = json.loads(fields[1]) if len(fields) == 2 and fields[0] == b"e" else None
    except ValueError:
        content = None
    if not (
        isinstance(content, dict)
        and isinstance(content.get("type"), str)
        and isinstance(content.get("metadata"), dict)
    ):
        raise DamagedRecordError(UNDECODABLE)


def _decoded(kind: type[T], data: bytes) -> T:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise DamagedRecordError(UNDECODABLE) from None


def _expect(fits: bool) -> None:
    if not fits:
        raise DamagedRecordError(MISPLACED)
