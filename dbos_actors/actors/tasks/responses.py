"""The responses about tasks, put together from bytes.

Redis keeps each task as it was scheduled; the book knows what has changed since. A response carries
both, and no payload is decoded for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from dbos_actors.api.messages import (
    AckTaskResponse,
    CancelTaskResponse,
    ExtendLeaseResponse,
    ListDueTasksRequest,
    NackTaskResponse,
    RequeueTaskResponse,
    ScheduleTaskResponse,
    SubscribeTasksResponse,
    Task,
)
from dbos_actors.api.wire import encode_submessage
from dbos_actors.domain.tasks.limits import LEASE_LIMIT_MAX
from dbos_actors.domain.tasks.record import TaskRecord, payload_digest
from dbos_actors.domain.tasks.states import Status
from dbos_actors.errors import InvalidFieldError

SCHEDULED: Final = ScheduleTaskResponse(success=True).SerializeToString()
ACKNOWLEDGED: Final = AckTaskResponse(success=True).SerializeToString()
GIVEN_BACK: Final = NackTaskResponse(success=True).SerializeToString()
CANCELLED: Final = CancelTaskResponse(success=True).SerializeToString()
REQUEUED: Final = RequeueTaskResponse(success=True).SerializeToString()
EXTENDED: Final = ExtendLeaseResponse(success=True).SerializeToString()

DEFAULT_LEASE_S: Final = 60
DEFAULT_LEASES: Final = 100
"""For requests that do not say; both are part of the contract."""

_RESPONSE_ENVELOPE_BYTES = 64


def due_limit(request: ListDueTasksRequest) -> int:
    """How many tasks a ListDueTasks asks for. Raises `InvalidFieldError`."""
    if request.limit < 0:
        raise InvalidFieldError("limit", "must not be negative")
    return min(request.limit or LEASE_LIMIT_MAX, LEASE_LIMIT_MAX)


def room_for_tasks(message_bytes_max: int) -> int:
    """Of a message so many bytes may be tasks."""
    return message_bytes_max - _RESPONSE_ENVELOPE_BYTES


def fitting_tasks(
    records: Sequence[TaskRecord], room_bytes: int, *, has_any: bool = False
) -> tuple[Sequence[TaskRecord], int]:
    """The first ones, as many as fit into so many bytes, and the bytes that are left.

    But one, however large, unless the message ``has_any``.
    """
    for position, record in enumerate(records):
        size_bytes = record.size_bytes_max
        if size_bytes > room_bytes and (position or has_any):
            return records[:position], room_bytes
        room_bytes -= size_bytes
    return records, room_bytes


def outcome_bytes(task_id: str, error: str = "") -> bytes:
    """A response to a subscriber with one outcome."""
    if error:
        outcome = SubscribeTasksResponse.Outcome(task_id=task_id, error=error)
        return encode_submessage(2, outcome.SerializeToString())
    return encode_submessage(2, encode_submessage(1, task_id.encode()) + _SUCCESS)


_SUCCESS: Final = b"\x10\x01"  # field 2, true


def overlaid(kept: bytes, record: TaskRecord) -> bytes:
    """A task as it was scheduled, and as it is now.

    Of a field that occurs twice the later one counts (protobuf encoding, "Last One
    Wins"), so the payload is copied and nothing decoded.
    """
    return kept + _overlay(record, Task())


def _overlay(record: TaskRecord, scratch: Task) -> bytes:
    """The fields that change; all of them are set anew in ``scratch``."""
    status = record.status
    scratch.status = status.text
    scratch.visibility_time = record.visibility_time
    scratch.retry_count = record.retry_count
    scratch.lease_token = record.lease_token if status is Status.INFLIGHT else ""
    scratch.last_error = record.last_error
    scratch.max_attempts = record.max_attempts
    return scratch.SerializeToString()


def listed(records: Sequence[TaskRecord], kept: Sequence[Any]) -> tuple[bytes, list[TaskRecord]]:
    """Tasks as entries of a response's field 1, and those whose record cannot be decoded.

    Neither has the tasks whose record is gone.
    """
    scratch = Task()
    entries: list[bytes] = []
    damaged: list[TaskRecord] = []
    for record, task in zip(records, kept, strict=True):
        if task is None:
            continue
        if is_readable(task):
            entries.append(encode_submessage(1, task + _overlay(record, scratch)))
        else:
            damaged.append(record)
    return b"".join(entries), damaged


def is_readable(kept: bytes) -> bool:
    """Whether it is a task. One that is not would make a whole response undecodable."""
    try:
        Task.FromString(kept)
    except DecodeError:
        return False
    return True


def described(record: TaskRecord) -> bytes:
    """What the book knows of a task whose record cannot be read."""
    return Task(
        id=record.task_id,
        agent_id=record.agent_id,
        module_name=record.module_name,
        scheduled_at=record.scheduled_at,
    ).SerializeToString()


def is_of(kept: bytes, record: TaskRecord) -> bool:
    """Whether what is stored is what the record is about; not if it was changed since."""
    try:
        task = Task.FromString(kept)
    except DecodeError:
        return False
    return (
        task.scheduled_at == record.scheduled_at
        and task.agent_id == record.agent_id
        and task.module_name == record.module_name
        and payload_digest(task.payload) == record.digest
    )
