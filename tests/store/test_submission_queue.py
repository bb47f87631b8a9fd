"""The queue of what waits to be committed, and what a value of the commit key stands for."""

from __future__ import annotations

import math

import pytest

from dbos_actors.errors import FencedError, UnusableStoreError
from dbos_actors.store import pack
from dbos_actors.store.commit_key import BASE, OLDER, CommitKey
from dbos_actors.store.submission_queue import ENTRY_BYTES, WHOLE_QUEUE, SubmissionQueue
from tests.support.submissions import RecordingOwner, RecordingSubmission

COMMAND = pack("SET", "k", "v")


def queued(*submissions: RecordingSubmission) -> SubmissionQueue:
    queue = SubmissionQueue()
    for at_s, submission in enumerate(submissions):
        queue.append((submission, float(at_s)), submission.size_bytes + ENTRY_BYTES)
    return queue


def write(
    owner: RecordingOwner | None = None, *, frees_memory: bool = False
) -> RecordingSubmission:
    return RecordingSubmission(owner or RecordingOwner(), COMMAND, frees_memory=frees_memory)


@pytest.mark.parametrize(
    ("waiting", "taken"), [(1, 1), (WHOLE_QUEUE, WHOLE_QUEUE), (100, 50), (2_001, 1_000)]
)
def test_a_short_queue_is_taken_whole_and_of_a_long_one_half_up_to_the_limit(
    waiting: int, taken: int
) -> None:
    queue = queued(*[write() for _ in range(waiting)])
    entries, freeing = queue.cut(batch_bytes=1_000_000, allowed_bytes=math.inf, submissions=1_000)
    assert [at_s for _, at_s in entries] == list(range(taken))
    assert freeing is False
    assert len(queue) == waiting - taken
    assert queue.size_bytes == (waiting - taken) * (len(COMMAND) + ENTRY_BYTES)


def test_what_frees_memory_shares_no_batch_with_what_needs_some_but_barriers_join_either() -> None:
    barrier = RecordingSubmission(RecordingOwner())
    queue = queued(write(frees_memory=True), barrier, write())
    entries, freeing = queue.cut(batch_bytes=1_000, allowed_bytes=1_000, submissions=10)
    assert (len(entries), freeing) == (2, True)
    entries, freeing = queue.cut(batch_bytes=1_000, allowed_bytes=1_000, submissions=10)
    assert (len(entries), freeing) == (1, False)
    assert queue.size_bytes == 0
    assert queue.oldest_s == math.inf


def test_what_is_put_back_comes_first_and_what_an_owner_has_queued_can_be_taken_out() -> None:
    one, two = RecordingOwner("one"), RecordingOwner("two")
    queue = queued(write(one), write(two), write(one))
    entries, _ = queue.cut(batch_bytes=len(COMMAND), allowed_bytes=math.inf, submissions=10)
    queue.put_back(entries)
    assert [at_s for _, at_s in queue] == [0, 1, 2]
    assert set(queue.writers()) == {id(one), id(two)}
    assert [at_s for _, at_s in queue.remove_of([id(one)])] == [0, 2]
    assert queue.size_bytes == len(COMMAND) + ENTRY_BYTES
    assert [at_s for _, at_s in queue.clear()] == [1]
    assert queue.size_bytes == 0


@pytest.mark.parametrize(
    ("value", "position"), [(b"7:12", 12), (b"3:40", BASE), (b"3:39", OLDER), (None, OLDER)]
)
def test_a_commit_key_tells_how_far_the_store_has_come(value: bytes | None, position: int) -> None:
    assert CommitKey("commit", epoch=7, base=b"3:40").position_of(value) == position


@pytest.mark.parametrize("value", [b"8:0", b"3:41", b"5:1"])
def test_a_commit_key_of_another_server_fences_this_one(value: bytes) -> None:
    with pytest.raises(FencedError, match=value.decode()):
        CommitKey("commit", epoch=7, base=b"3:40").position_of(value)


@pytest.mark.parametrize("value", [b"", b"7", b"7:x", b"no"])
def test_a_commit_key_in_another_form_is_damaged(value: bytes) -> None:
    with pytest.raises(UnusableStoreError, match="commit holds"):
        CommitKey("commit", epoch=7, base=b"3:40").position_of(value)
