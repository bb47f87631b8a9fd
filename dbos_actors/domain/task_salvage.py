"""A task book from what is readable of a damaged journal, snapshot and records.

`task_recovery` refuses anything that is not exactly what was written, since a
server must not guess. Here an operator has asked for the best that can be had.
The rules:

- A journal entry carries the states of its tasks, not commands. So entries after
  a gap are right about their tasks; a task that only a lost entry touched is
  taken in the state it had before, and may be delivered once more than it should.
- A task whose record (payload, agent, module) cannot be read, or is missing, is
  dropped: there is nothing to hand out.
- A task whose record is there and whose state is lost is pending again, with its
  attempts reset. It may have been completed; a delivery too many is the smaller harm.
- Where record and state disagree about agent, module, payload or time, the
  record is right, since it is what workers get.
- The ledger's completed count is kept, and the others follow from the records.

Pure: bytes come in, a book and a list of findings go out. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from dbos_actors.api.messages import Task
from dbos_actors.domain.id_table import IdTable
from dbos_actors.domain.task_claims import Claim, ClaimRecovery
from dbos_actors.domain.task_due import Lane
from dbos_actors.domain.task_journal import (
    Entry,
    Header,
    JournalError,
    Ledger,
    decode_chunk,
    decode_entry,
)
from dbos_actors.domain.task_record import ROW_ERRORS, TaskRecord, payload_digest
from dbos_actors.domain.task_states import Status
from dbos_actors.domain.tasks import TaskBook, TaskLimits
from dbos_actors.domain.timers import Now


@dataclass(slots=True)
class Salvage:
    """What could be read, and what could not."""

    book: TaskBook
    """All that could be read; its ``sequence`` is past everything that was written."""

    problems: list[str] = field(default_factory=list)
    """What is damaged or missing, one line each; empty if a server would read the same book."""

    dropped: dict[str, str] = field(default_factory=dict)
    """Task id -> why it is not in the book. Its record, if there is one, is to be deleted."""

    pending_again: list[str] = field(default_factory=list)
    """Tasks whose state is lost."""

    def snapshot(self) -> list[bytes]:
        """The chunks of a fresh snapshot, after which the journal is to begin empty."""
        return list(self.book.snapshot())


class Salvager:
    """Collects what is readable: first the snapshot, then the journal, then the records."""

    def __init__(self, limits: TaskLimits | None = None) -> None:
        self._limits = limits or TaskLimits()
        self._problems: list[str] = []
        self._sequence = 0
        self._ledger = Ledger()
        self._lanes: dict[int, Lane] = {}
        self._names: dict[tuple[str, str], Lane] = {}
        self._next_lane = 1
        self._claims: list[Claim] = []
        self._rows: dict[str, bytes] = {}
        self._records: dict[str, TaskRecord] = {}
        self._dropped: dict[str, str] = {}
        self._pending_again: list[str] = []

    # --------------------------------------------------------------- snapshot

    def read_snapshot(self, chunks: Iterable[bytes], sequence: int | None) -> None:
        """Take the chunks of the snapshot in force.

        :param sequence: what the snapshot's key says it ends with; None if that is unreadable.
        """
        header: Header | None = None
        ended = False
        count = 0
        for chunk in chunks:
            try:
                item = decode_chunk(chunk)
            except JournalError as error:
                self._problems.append(f"snapshot chunk {count}: {error}")
                item = []
            if isinstance(item, Header):
                header = item
                self._sequence, self._ledger = item.sequence, item.ledger
                self._next_lane = max(self._next_lane, item.next_lane)
            elif isinstance(item, int):
                ended = item == count
            else:
                self._take(item)
            count += 1
        if count and header is None:
            self._problems.append("the snapshot has no header")
        if count and not ended:
            self._problems.append("the snapshot has no end, or chunks are missing")
        expected = 0 if header is None else header.sequence
        if sequence != expected:
            self._problems.append(
                f"the snapshot ends with journal entry {expected}, its key says {sequence}"
            )
        self._sequence = max(self._sequence, sequence or 0)

    def _take(self, items: Sequence[Lane | Claim | tuple[str, bytes]]) -> None:
        for item in items:
            if isinstance(item, Lane):
                self._lanes[item.number] = item
                self._next_lane = max(self._next_lane, item.number + 1)
            elif isinstance(item, Claim):
                self._claims.append(item)
            else:
                task_id, row = item
                self._rows[task_id] = row

    # ---------------------------------------------------------------- journal

    def read_journal(self, entries: Iterable[tuple[bytes, Sequence[bytes]]]) -> None:
        """Take the journal's entries as the stream has them: id and fields, in its order."""
        contained = self._sequence
        expected = contained + 1
        last = contained
        for entry_id, fields in entries:
            name = entry_id.decode(errors="replace")
            number = entry_id.partition(b"-")[0]
            last = max(last, int(number) if number.isdigit() else 0)
            try:
                entry = decode_entry(fields[1] if len(fields) > 1 else b"")
            except JournalError as error:
                self._problems.append(f"journal entry {name}: {error}")
                continue
            if entry_id != b"%d-0" % entry.sequence:
                self._problems.append(f"journal entry {name} calls itself {entry.sequence}")
            if entry.sequence <= contained:
                continue
            if entry.sequence != expected:
                self._problems.append(
                    f"journal entries {expected} to {entry.sequence - 1} are missing"
                )
            expected = max(expected, entry.sequence + 1)
            self._replay(entry)
        self._sequence = max(last, expected - 1)

    def _replay(self, entry: Entry) -> None:
        self._ledger = self._ledger.plus(entry.added)
        self._take(entry.lanes)
        self._take(entry.claims)
        for task_id, row in entry.rows:
            if row:
                self._rows[task_id] = row
            else:
                self._rows.pop(task_id, None)

    # ---------------------------------------------------------------- records

    def read_records(self, kept: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the tasks as they were scheduled: id and bytes. May be called several times."""
        for key, data in kept:
            task_id = key.decode(errors="replace")
            task = _decoded(data)
            if task is None or task.id != task_id:
                self._drop(task_id, "its record cannot be read")
                continue
            lane = self._lane(task.agent_id, task.module_name)
            record = self._state_of(task_id, lane)
            if record is None:
                self._pending_again.append(task_id)
                self._problems.append(f"task {task_id}: its state is lost")
                record = TaskRecord(task_id, lane)
                record.status = Status.PENDING
                record.max_attempts = self._limits.max_attempts
            digest = payload_digest(task.payload)
            told = (record.lane is lane, record.digest, record.scheduled_at)
            if record.digest and told != (True, digest, task.scheduled_at):
                self._problems.append(f"task {task_id}: its record and its state disagree")
            record.lane, record.digest, record.scheduled_at = lane, digest, task.scheduled_at
            self._records[task_id] = record

    def _state_of(self, task_id: str, lane: Lane) -> TaskRecord | None:
        row = self._rows.pop(task_id, None)
        if row is None:
            return None
        try:
            return TaskRecord.decode(task_id, row, _AnyLane(self._lanes, lane))
        except ROW_ERRORS:
            return None

    def _lane(self, agent_id: str, module_name: str) -> Lane:
        if not self._names:
            self._names = {(one.agent_id, one.module_name): one for one in self._lanes.values()}
        lane = self._names.get((agent_id, module_name))
        if lane is None:
            lane = Lane(self._next_lane, agent_id, module_name)
            self._next_lane += 1
            self._lanes[lane.number] = self._names[agent_id, module_name] = lane
        return lane

    def _drop(self, task_id: str, why: str) -> None:
        self._rows.pop(task_id, None)
        self._dropped[task_id] = why
        self._problems.append(f"task {task_id}: {why}")

    # -------------------------------------------------------------------- end

    def finish(self, now: Now) -> Salvage:
        """The book; nothing may be read afterwards."""
        for task_id in list(self._rows):
            self._drop(task_id, "it has no record")
        rows: IdTable[bytes] = IdTable()
        counts = dict.fromkeys(Status, 0)
        for task_id, record in self._records.items():
            rows.put(task_id, record.encode())
            counts[record.status] += 1
        book = TaskBook(self._limits)
        book.restore(self._sequence, self._balanced(counts), self._lanes, self._next_lane, rows)
        for _ in book.restore_indexes(now, ClaimRecovery(self._claims)):
            pass
        return Salvage(book, self._problems, self._dropped, self._pending_again)

    def _balanced(self, counts: Mapping[Status, int]) -> Ledger:
        completed = max(self._ledger.completed, counts[Status.COMPLETED])
        unfinished = counts[Status.PENDING] + counts[Status.INFLIGHT] + counts[Status.DEAD]
        if self._ledger.scheduled != completed + unfinished:
            self._problems.append(
                f"the ledger counts {self._ledger.scheduled} scheduled tasks, "
                f"{completed + unfinished} follow from the records"
            )
        return Ledger(completed + unfinished, completed, max(self._ledger.deleted, 0))


class _AnyLane(Mapping[int, Lane]):
    """The known lanes, and for every other number the lane that the record names."""

    def __init__(self, lanes: Mapping[int, Lane], other: Lane) -> None:
        self._lanes = lanes
        self._other = other

    def __getitem__(self, number: int) -> Lane:
        return self._lanes.get(number, self._other)

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._lanes)


def _decoded(data: bytes) -> Task | None:
    try:
        return Task.FromString(data)
    except DecodeError:
        return None
