"""The auditor: compares records, indexes and ledger, and repairs what it can prove.

Where they disagree, the records are right, because the journal holds the records.
An audit goes through them a thousand at a time, while changes go on between the
steps. It asks whether each record is in exactly the one place that its status
allows, and if not, puts it there. Then it compares numbers. If the places together
hold more tasks than there are records, it looks for the ones without a record and
removes them. The ledger's own counters do not follow from the records, so an
imbalance is reported and not repaired.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dbos_actors.domain.tasks.book import Counters, TaskBook
from dbos_actors.domain.tasks.index import Place
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now

PLACES = {
    Status.PENDING: (Place.WAITING, Place.DELAYED, Place.DUE),
    Status.INFLIGHT: (Place.LEASED,),
    Status.COMPLETED: (Place.RETAINED,),
    Status.DEAD: (Place.DEAD,),
    Status.CANCELLED: (Place.CANCELLED,),
}
EXAMPLES_MAX = 10
"""Ids kept of each kind of finding: enough to look for, whatever has gone wrong."""


@dataclass(slots=True)
class Findings:
    """What an audit has found so far; all zero is good."""

    records: int = 0
    misplaced: int = 0
    strangers: int = 0
    imbalance: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.misplaced or self.strangers or self.imbalance)

    def note(self, task_id: str, what: str) -> None:
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{task_id}: {what}")


class Audit:
    """One pass over a book."""

    def __init__(self, book: TaskBook) -> None:
        self.findings = Findings()
        self._book = book
        self._last = ""

    def step(self, now: Now) -> bool:
        """Audit the next thousand records; False when the pass is over."""
        rows = self._book.rows_after(self._last)
        if rows:
            self._audit_rows(rows, now)
            self._last = rows[-1][0]
            return True
        index = self._book.index
        if sum(index.sizes().values()) != len(self._book) or len(index.due) != len(index.due_order):
            self._remove_strangers()
        counters = self._book.counters()
        self.findings.imbalance = imbalance(counters)
        if self.findings.imbalance:
            self.findings.note("ledger", repr(counters))
        return False

    def _audit_rows(self, rows: list[tuple[str, bytes]], now: Now) -> None:
        book = self._book
        for task_id, row in rows:
            record = book.record(task_id, row)
            found = book.index.places(record)
            self.findings.records += 1
            if len(found) != 1 or found[0] not in PLACES[record.status]:
                self.findings.misplaced += 1
                names = ", ".join(place.name.lower() for place in found) or "nowhere"
                self.findings.note(task_id, f"{record.status.text}, found in {names}")
                book.reindex(record, now)

    def _remove_strangers(self) -> None:
        """Only ever after a defect, hence in one step."""
        index = self._book.index
        heaps = {
            Place.WAITING: index.waiting,
            Place.DELAYED: index.delays,
            Place.LEASED: index.leases,
            Place.RETAINED: index.retained,
            Place.DEAD: index.dead,
            Place.CANCELLED: index.cancelled,
        }
        for place, heap in heaps.items():
            for tick, task_id in list(heap.ascending()):
                if self._is_stranger(task_id, place, tick):
                    heap.discard(tick, task_id)
                    self._stranger(task_id, place)
        for tick, task_id in list(index.due_order.ascending()):
            if self._is_stranger(task_id, Place.DUE, tick):
                index.due_order.discard(tick, task_id)
        for flow, task_id in list(index.due.select()):
            record = self._book.get(task_id)
            if record is None or record.flow is not flow or record.status is not Status.PENDING:
                index.due.discard(flow, task_id)
                self._stranger(task_id, Place.DUE)

    def _is_stranger(self, task_id: str, place: Place, tick: int) -> bool:
        record = self._book.get(task_id)
        if record is None or place not in PLACES[record.status]:
            return True
        if place in (Place.DELAYED, Place.LEASED):
            return self._book.index.deadlines.get(task_id) != tick
        if place in (Place.RETAINED, Place.DEAD, Place.CANCELLED):
            return record.moment != tick
        return record.scheduled_at != tick

    def _stranger(self, task_id: str, place: Place) -> None:
        self.findings.strangers += 1
        self.findings.note(task_id, f"does not belong in {place.name.lower()}")


def imbalance(counters: Counters) -> int:
    """By how much the ledger of `book` is off balance; 0 is right."""
    return counters.scheduled - (
        counters.pending
        + counters.inflight
        + counters.completed
        + counters.dead
        + counters.cancelled
    )
