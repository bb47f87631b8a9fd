"""How long the ledger keeps what it may have to send again."""

from __future__ import annotations

from typing import Any

import pytest

from dbos_actors.store.batch import Answer, Batch, Form
from dbos_actors.store.ledger import Ledger, LedgerLimits
from dbos_actors.store.resp import pack
from tests.support.submissions import RecordingOwner, RecordingSubmission

EPOCH = 3
KEPT_S = 5.0


def ledger(**changes: Any) -> Ledger:
    limits: dict[str, Any] = {
        "batch_submissions": 10,
        "batch_bytes": 1_000,
        "queue_bytes": 10_000,
        "kept_s": KEPT_S,
        "kept_bytes": 10_000,
        "lease_s": 5.0,
        "renewal_s": 1.0,
    }
    return Ledger(base=None, epoch=EPOCH, limits=LedgerLimits(**{**limits, **changes}), now_s=0.0)


def commit(ledger: Ledger, now_s: float) -> Batch:
    """One write, accepted."""
    ledger.submit(RecordingSubmission(RecordingOwner(), pack("SET", "k", now_s)), now_s)
    batch = ledger.next_batch(now_s)
    assert batch is not None
    accept(ledger, batch, now_s)
    return batch


def accept(ledger: Ledger, batch: Batch, now_s: float) -> None:
    value = ledger.value_at(batch.sequence)
    ledger.answered(batch, Answer(value, replies=[b"OK"] * batch.command_count), now_s)


def refuse_writes(ledger: Ledger, now_s: float) -> None:
    """What is due at a time is refused, as by a Redis whose disk is full; a read is answered."""
    ledger.submit(RecordingSubmission(RecordingOwner()), now_s)
    for _ in range(2):
        batch = ledger.next_batch(now_s)
        assert batch is not None
        if batch.form is Form.CHECK:
            ledger.answered(batch, Answer(ledger.key_value, replies=[]), now_s)
            return
        refusal = "MISCONF Errors writing to the AOF file"
        ledger.answered(batch, Answer(ledger.key_value, refusal=refusal), now_s)
    raise AssertionError("no check")


def test_a_redis_that_refuses_writes_and_then_dies_is_sent_all_that_it_answered_for() -> None:
    """Catches a history that is trimmed because Redis answered a read."""
    books = ledger()
    commit(books, 0.1)
    before = books.key_value
    last = commit(books, 0.2)  # Redis has this one in memory, its disk is full
    for second in range(1, 20):
        refuse_writes(books, float(second))
    books.connection_lost()
    effects = books.key_read(before, 20.0)
    assert effects.lost_batches == 0
    assert books.next_batch(20.0) is last


def test_what_is_older_than_the_time_of_keeping_goes_with_the_next_accepted_write() -> None:
    books = ledger()
    for second in range(20):
        commit(books, float(second))
    assert books.kept_batches < 2 * KEPT_S + 4


@pytest.mark.parametrize(
    ("waiting", "sent"),
    [(1, 1), (32, 32), (33, 32), (64, 32), (65, 33), (101, 51), (1_000, 300)],
)
def test_a_batch_is_a_short_queue_or_half_of_a_long_one(waiting: int, sent: int) -> None:
    books = ledger(batch_submissions=300, batch_bytes=100_000, queue_bytes=1_000_000)
    submissions = [RecordingSubmission(RecordingOwner(), pack("INCR", "n")) for _ in range(waiting)]
    for submission in submissions:
        books.submit(submission, 0.0)
    batch = books.next_batch(0.0)
    assert batch is not None
    assert [submission for submission, _ in batch.entries] == submissions[:sent]
    assert books.queued_submissions == waiting - sent


def test_the_innocent_of_a_refused_batch_stay_before_what_they_submitted_later() -> None:
    books = ledger(batch_submissions=2)
    guilty, innocent = RecordingOwner(), RecordingOwner()
    refused = RecordingSubmission(guilty, pack("SET", "k", "v"))
    first = RecordingSubmission(innocent, pack("DEL", "k"))
    later = RecordingSubmission(innocent, pack("SET", "k", "w"))
    for submission in (refused, first, later):
        books.submit(submission, 0.0)
    batch = books.next_batch(0.0)
    assert batch is not None
    answer = Answer(books.key_value, refusal="OOM", refused_commands=(0,))
    effects = books.answered(batch, answer, 0.1)
    assert [submission for submission, _ in effects.refused] == [refused]
    again = books.next_batch(0.1)
    assert again is not None
    assert [submission for submission, _ in again.entries] == [first, later]


def test_a_full_history_is_trimmed_by_early_renewals_and_then_goes_on() -> None:
    books = ledger(kept_bytes=100_000, queue_bytes=1_000_000, renewal_s=1_000.0)
    for _ in range(2):
        books.submit(RecordingSubmission(RecordingOwner(), pack("SET", "k", "x" * 100_000)), 0.0)
    first = books.next_batch(0.0)
    assert first is not None
    accept(books, first, 0.0)
    now_s = 0.05
    assert books.next_batch(now_s) is None
    renewals = 0
    while (batch := books.next_batch(now_s)) is None or batch.form is Form.RENEWAL:
        if batch is not None:
            renewals += 1
            accept(books, batch, now_s)
        now_s += 0.05
        assert now_s < KEPT_S + 1.0
    assert now_s >= KEPT_S
    assert renewals > 10
    assert batch.form is Form.TRANSACTION
