"""What is salvaged from a damaged journal, snapshot or record, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dbos_actors.api.messages import Task
from dbos_actors.domain.tasks.audit import Audit
from dbos_actors.domain.tasks.salvage import Salvage, Salvager
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.domain.tasks.states import Status
from tests.domain.tasks.helpers import Driver, durable_state, recovered


class Parts:
    """What a book with ten tasks has in the store, to be damaged."""

    def __init__(self, *, snapshot_at: int | None = None) -> None:
        """``snapshot_at``: after so many journal entries."""
        self.driver = driver = Driver()
        self.sequence = 0
        self.chunks: list[bytes] = []
        for i in range(10):
            driver.schedule(f"t{i}", agent_id=f"a{i % 3}", scheduled_at=i + 1, payload=b"p")
            if len(driver.journal) == snapshot_at:
                self.sequence = driver.book.sequence
                self.chunks = list(snapshot_chunks(driver.book, rows_per_chunk=1))
        tokens = {record.task_id: record.lease_token for record in driver.lease(limit=4)}
        for task_id, token in list(tokens.items())[:2]:
            driver.ack(task_id, token)
        driver.nack("t9", delay_s=60)
        self.entries: dict[int, Sequence[bytes]] = {
            number: (b"e", entry)
            for number, entry in enumerate(driver.journal, 1)
            if number > self.sequence
        }
        self.records = {
            f"t{i}".encode(): Task(
                id=f"t{i}",
                agent_id=f"a{i % 3}",
                module_name="ping",
                scheduled_at=i + 1,
                payload=b"p",
            ).SerializeToString()
            for i in range(10)
        }

    def salvage(self) -> Salvage:
        salvager = Salvager()
        salvager.read_snapshot(self.chunks, self.sequence)
        salvager.read_journal((b"%d-0" % n, fields) for n, fields in self.entries.items())
        salvager.read_records(self.records.items())
        found = salvager.finish(self.driver.now)
        book = found.book
        audit = Audit(book)
        while audit.step(self.driver.now):
            pass
        assert audit.findings.clean, audit.findings
        # What is written instead is read by a server, and the journal goes on after it.
        again = recovered(found.snapshot(), [], self.driver.now)
        assert durable_state(again) == durable_state(book)
        assert book.sequence >= max(self.entries, default=0)
        return found


def statuses(found: Salvage) -> dict[str, Status]:
    return {
        task_id: record.status
        for task_id in (f"t{i}" for i in range(10))
        if (record := found.book.get(task_id)) is not None
    }


@pytest.mark.parametrize("snapshot_at", [None, 4, 10])
def test_an_undamaged_book_is_salvaged_in_full_without_findings(snapshot_at: int | None) -> None:
    parts = Parts(snapshot_at=snapshot_at)
    found = parts.salvage()
    assert (found.problems, found.dropped, found.pending_again) == ([], {}, [])
    assert durable_state(found.book) == durable_state(parts.driver.book)
    assert len(found.book.claims) == len(parts.driver.book.claims)


def test_a_missing_entry_costs_the_states_that_only_it_had() -> None:
    parts = Parts()
    whole = statuses(parts.salvage())
    (acked,) = (n for n, (_, entry) in parts.entries.items() if n == 12)
    del parts.entries[acked]
    found = parts.salvage()
    assert found.problems[0] == "journal entries 12 to 12 are missing"
    changed = {task_id for task_id, status in statuses(found).items() if whole[task_id] != status}
    assert len(changed) == 1
    assert [statuses(found)[task_id] for task_id in changed] == [Status.INFLIGHT]
    assert not found.dropped


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x01" * 40])
def test_an_undecodable_entry_counts_as_missing(garbage: bytes) -> None:
    parts = Parts()
    parts.entries[8] = (b"e", garbage)
    found = parts.salvage()
    assert found.problems[0].startswith("journal entry 8-0: ")
    assert found.pending_again == ["t7"]
    assert statuses(found)["t7"] is Status.PENDING
    assert len(found.book) == 10


def test_a_flow_that_a_lost_entry_named_is_taken_from_the_records() -> None:
    parts = Parts(snapshot_at=4)
    parts.chunks = [chunk for chunk in parts.chunks if chunk[:1] != b"L"]
    found = parts.salvage()
    assert any("chunks are missing" in problem for problem in found.problems)
    assert {found.book.get(f"t{i}").agent_id for i in range(3)} == {"a0", "a1", "a2"}  # type: ignore[union-attr]
    assert len(found.book) == 10


def test_without_journal_and_snapshot_every_task_is_pending_again() -> None:
    parts = Parts()
    parts.entries = {}
    found = parts.salvage()
    assert set(statuses(found).values()) == {Status.PENDING}
    assert len(found.pending_again) == 10
    assert found.book.counters().scheduled == 10


def test_a_damaged_snapshot_header_leaves_the_rows() -> None:
    parts = Parts(snapshot_at=10)
    parts.chunks[0] = b"H?"
    found = parts.salvage()
    assert len(statuses(found)) == 10
    assert "the snapshot has no header" in found.problems
    assert not found.pending_again


def test_a_task_without_a_readable_record_is_dropped_and_named() -> None:
    parts = Parts()
    parts.records[b"t0"] = b"\xff\xff"
    parts.records[b"\xff"] = b""
    del parts.records[b"t1"]
    found = parts.salvage()
    assert found.dropped == {
        "t0": "its record cannot be read",
        "t1": "it has no record",
        "\ufffd": "its record cannot be read",
    }
    assert len(found.book) == 8


def test_where_record_and_state_disagree_the_record_is_taken() -> None:
    parts = Parts()
    parts.records[b"t5"] = Task(
        id="t5", agent_id="new", module_name="ping", scheduled_at=77, payload=b"other"
    ).SerializeToString()
    found = parts.salvage()
    record = found.book.get("t5")
    assert record is not None
    assert (record.agent_id, record.scheduled_at) == ("new", 77)
    assert "task t5: its record and its state disagree" in found.problems
