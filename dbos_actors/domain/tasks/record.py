"""What is resident of a task, and its bytes.

The same bytes, the *row*, are the resident form, the journal's and the
snapshot's: 46 bytes, then the worker's name while a lease runs, then the last
error. With its object header a plain row takes 80 bytes. The payload is not
resident; of it a 64-bit digest is, to tell the same task from a changed one and
to know, nearly, how large it is.

A `TaskRecord` is a row taken apart: a private, mutable copy, never shared with
the table it came from.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hashlib import blake2b

from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.states import Settled, Status

LAST_ERROR_BYTES_MAX = 512
"""Of a last error is kept so much: it stays resident with every dead task."""
WORKER_BYTES_MAX = 255
LATENESS_MS_MAX = 0xFFFF_FFFF
TOKEN_BITS = 64

_OTHER_FIELDS_BYTES = 128
"""Of a task's numbers, status, token and every field's head."""

_SIZE_UNIT_BYTES = 64
_MANTISSA_BITS = 12
_MANTISSA_MAX = (1 << _MANTISSA_BITS) - 1

# status | settled << 4, worker's length, deliveries, max_attempts, flow, span_s, moment,
# lateness_ms, scheduled_at, digest, token
_ROW = struct.Struct("<BBHHIIIIqQQ")
_STATUSES = {int(status): status for status in Status}
_SETTLEDS = {int(settled): settled for settled in Settled}


ROW_ERRORS = (KeyError, struct.error, UnicodeDecodeError)
"""What `TaskRecord.decode` raises about a row that is none, or is of an unknown flow."""


class TaskRecord:
    """The resident part of one task.

    ``moment`` is a wall-clock second whose meaning the status gives: the end of
    the lease (inflight), of the retry delay or 0 (pending), the time of the
    outcome, `Now.outcome_s` (completed, dead, cancelled). ``span_s`` is the length of that lease
    or delay.
    ``lateness_ms`` is how long after its due time the first delivery came;
    before that, how late the task already was when it was scheduled.
    """

    __slots__ = (
        "deliveries",
        "digest",
        "flow",
        "last_error",
        "lateness_ms",
        "max_attempts",
        "moment",
        "scheduled_at",
        "settled",
        "span_s",
        "status",
        "task_id",
        "token",
        "worker_id",
    )

    def __init__(self, task_id: str, flow: Flow) -> None:
        self.task_id = task_id
        self.flow = flow
        self.status = Status.GONE
        self.settled = Settled.NOT
        self.deliveries = 0
        self.max_attempts = 0
        self.span_s = 0
        self.moment = 0
        self.lateness_ms = 0
        self.scheduled_at = 0
        self.digest = 0
        self.token = 0  # of the last delivery; 0 before the first
        self.worker_id = ""
        self.last_error = ""

    @property
    def agent_id(self) -> str:
        return self.flow.agent_id

    @property
    def module_name(self) -> str:
        return self.flow.module_name

    @property
    def lease_token(self) -> str:
        """The last delivery's token as it stands on the wire, "" before the first delivery."""
        return token_text(self.token)

    @property
    def retry_count(self) -> int:
        """Deliveries after the first."""
        return max(0, self.deliveries - 1)

    @property
    def size_bytes_max(self) -> int:
        """What the whole task takes at most as a message, whatever its letters."""
        texts = len(self.task_id) + len(self.flow.agent_id) + len(self.flow.module_name)
        fields = digest_size_bytes(self.digest) + 4 * (texts + len(self.last_error))
        return fields + _OTHER_FIELDS_BYTES

    @property
    def visibility_time(self) -> int:
        """When a lease or retry delay ends, wall-clock seconds; 0 when neither is known."""
        return self.moment if self.status in (Status.PENDING, Status.INFLIGHT) else 0

    def encode(self) -> bytes:
        """The row."""
        worker = self.worker_id.encode()
        return (
            _ROW.pack(
                self.status | self.settled << 4,
                len(worker),
                self.deliveries,
                self.max_attempts,
                self.flow.number,
                self.span_s,
                self.moment,
                self.lateness_ms,
                self.scheduled_at,
                self.digest,
                self.token,
            )
            + worker
            + self.last_error.encode()
        )

    @classmethod
    def decode(cls, task_id: str, row: bytes, flows: Mapping[int, Flow]) -> TaskRecord:
        """The record of a row; ``flows`` must know its flow."""
        record = cls.__new__(cls)
        (
            state,
            worker_size,
            record.deliveries,
            record.max_attempts,
            flow,
            record.span_s,
            record.moment,
            record.lateness_ms,
            record.scheduled_at,
            record.digest,
            record.token,
        ) = _ROW.unpack_from(row)
        record.task_id = task_id
        record.flow = flows[flow]
        record.status = _STATUSES[state & 15]
        record.settled = _SETTLEDS[state >> 4]
        if len(row) > _ROW.size:
            middle = _ROW.size + worker_size
            record.worker_id = row[_ROW.size : middle].decode()
            record.last_error = row[middle:].decode()
        else:
            record.worker_id = record.last_error = ""
        return record


def row_flow(row: bytes) -> int:
    """The flow's number, without decoding the rest."""
    number: int = _LANE.unpack_from(row, 6)[0]
    return number


def row_status(row: bytes) -> int:
    """The status, likewise."""
    return row[0] & 15


def row_scheduled_at(row: bytes) -> int:
    """The second it is scheduled at, likewise."""
    second: int = _SCHEDULED_AT.unpack_from(row, 22)[0]
    return second


_LANE = struct.Struct("<I")
_SCHEDULED_AT = struct.Struct("<q")


def token_text(token: int) -> str:
    """A lease token as it stands on the wire."""
    return f"{token:016x}" if token else ""


def payload_digest(payload: bytes) -> int:
    """64 bits that tell a task's payload from another one: 48 of a hash, 16 of its size."""
    units = -(-len(payload) // _SIZE_UNIT_BYTES)
    exponent = max(0, units.bit_length() - _MANTISSA_BITS)
    # Rounded up, so that `digest_size_bytes` is never too low; the carry may need one bit more.
    mantissa = -(-units >> exponent)
    if mantissa >> _MANTISSA_BITS:
        mantissa, exponent = mantissa >> 1, exponent + 1
    size = exponent << _MANTISSA_BITS | mantissa
    return size << 48 | int.from_bytes(blake2b(payload, digest_size=6).digest(), "little")


def digest_size_bytes(digest: int) -> int:
    """The size of the payload that has this digest, or up to 64 bytes and 1/2048 more."""
    size = digest >> 48
    return (size & _MANTISSA_MAX) * _SIZE_UNIT_BYTES << (size >> _MANTISSA_BITS)


def clipped(text: str, size_bytes: int) -> str:
    """``text``, cut to at most ``size_bytes`` of UTF-8 between characters."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= size_bytes:
        return encoded.decode()
    return encoded[:size_bytes].decode(errors="ignore")
