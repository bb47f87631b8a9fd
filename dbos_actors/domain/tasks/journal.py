"""Bytes of the scheduler's journal and snapshot.

A *journal entry* is one turn: its sequence number, what it adds to the ledger,
the flows it names first, and for each task it touched the row as it is *after*
the turn, or none if the record is gone. Entries carry states, not commands: an
entry applied to a state that already contains it changes no record. That is what
lets a snapshot be taken in slices while the work goes on: it begins with the
sequence and the ledger at its start, each slice holds rows as they were when it
was cut, and the entries after that sequence make up for the difference.

A *snapshot* is a series of chunks: one header, flows, claims, rows, one end that
counts the chunks. All numbers are little-endian.

An entry has format 2 if it makes a claim, which follows its rows, and format 1
if not. So a version of the program that knows no claims reads what has none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dbos_actors.domain.tasks.claims import IDENTITY_BYTES, Claim
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.errors import DbosError

FORMAT = 1
FORMAT_WITH_CLAIMS = 2

_ENTRY = struct.Struct("<BQiiiHI")  # format, sequence, ledger x 3, flows, rows
_FLOW = struct.Struct("<IHH")  # number, agent's length, module's length
_ROW = struct.Struct("<HH")  # id's length, row's length (0: the record is gone)
_CLAIM = struct.Struct(f"<{IDENTITY_BYTES}sQII")  # identity, token, size, span_s
_COUNT = struct.Struct("<H")  # of an entry's claims
_HEADER = struct.Struct("<cBQQQQI")  # kind, format, sequence, ledger x 3, next flow's number
_CHUNK = struct.Struct("<cI")  # kind, items (end: chunks before it)


class JournalError(DbosError):
    """The journal or snapshot read back is not what was written."""


class Ledger(NamedTuple):
    """The counters that outlive records; in an entry, what is added to them.

    ``scheduled`` counts every task that got a record, less those deleted;
    ``completed`` counts for ever, also after retention has dropped the record.
    """

    scheduled: int = 0
    completed: int = 0
    deleted: int = 0

    def plus(self, other: Ledger) -> Ledger:
        return Ledger(
            self.scheduled + other.scheduled,
            self.completed + other.completed,
            self.deleted + other.deleted,
        )

    def minus(self, other: Ledger) -> Ledger:
        return Ledger(
            self.scheduled - other.scheduled,
            self.completed - other.completed,
            self.deleted - other.deleted,
        )


class Entry(NamedTuple):
    """A journal entry, decoded."""

    sequence: int
    added: Ledger
    flows: list[Flow]
    rows: list[tuple[str, bytes]]
    claims: list[Claim]


class Header(NamedTuple):
    """A snapshot's header, decoded."""

    sequence: int
    ledger: Ledger
    next_flow: int


def encode_entry(
    sequence: int,
    added: Ledger,
    flows: Iterable[Flow],
    rows: Mapping[str, bytes],
    claims: Sequence[Claim] = (),
) -> bytes:
    """One turn; an empty row says that the record is gone."""
    new_flows = list(flows)
    version = FORMAT_WITH_CLAIMS if claims else FORMAT
    parts = [_ENTRY.pack(version, sequence, *added, len(new_flows), len(rows))]
    parts.extend(_encoded_flow(flow) for flow in new_flows)
    parts.extend(_encoded_rows(rows.items()))
    if claims:
        parts.append(_COUNT.pack(len(claims)))
        parts.extend(_CLAIM.pack(*claim) for claim in claims)
    return b"".join(parts)


def decode_entry(data: bytes) -> Entry:
    """:raises JournalError: the bytes are no entry of this format."""
    try:
        version, sequence, scheduled, completed, deleted, flows, rows = _ENTRY.unpack_from(data)
        _require_format(version, FORMAT_WITH_CLAIMS)
        offset = _ENTRY.size
        decoded_flows, offset = _decoded_flows(data, offset, flows)
        decoded_rows, offset = _decoded_rows(data, offset, rows)
        claims: list[Claim] = []
        if version == FORMAT_WITH_CLAIMS:
            (count,) = _COUNT.unpack_from(data, offset)
            claims, offset = _decoded_claims(data, offset + _COUNT.size, count)
    except (struct.error, UnicodeDecodeError) as error:
        raise JournalError(f"damaged journal entry: {error}") from error
    if offset != len(data):
        raise JournalError(f"journal entry {sequence} has {len(data) - offset} bytes too many")
    added = Ledger(scheduled, completed, deleted)
    return Entry(sequence, added, decoded_flows, decoded_rows, claims)


def header_chunk(header: Header) -> bytes:
    return _HEADER.pack(b"H", FORMAT, header.sequence, *header.ledger, header.next_flow)


def flows_chunk(flows: list[Flow]) -> bytes:
    return _CHUNK.pack(b"L", len(flows)) + b"".join(map(_encoded_flow, flows))


def claims_chunk(claims: list[Claim]) -> bytes:
    return _CHUNK.pack(b"C", len(claims)) + b"".join(_CLAIM.pack(*claim) for claim in claims)


def rows_chunk(rows: Iterable[tuple[str, bytes]], count: int) -> bytes:
    return b"".join([_CHUNK.pack(b"R", count), *_encoded_rows(rows)])


def end_chunk(chunks: int) -> bytes:
    return _CHUNK.pack(b"E", chunks)


def decode_chunk(data: bytes) -> Header | list[Flow] | list[Claim] | list[tuple[str, bytes]] | int:
    """A header, flows, claims, rows, or (end) the number of chunks before it.

    :raises JournalError: the bytes are no chunk of this format.
    """
    try:
        kind = data[:1]
        if kind == b"H":
            _, version, sequence, scheduled, completed, deleted, flows = _HEADER.unpack(data)
            _require_format(version, FORMAT)
            return Header(sequence, Ledger(scheduled, completed, deleted), flows)
        _, count = _CHUNK.unpack_from(data)
        if kind == b"E":
            return int(count)
        if kind == b"L":
            return _decoded_flows(data, _CHUNK.size, count)[0]
        if kind == b"C":
            return _decoded_claims(data, _CHUNK.size, count)[0]
        if kind == b"R":
            return _decoded_rows(data, _CHUNK.size, count)[0]
    except (struct.error, UnicodeDecodeError) as error:
        raise JournalError(f"damaged snapshot chunk: {error}") from error
    raise JournalError(f"unknown kind of snapshot chunk {kind!r}")


def _require_format(version: int, latest: int) -> None:
    if not FORMAT <= version <= latest:
        raise JournalError(f"written in format {version}, this program reads up to {latest}")


def _encoded_flow(flow: Flow) -> bytes:
    agent, module = flow.agent_id.encode(), flow.module_name.encode()
    return _FLOW.pack(flow.number, len(agent), len(module)) + agent + module


def _encoded_rows(rows: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    pack = _ROW.pack
    for task_id, row in rows:
        name = task_id.encode()
        yield pack(len(name), len(row)) + name + row


def _decoded_flows(data: bytes, offset: int, count: int) -> tuple[list[Flow], int]:
    flows = []
    for _ in range(count):
        number, agent_size, module_size = _FLOW.unpack_from(data, offset)
        offset += _FLOW.size
        middle, end = offset + agent_size, offset + agent_size + module_size
        _require_bytes(data, end)
        flows.append(Flow(number, data[offset:middle].decode(), data[middle:end].decode()))
        offset = end
    return flows, offset


def _decoded_rows(data: bytes, offset: int, count: int) -> tuple[list[tuple[str, bytes]], int]:
    rows = []
    unpack, size = _ROW.unpack_from, _ROW.size
    for _ in range(count):
        name_size, row_size = unpack(data, offset)
        offset += size
        middle = offset + name_size
        end = middle + row_size
        rows.append((data[offset:middle].decode(), data[middle:end]))
        offset = end
    _require_bytes(data, offset)
    return rows, offset


def _decoded_claims(data: bytes, offset: int, count: int) -> tuple[list[Claim], int]:
    end = offset + count * _CLAIM.size
    _require_bytes(data, end)
    return [Claim(*_CLAIM.unpack_from(data, at)) for at in range(offset, end, _CLAIM.size)], end


def _require_bytes(data: bytes, end: int) -> None:
    if end > len(data):
        raise JournalError(f"cut off: {end} bytes expected, {len(data)} there")
