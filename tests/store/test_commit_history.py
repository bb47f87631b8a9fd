"""How long the history keeps what it may have to send again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dbos_actors.errors import OverloadedError
from dbos_actors.store.batch import Answer, Batch, Form
from dbos_actors.store.commit_history import CommitHistory, HistoryLimits
from dbos_actors.store.resp import pack
from tests.support.submissions import RecordingOwner, RecordingSubmission

EPOCH = 3
REPLAY_S = 5.0


def history(**changes: Any) -> CommitHistory:
    limits: dict[str, Any] = {
        "batch_submissions": 10,
        "batch_bytes": 1_000,
        "queue_bytes": 10_000,
        "replay_s": REPLAY_S,
        "replay_bytes": 10_000,
        "lease_s": 5.0,
        "renewal_s": 1.0,
    }
    return CommitHistory(
        base=None, epoch=EPOCH, limits=HistoryLimits(**{**limits, **changes}), now_s=0.0
    )


def commit(history: CommitHistory, now_s: float) -> Batch:
    """One write, accepted."""
    history.submit(RecordingSubmission(RecordingOwner(), pack("SET", "k", now_s)), now_s)
    batch = history.next_batch(now_s)
    assert batch is not None
    accept(history, batch, now_s)
    return batch


def accept(history: CommitHistory, batch: Batch, now_s: float) -> None:
    value = history.value_at(batch.sequence)
    history.answered(batch, Answer(value, replies=[b"OK"] * batch.command_count), now_s)


def refuse_writes(history: CommitHistory, now_s: float) -> None:
    """What is due at a time is refused, as by a Redis whose disk is full; a read is answered."""
    history.submit(RecordingSubmission(RecordingOwner()), now_s)
    for _ in range(2):
        batch = history.next_batch(now_s)
        assert batch is not None
        if batch.form is Form.CHECK:
            history.answered(batch, Answer(history.key_value, replies=[]), now_s)
            return
        refusal = "MISCONF Errors writing to the AOF file"
        history.answered(batch, Answer(history.key_value, refusal=refusal), now_s)
    raise AssertionError("no check")


def test_a_redis_that_refuses_writes_and_then_dies_is_sent_all_that_it_answered_for() -> None:
    """Catches a history that is trimmed because Redis answered a read."""
    books = history()
    commit(books, 0.1)
    before = books.key_value
    last = commit(books, 0.2)  # Redis has this one in memory, its disk is full
    for second in range(1, 20):
        refuse_writes(books, float(second))
    books.connection_lost()
    effects = books.key_read(before, 20.0)
    assert effects.lost_batches == 0
    assert books.next_batch(20.0) is last


def test_what_is_older_than_the_replay_window_goes_with_the_next_accepted_write() -> None:
    books = history()
    for second in range(20):
        commit(books, float(second))
    assert len(books.window) < 2 * REPLAY_S + 4


@pytest.mark.parametrize(
    ("waiting", "sent"),
    [(1, 1), (32, 32), (33, 32), (64, 32), (65, 33), (101, 51), (1_000, 300)],
)
def test_a_batch_is_a_short_queue_or_half_of_a_long_one(waiting: int, sent: int) -> None:
    limits = {"batch_bytes": 100_000, "queue_bytes": 1_000_000, "replay_bytes": 1_000_000}
    books = history(batch_submissions=300, **limits)
    submissions = [RecordingSubmission(RecordingOwner(), pack("INCR", "n")) for _ in range(waiting)]
    for submission in submissions:
        books.submit(submission, 0.0)
    batch = books.next_batch(0.0)
    assert batch is not None
    assert [submission for submission, _ in batch.entries] == submissions[:sent]
    assert len(books.queue) == waiting - sent


def test_owners_whose_commands_were_fine_keep_their_order_when_a_batch_is_refused() -> None:
    books = history(batch_submissions=2)
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


def test_a_full_history_is_trimmed_by_renewals_and_then_goes_on() -> None:
    books = history(replay_bytes=100_000, queue_bytes=1_000_000)
    for _ in range(2):
        books.submit(RecordingSubmission(RecordingOwner(), pack("SET", "k", "x" * 100_000)), 0.0)
    first = books.next_batch(0.0)
    assert first is not None
    accept(books, first, 0.0)
    now_s = 0.0
    while (batch := books.next_batch(now_s)) is None or batch.form is Form.RENEWAL:
        if batch is None:
            assert books.held
            assert books.wake_s > now_s
            now_s = books.wake_s + 0.001
        else:
            accept(books, batch, now_s)
    assert REPLAY_S <= now_s <= REPLAY_S + 2.0
    assert batch.form is Form.TRANSACTION


MIB = 1 << 20


class Writers:
    """Callers that each send one write after the other, and a Redis that answers in 1 ms."""

    def __init__(self, count: int, size_bytes: int, **limits: Any) -> None:
        self.books = history(batch_submissions=2_000, batch_bytes=8 * MIB, **limits)
        self.value = "x" * size_bytes
        self.now_s = 0.0
        self.stored = 0
        self.waits_s: list[float] = []
        for _ in range(count):
            self.submit()

    def submit(self) -> None:
        submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", self.value))
        self.books.submit(submission, self.now_s)

    def step(self) -> None:
        """One millisecond."""
        batch = self.books.next_batch(self.now_s)
        self.now_s += 0.001
        if batch is None:
            return
        answered = list(batch.entries)
        accept(self.books, batch, self.now_s)
        for _, since_s in answered:
            self.stored += 1
            self.waits_s.append(self.now_s - since_s)
            self.submit()

    def rates(self, seconds: int) -> list[int]:
        """What is stored in each second."""
        rates = []
        for _ in range(seconds):
            before, end_s = self.stored, self.now_s + 1.0
            while self.now_s < end_s:
                self.step()
                assert self.books.window.size_bytes <= self.limit_bytes
            rates.append(self.stored - before)
        return rates

    # The window, and one submission: the last one of a portion may be larger than what is left.
    limit_bytes = 16 * MIB + 4_700


def test_a_small_window_lets_writes_through_evenly() -> None:
    """64 writers of 4 KB. Catches two seconds of everything, and then four of nothing."""
    writers = Writers(64, 4_096, replay_bytes=16 * MIB, queue_bytes=64 * MIB)
    rates = writers.rates(30)
    mean = sum(rates) / len(rates)
    assert min(rates) > 0.8 * mean
    # The rate that the window allows, but for the burst's share.
    assert mean * 4_096 > 0.8 * 16 * MIB / REPLAY_S
    # No longer than the others before it take, and a portion.
    assert max(writers.waits_s) < 64 * 4_200 / (0.8 * 16 * MIB / REPLAY_S) + 0.05


def test_a_window_that_starts_again_is_shared_out_evenly_too() -> None:
    """After a reconnect everything kept stays for the whole time again."""
    writers = Writers(64, 4_096, replay_bytes=16 * MIB, queue_bytes=64 * MIB)
    writers.rates(10)
    writers.books.connection_lost()
    writers.books.key_read(writers.books.key_value, writers.now_s)
    rates = writers.rates(5)
    assert min(rates) > 0.5 * sum(rates) / len(rates)
    assert min(writers.rates(10)[1:]) > 400


def test_who_cannot_be_served_in_time_is_refused_at_once_and_others_are_not() -> None:
    writers = Writers(64, 4_096, replay_bytes=16 * MIB, queue_bytes=64 * MIB)
    writers.rates(3)
    books = writers.books
    while not books.held:
        writers.step()
    owner = RecordingOwner()
    now_s = writers.now_s
    write = pack("SET", "k", writers.value)
    with pytest.raises(OverloadedError, match="DBOS_REPLAY_BYTES"):
        books.submit(RecordingSubmission(owner, write, deadline_s=now_s + 0.01), now_s)
    books.submit(RecordingSubmission(owner, write, deadline_s=now_s + 1.0), now_s)
    more = [RecordingSubmission(owner, write, deadline_s=now_s + 5.0) for _ in range(10_000)]
    with pytest.raises(OverloadedError, match="DBOS_REPLAY_BYTES"):
        list(map(books.submit, more, itertools.repeat(now_s)))
    assert books.queue.size_bytes / (7 / 8 * 16 * MIB / REPLAY_S) == pytest.approx(5.0, rel=0.02)
    # A step of something longer has no deadline, and must not be refused half-way.
    books.submit(RecordingSubmission(owner, write), now_s)


def test_reads_do_not_wait_for_a_window_that_only_holds_up_writes() -> None:
    books = history(replay_bytes=100_000, queue_bytes=1_000_000)
    books.submit(RecordingSubmission(RecordingOwner(), pack("SET", "k", "x" * 100_000)), 0.0)
    first = books.next_batch(0.0)
    assert first is not None
    accept(books, first, 0.0)
    books.submit(RecordingSubmission(RecordingOwner()), 0.0)
    batch = books.next_batch(0.0)
    assert batch is not None
    assert batch.form is Form.CHECK
