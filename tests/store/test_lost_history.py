"""A Redis that came back without its last writes, older or empty: what is sent again."""

from __future__ import annotations

import trio

from dbos_actors.errors import UnavailableError
from dbos_actors.store import StoreState, pack
from tests.store.breakable import connector_to, opened, until
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer

# -------------------------------------------------------- a lost last second


async def test_what_redis_lost_of_its_last_second_is_sent_again(valkey: ValkeyServer) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey)) as store:
        mark = valkey.aof_mark()
        for number in range(20):
            submission = RecordingSubmission(owner, pack("RPUSH", "l", number))
            store.submit(submission)
            await submission.wait()
        valkey.lose_writes_since(mark)
        assert valkey.execute("LLEN", "l") == 0
        last = RecordingSubmission(owner, pack("RPUSH", "l", 20))
        store.submit(last)
        await last.wait()
        assert await store.read(pack("LLEN", "l")) == [21]
        assert store.statistics().batches_lost == 0
    assert valkey.execute("LRANGE", "l", 0, -1) == [b"%d" % i for i in range(21)]
    assert not owner.refusals


async def test_any_part_of_the_history_may_be_lost_and_is_sent_again(valkey: ValkeyServer) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey)) as store:
        marks = [valkey.aof_mark()]
        for number in range(6):
            submission = RecordingSubmission(owner, pack("RPUSH", "l", number))
            store.submit(submission)
            await submission.wait()
            marks.append(valkey.aof_mark())
        step = (marks[-1] - marks[0]) // 23
        for mark in range(marks[0], marks[-1], step):
            valkey.lose_writes_since(mark)
            barrier = RecordingSubmission(owner)
            store.submit(barrier)
            await barrier.wait()
            assert valkey.execute("LRANGE", "l", 0, -1) == [b"%d" % i for i in range(6)]


async def test_the_taking_of_ownership_itself_may_be_lost(valkey: ValkeyServer) -> None:
    owner = RecordingOwner()
    mark = valkey.aof_mark()
    async with opened(connector_to(valkey)) as store:
        first = RecordingSubmission(owner, pack("RPUSH", "l", 1))
        store.submit(first)
        await first.wait()
        valkey.lose_writes_since(mark)
        second = RecordingSubmission(owner, pack("RPUSH", "l", 2))
        store.submit(second)
        await second.wait()
        assert valkey.execute("LRANGE", "l", 0, -1) == [b"1", b"2"]
        assert valkey.execute("EXISTS", store.keys.owner) == 1


async def test_reads_never_see_a_store_that_lacks_what_was_acknowledged(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey), renewal_s=60.0, lease_s=300.0) as store:
        await store.read(pack("PING"))  # the read connection stands
        mark = valkey.aof_mark()
        submission = RecordingSubmission(owner, pack("SET", "k", "v"))
        store.submit(submission)
        await submission.wait()
        # The committer is idle and does not notice; the read finds out.
        valkey.lose_writes_since(mark)
        with trio.fail_after(5):
            assert await store.read(pack("GET", "k")) == [b"v"]


async def test_a_redis_older_than_what_is_kept_makes_everyone_reload(valkey: ValkeyServer) -> None:
    owner = RecordingOwner()
    reloads: list[None] = []
    async with opened(connector_to(valkey), replay_s=0.0, renewal_s=0.05) as store:
        store.on_reload(lambda: reloads.append(None))
        mark = valkey.aof_mark()
        for number in range(5):
            submission = RecordingSubmission(owner, pack("RPUSH", "l", number))
            store.submit(submission)
            await submission.wait()
        valkey.kill()
        valkey.cut_aof(mark)
        with trio.fail_after(5):
            await store.state.wait_value(StoreState.AWAY)
        waiting = RecordingSubmission(owner, pack("RPUSH", "l", 9))
        store.submit(waiting)
        valkey.start()
        assert isinstance(await waiting.wait(), UnavailableError)
        assert len(owner.refusals) == 1
        assert reloads == [None]
        assert store.statistics().batches_lost >= 4
        after = RecordingSubmission(owner, pack("RPUSH", "l", 10))
        store.submit(after)
        await after.wait()
        kept = valkey.execute("LRANGE", "l", 0, -1)
        assert kept[-1] == b"10"
        assert b"9" not in kept


async def test_a_flushed_redis_is_noticed_while_connected(valkey: ValkeyServer) -> None:
    async with opened(connector_to(valkey), replay_s=0.0, renewal_s=0.05) as store:
        for _ in range(3):
            written = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
            store.submit(written)
            await written.wait()
        # Trimmed by a renewal: nothing is kept that could be sent again.
        await until(lambda: not store.statistics().replayable_batches)
        reloaded = trio.Event()
        store.on_reload(reloaded.set)
        valkey.execute("FLUSHALL")
        with trio.fail_after(5):
            await reloaded.wait()
            assert await store.read(pack("GET", "k")) == [None]
        submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
        store.submit(submission)
        assert await submission.wait() == [b"OK"]
