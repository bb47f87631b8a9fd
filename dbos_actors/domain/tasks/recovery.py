"""A task book from a snapshot and the journal after it.

The caller passes chunks and entries in the order in which they were written. Then `build` makes the
indexes, a thousand rows at a time. Until then rows are kept as bytes. A million tasks take one
second to read and a few seconds to index.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

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
from dbos_actors.domain.tasks.record import ROW_ERRORS
from dbos_actors.domain.tasks.timers import Now

_NOTHING = Ledger()


class Recovery:
    """The state read back so far."""

    def __init__(self, limits: TaskLimits | None = None) -> None:
        self.sequence = 0  # of the last entry contained
        self.book = TaskBook(limits)  # usable when `build` has come to its end
        self._ledger = Ledger()
        self._flows: dict[int, Flow] = {}
        self._next_flow = 1
        self._claims: deque[Claim] = deque(maxlen=CLAIMS_MAX)
        self._rows: IdTable[bytes] = IdTable()
        self._chunks = 0
        self.snapshot_bytes = 0
        self.journal_bytes = 0  # of the entries after the snapshot
        self._complete = True  # no snapshot at all is a complete one

    def load_chunk(self, chunk: bytes) -> None:
        """Take the next chunk of the snapshot.

        :raises JournalError: damaged, out of order, or of another format.
        """
        item = decode_chunk(chunk)
        self.snapshot_bytes += len(chunk)
        if isinstance(item, Header):
            if self._chunks:
                raise JournalError("a second snapshot header")
            self._complete = False
            self.sequence, self._ledger = item.sequence, item.ledger
            self._next_flow = item.next_flow
        elif self._complete:
            raise JournalError("a snapshot chunk outside header and end")
        elif isinstance(item, int):
            if item != self._chunks:
                raise JournalError(f"the snapshot has {self._chunks} chunks, {item} were written")
            self._complete = True
        else:
            for part in item:
                if isinstance(part, Flow):
                    self._flows[part.number] = part
                elif isinstance(part, Claim):
                    self._claims.append(part)
                else:
                    task_id, row = part
                    self._rows.put(task_id, row)
        self._chunks += 1

    def expect(self, sequence: int) -> None:
        """Check that the snapshot read is the one of ``sequence``; 0 for none.

        :raises JournalError: it is not, or it was cut off.
        """
        if not self._complete:
            raise JournalError("the snapshot has no end")
        if self.sequence != sequence:
            raise JournalError(
                f"the snapshot ends with journal entry {self.sequence}, {sequence} was expected"
            )

    def replay(self, entry: bytes) -> None:
        """Take the next journal entry; one the snapshot already contains is passed over.

        :raises JournalError: damaged, of another format, or an entry before it is missing.
        """
        if not self._complete:
            raise JournalError("the snapshot has no end")
        sequence, added, flows, rows, claims = decode_entry(entry)
        if sequence <= self.sequence:
            return
        if sequence != self.sequence + 1:
            raise JournalError(f"journal entry {self.sequence + 1} is missing, {sequence} is next")
        self.sequence = sequence
        self.journal_bytes += len(entry)
        if added != _NOTHING:
            self._ledger = self._ledger.plus(added)
        for flow in flows:
            self._flows[flow.number] = flow
            self._next_flow = max(self._next_flow, flow.number + 1)
        self._claims.extend(claims)
        for task_id, row in rows:
            if row:
                self._rows.put(task_id, row)
            else:
                self._rows.pop(task_id)

    def build(self, now: Now) -> Iterator[None]:
        """Make `book`, a thousand rows (2 ms) at each step.

        :raises JournalError: the snapshot was cut off, or a row names an unknown flow.
        """
        if not self._complete:
            raise JournalError("the snapshot has no end")
        book = self.book
        book.restore(self.sequence, self._ledger, self._flows, self._next_flow, self._rows)
        try:
            yield from book.restore_indexes(now, ClaimRecovery(self._claims))
        except ROW_ERRORS as error:
            raise JournalError(f"a row is damaged or of an unknown flow: {error!r}") from error
