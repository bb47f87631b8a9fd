"""A task book from what is readable of a damaged journal, snapshot and records.

`recovery` refuses anything that is not exactly what was written, since a server must not guess.
A repair is asked for by an operator, who wants the best that can be had. The rules:

- A journal entry carries the states of its tasks, not commands. So entries after
  a gap are right about their tasks; a task that only a lost entry touched is
  taken in the state it had before, and may be delivered once more than it should.
- A task whose record (payload, agent, module) cannot be read, or is missing, is
  dropped: there is nothing to hand out.
- A task whose record is there and whose state is lost is pending again, with its
  attempts reset. It may have been completed before. Delivering it once too often does less
  harm than losing it.
- Where record and state disagree about agent, module, payload or time, the
  record is right, since it is what workers get.
- The ledger's completed count is kept, and the others follow from the records.

`Readable` takes snapshot and journal, piece by piece, and says of each what is wrong with it.
`Salvager` adds the records and makes the book, in steps. Pure: bytes come in, a book and a list of
findings go out. Nothing is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from dbos_actors.api.messages import Task
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.claims import CLAIMS_MAX, Claim, ClaimRecovery
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.id_table import IdTable
from dbos_actors.domain.tasks.journal import (
    Header,
    JournalError,
    Ledger,
    decode_chunk,
    decode_entry,
)
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.record import ROW_ERRORS, TaskRecord, payload_digest
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now

_STEP = 1_000  # rows: 5 ms


class Readable:
    """What is readable of a snapshot and of the journal after it."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.flows: dict[int, Flow] = {}
        self.next_flow = 1
        self.claims: deque[Claim] = deque(maxlen=CLAIMS_MAX)
        self.ledger = Ledger()
        self.sequence = 0
        """Of the last entry read, or the highest one that was named."""
        self._chunks = 0
        self._header: Header | None = None
        self._has_end = False

    def load_chunk(self, data: bytes) -> str | None:
        """Take the next chunk of the snapshot; returns what is wrong with it, or None."""
        number = self._chunks
        self._chunks += 1
        try:
            item = decode_chunk(data)
        except JournalError as error:
            return f"snapshot chunk {number}: {error}"
        if isinstance(item, Header):
            self._header = item
            self.sequence, self.ledger = item.sequence, item.ledger
            self.next_flow = max(self.next_flow, item.next_flow)
        elif isinstance(item, int):
            self._has_end = item == number
        else:
            self._take(item)
        return None

    def end_snapshot(self, sequence: int | None) -> list[str]:
        """The snapshot is read; ``sequence`` is what its key says, None if that is unreadable.

        Returns what is wrong with the snapshot as a whole.
        """
        problems = []
        if self._chunks and self._header is None:
            problems.append("the snapshot has no header")
        if self._chunks and not self._has_end:
            problems.append("the snapshot has no end, or chunks are missing")
        said = 0 if self._header is None else self._header.sequence
        if sequence != said:
            problems.append(f"the snapshot ends with journal entry {said}, its key says {sequence}")
        self.sequence = max(said, sequence or 0)
        return problems

    def replay(self, entry_id: bytes, fields: Sequence[bytes]) -> list[str]:
        """Take the next entry of the stream; returns what is wrong there."""
        name = entry_id.decode(errors="replace")
        number = int(entry_id.partition(b"-")[0])
        if number <= self.sequence:
            return []
        problems = []
        if number != self.sequence + 1:
            problems.append(f"journal entries {self.sequence + 1} to {number - 1} are missing")
        self.sequence = number
        try:
            entry = decode_entry(fields[1] if len(fields) > 1 else b"")
        except JournalError as error:
            return [*problems, f"journal entry {name}: {error}"]
        if entry_id != b"%d-0" % entry.sequence:
            problems.append(f"journal entry {name} calls itself {entry.sequence}")
        self.ledger = self.ledger.plus(entry.added)
        self._take(entry.flows)
        self._take(entry.claims)
        for task_id, row in entry.rows:
            if row:
                self.rows[task_id] = row
            else:
                self.rows.pop(task_id, None)
        return problems

    def _take(self, items: Sequence[Flow | Claim | tuple[str, bytes]]) -> None:
        for item in items:
            if isinstance(item, Flow):
                self.flows[item.number] = item
                self.next_flow = max(self.next_flow, item.number + 1)
            elif isinstance(item, Claim):
                self.claims.append(item)
            else:
                task_id, row = item
                self.rows[task_id] = row

    def record(self, task_id: str, other: Flow | None = None) -> TaskRecord | None:
        """A task's state; None if there is none, or none that can be read.

        ``other`` is the flow of a state that names an unknown one.
        """
        row = self.rows.get(task_id)
        if row is None:
            return None
        flows = self.flows if other is None else _AnyFlow(self.flows, other)
        try:
            record = TaskRecord.decode(task_id, row, flows)
        except ROW_ERRORS:
            return None
        return None if record.status is Status.GONE else record

    def ids(self, step: int) -> Iterator[list[str]]:
        """The ids of all states there are now, in steps."""
        ids = list(self.rows)
        for start in range(0, len(ids), step):
            yield ids[start : start + step]


def disagree(state: TaskRecord, record: Task) -> bool:
    """Whether a task's state tells something else than its record, which is right."""
    told = (state.agent_id, state.module_name, state.digest, state.scheduled_at)
    return bool(state.digest) and told != (
        record.agent_id,
        record.module_name,
        payload_digest(record.payload),
        record.scheduled_at,
    )


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
        return list(snapshot_chunks(self.book))


class Salvager:
    """Collects what is readable: first the snapshot, then the journal, then the records."""

    def __init__(
        self, limits: TaskLimits | None = None, *, readable: Readable | None = None
    ) -> None:
        """``readable``: snapshot and journal, where they have been read already."""
        self._limits = limits or TaskLimits()
        self._problems: list[str] = []
        self._readable = readable or Readable()
        self._names: dict[tuple[str, str], Flow] = {}
        self._rows: IdTable[bytes] = IdTable()
        self._counts = dict.fromkeys(Status, 0)
        self._dropped: dict[str, str] = {}
        self._pending_again: list[str] = []

    def read_snapshot(self, chunks: Iterable[bytes], sequence: int | None) -> None:
        """Take the chunks of the snapshot in force.

        :param sequence: what the snapshot's key says it ends with; None if that is unreadable.
        """
        for chunk in chunks:
            problem = self._readable.load_chunk(chunk)
            if problem is not None:
                self._problems.append(problem)
        self._problems += self._readable.end_snapshot(sequence)

    def read_journal(self, entries: Iterable[tuple[bytes, Sequence[bytes]]]) -> None:
        """Take the journal's entries as the stream has them: id and fields, in its order."""
        for entry_id, fields in entries:
            self._problems += self._readable.replay(entry_id, fields)

    def read_records(self, kept: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the tasks as they were scheduled: id and bytes. May be called several times.

        The same task again changes nothing.
        """
        for key, data in kept:
            task_id = key.decode(errors="replace")
            if task_id in self._rows:
                continue
            task = _decoded(data)
            if task is None or task.id != task_id:
                self._drop(task_id, "its record cannot be read")
                continue
            flow = self._flow(task.agent_id, task.module_name)
            record = self._readable.record(task_id, flow)
            self._readable.rows.pop(task_id, None)
            if record is None:
                self._pending_again.append(task_id)
                self._problems.append(f"task {task_id}: its state is lost")
                record = TaskRecord(task_id, flow)
                record.status = Status.PENDING
                record.max_attempts = self._limits.max_attempts
            if disagree(record, task):
                self._problems.append(f"task {task_id}: its record and its state disagree")
            record.flow, record.scheduled_at = flow, task.scheduled_at
            record.digest = payload_digest(task.payload)
            self._rows.put(task_id, record.encode())
            self._counts[record.status] += 1

    def _flow(self, agent_id: str, module_name: str) -> Flow:
        readable = self._readable
        if not self._names:
            self._names = {(one.agent_id, one.module_name): one for one in readable.flows.values()}
        flow = self._names.get((agent_id, module_name))
        if flow is None:
            flow = Flow(readable.next_flow, agent_id, module_name)
            readable.next_flow += 1
            readable.flows[flow.number] = self._names[agent_id, module_name] = flow
        return flow

    def _drop(self, task_id: str, why: str) -> None:
        self._readable.rows.pop(task_id, None)
        self._dropped[task_id] = why
        self._problems.append(f"task {task_id}: {why}")

    # -------------------------------------------------------------------- end

    def finish(self, now: Now) -> Salvage:
        """The book; nothing may be read afterwards."""
        *_, found = self.steps(now)
        assert found is not None  # the last one
        return found

    def steps(self, now: Now) -> Iterator[Salvage | None]:
        """`finish` in steps of a few milliseconds: None, and at last what it returns."""
        for task_ids in self._readable.ids(_STEP):
            for task_id in task_ids:
                self._drop(task_id, "it has no record")
            yield None
        readable = self._readable
        book = TaskBook(self._limits)
        ledger = self._balanced()
        book.restore(readable.sequence, ledger, readable.flows, readable.next_flow, self._rows)
        for _ in book.restore_indexes(now, ClaimRecovery(readable.claims)):
            yield None
        yield Salvage(book, self._problems, self._dropped, self._pending_again)

    def _balanced(self) -> Ledger:
        ledger, counts = self._readable.ledger, self._counts
        completed = max(ledger.completed, counts[Status.COMPLETED])
        others = sum(count for status, count in counts.items() if status is not Status.COMPLETED)
        if ledger.scheduled != completed + others:
            self._problems.append(
                f"the ledger counts {ledger.scheduled} scheduled tasks, "
                f"{completed + others} follow from the records"
            )
        return Ledger(completed + others, completed, max(ledger.deleted, 0))


class _AnyFlow(Mapping[int, Flow]):
    """The known flows, and for every other number the flow that the record names."""

    def __init__(self, flows: Mapping[int, Flow], other: Flow) -> None:
        self._flows = flows
        self._other = other

    def __getitem__(self, number: int) -> Flow:
        return self._flows.get(number, self._other)

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._flows)


def _decoded(data: bytes) -> Task | None:
    try:
        return Task.FromString(data)
    except DecodeError:
        return None
