"""Connections that break at every byte, a Redis killed at every step, lost seconds, stalls."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

from dbos_actors.clock import SystemClock
from dbos_actors.errors import FencedError, OwnedElsewhereError, UnavailableError
from dbos_actors.store import Store, StoreSettings, StoreState, connector_for, open_store, pack
from tests.support.faults import BreakingConnector, BreakingStream
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer

Direction = Literal["sent", "received"]


def opened(
    connector: BreakingConnector, *, seed: int = 1, **settings: Any
) -> AbstractAsyncContextManager[Store]:
    """The store behind ``connector``, quick to reconnect."""
    return open_store(
        connector,
        settings=StoreSettings(**{"backoff_s": 0.002, "backoff_max_s": 0.02, **settings}),
        clock=SystemClock(),
        random=random.Random(seed),
    )


def connector_to(valkey: ValkeyServer) -> BreakingConnector:
    return BreakingConnector(connector_for(valkey.address))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds, at most five seconds."""
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


@pytest.fixture
def quick_valkey(start_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    """For hundreds of rounds without a crash: nothing waits for the disk."""
    return start_valkey(appendfsync="no")


class History:
    """A few submissions that leave their numbers in a list, in three commits of two forms."""

    def __init__(self, name: str) -> None:
        self.list = f"list:{name}"
        self.submissions: list[RecordingSubmission] = []
        self._owners = [RecordingOwner("a"), RecordingOwner("b")]

    def submission(self, *, barrier: bool = False, frees_memory: bool = False) -> None:
        number = len(self.submissions)
        commands = [] if barrier else [pack("RPUSH", self.list, number)]
        self.submissions.append(
            RecordingSubmission(self._owners[number % 2], *commands, frees_memory=frees_memory)
        )

    async def run(self, store: Store) -> None:
        self.submission()
        self.submission(barrier=True)
        self.submission()
        self.submission(frees_memory=True)
        self.submission()
        for submission in self.submissions:
            store.submit(submission)
        for submission in self.submissions:
            await submission.wait()

    def check(self, valkey: ValkeyServer) -> None:
        """Each was committed, each is there once, in order."""
        assert all(submission.was_committed for submission in self.submissions)
        numbers = [i for i, s in enumerate(self.submissions) if s.commands]
        found = [int(number) for number in valkey.execute("LRANGE", self.list, 0, -1)]
        assert found == numbers
        assert not any(owner.refusals for owner in self._owners)


async def run_with_break(
    valkey: ValkeyServer,
    direction: Direction,
    after: int,
    *,
    on_break: Callable[[], None] = lambda: None,
    **settings: Any,
) -> bool:
    """Run a history whose commit connection breaks after so many bytes; False: it did not break."""
    connector = connector_to(valkey)
    # A partition of its own for each, so that they share a server.
    partition = f"{direction}{after}"
    history = History(partition)
    async with opened(connector, partition=partition, **settings) as store:
        stream = connector.streams[0]
        if direction == "sent":
            stream.break_after(sent=after, on_break=on_break)
        else:
            stream.break_after(received=after, on_break=on_break)
        await history.run(store)
        assert await store.read(pack("LLEN", history.list)) == [4]
        # Everything is told, whatever breaks from here on.
        stream.break_after()
        broke = stream.broken
        assert (store.statistics().reconnects == 1) is broke
    history.check(valkey)
    return broke


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_a_connection_that_breaks_at_any_byte_costs_and_doubles_nothing(
    quick_valkey: ValkeyServer, direction: Direction
) -> None:
    after = 0
    while await run_with_break(quick_valkey, direction, after):
        after += 1
    assert after > 100, "the history was never interrupted"


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_a_redis_killed_at_any_step_costs_and_doubles_nothing(
    valkey: ValkeyServer, direction: Direction
) -> None:
    # Every step of the protocol lies within so few bytes of some multiple.
    stride = 53 if direction == "sent" else 11
    after = 0
    while await run_with_break(valkey, direction, after, on_break=valkey.restart):
        after += stride
    assert after > 100


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_a_server_that_breaks_while_it_takes_the_store_takes_it_in_the_end(
    quick_valkey: ValkeyServer, direction: Direction
) -> None:
    stride = 29 if direction == "sent" else 7
    after = 0
    broke = True
    while broke:
        connector = connector_to(quick_valkey)
        connector.break_first(**{direction: after})
        history = History(f"{direction}{after}")
        async with opened(connector, partition=f"{direction}{after}") as store:
            broke = connector.streams[0].broken
            connector.streams[0].break_after()
            await history.run(store)
        history.check(quick_valkey)
        after += stride
    assert after > 300


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
    async with opened(connector_to(valkey), kept_s=0.0, renewal_s=0.05) as store:
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
    async with opened(connector_to(valkey), kept_s=0.0, renewal_s=0.05) as store:
        for _ in range(3):
            written = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
            store.submit(written)
            await written.wait()
        # Trimmed by a renewal: nothing is kept that could be sent again.
        await until(lambda: not store.statistics().kept_batches)
        reloaded = trio.Event()
        store.on_reload(reloaded.set)
        valkey.execute("FLUSHALL")
        with trio.fail_after(5):
            await reloaded.wait()
            assert await store.read(pack("GET", "k")) == [None]
        submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
        store.submit(submission)
        assert await submission.wait() == [b"OK"]


# ----------------------------------------------------------- away and stalled


async def test_callers_of_a_dead_redis_are_answered_in_time_and_the_writes_come_through(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey), patience_s=0.4, renewal_s=0.05) as store:
        valkey.kill()
        with trio.fail_after(5):
            await store.state.wait_value(StoreState.AWAY)
        now_s = trio.current_time()
        urgent = RecordingSubmission(owner, pack("RPUSH", "l", 1), deadline_s=now_s + 0.2)
        patient = RecordingSubmission(owner, pack("RPUSH", "l", 2))
        store.submit(urgent)
        store.submit(patient)
        reads: list[object] = []
        store.submit_read([pack("LLEN", "l")], reads.append, deadline_s=now_s + 0.2)
        told: list[tuple[int, int]] = []
        store.on_batch(lambda: told.append((len(urgent.give_ups), len(patient.give_ups))))
        with pytest.raises(UnavailableError, match="is away"):
            await store.read(pack("PING"))
        elapsed_s = trio.current_time() - now_s
        assert 0.35 < elapsed_s < 3
        assert (1, 0) in told
        assert len(urgent.give_ups) == len(patient.give_ups) == 1
        assert isinstance(reads[0], UnavailableError)
        assert not urgent.outcomes
        assert not store.is_current
        valkey.start()
        await patient.wait()
        await urgent.wait()
        assert await store.read(pack("LRANGE", "l", 0, -1)) == [[b"1", b"2"]]
        assert len(urgent.give_ups) == 1
        assert store.state.value is StoreState.CONNECTED
        assert store.statistics().waits_given_up == 4


async def test_a_stalled_redis_is_away_and_its_server_answers_nothing_from_memory(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    settings: dict[str, Any] = {"stall_s": 0.1, "renewal_s": 0.05, "lease_s": 0.3}
    settings["patience_s"] = 0.5
    async with opened(connector_to(valkey), **settings) as store:
        assert store.is_current
        valkey.pause()
        submission = RecordingSubmission(owner, pack("SET", "k", "v"))
        store.submit(submission)
        await until(lambda: bool(submission.give_ups))
        assert store.state.value is StoreState.AWAY
        assert not store.is_current
        assert not submission.outcomes
        valkey.resume()
        assert await submission.wait() == [b"OK"]
        barrier = RecordingSubmission(owner)
        store.submit(barrier)
        await barrier.wait()
        await until(lambda: store.is_current)
        assert store.state.value is StoreState.CONNECTED
        assert store.statistics().reconnects == 0


async def test_the_delay_is_what_the_oldest_in_the_queue_has_waited_while_connected(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey), stall_s=0.5) as store:
        assert store.delay_s == 0.0
        valkey.pause()
        in_flight = RecordingSubmission(owner, pack("INCR", "n"))
        store.submit(in_flight)
        await trio.sleep(0.05)
        queued = RecordingSubmission(owner, pack("INCR", "n"))
        store.submit(queued)
        await trio.sleep(0.2)
        assert 0.2 <= store.delay_s < 0.5
        await store.state.wait_value(StoreState.AWAY)
        assert store.delay_s == 0.0  # what Redis's absence costs is not work to do
        valkey.resume()
        assert await queued.wait() == [2]
        assert store.delay_s == 0.0


async def test_a_redis_that_stays_silent_is_connected_to_again(valkey: ValkeyServer) -> None:
    submission = RecordingSubmission(RecordingOwner(), pack("RPUSH", "l", "v"))
    settings: dict[str, Any] = {"stall_s": 0.05, "reply_timeout_s": 0.15}
    settings["connect_timeout_s"] = 0.1
    async with opened(connector_to(valkey), **settings) as store:
        valkey.pause()
        store.submit(submission)
        await trio.sleep(0.5)
        valkey.resume()
        await submission.wait()
        assert store.statistics().reconnects == 1
    assert valkey.execute("LLEN", "l") == 1


async def test_a_server_that_was_away_while_another_took_over_is_fenced_on_return(
    valkey: ValkeyServer,
) -> None:
    connector = connector_to(valkey)
    submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "old"))
    blocked = trio.Event()

    async def behind_a_partition() -> None:
        async with opened(connector, renewal_s=0.05) as store:
            connector.streams[0].break_after(sent=0)
            connector.on_connect = lambda stream: stream.break_after(
                sent=None if blocked.is_set() else 0
            )
            await store.state.wait_value(StoreState.AWAY)
            store.submit(submission)
            async with opened(connector_to(valkey), seed=2, take_over=True):
                blocked.set()
                await trio.sleep_forever()

    with trio.fail_after(5), pytest.raises(FencedError):
        await behind_a_partition()
    assert not submission.outcomes
    assert valkey.execute("GET", "k") is None


# ------------------------------------------------------------------- refusals


async def test_out_of_memory_refuses_writers_lets_deletions_through_and_keeps_the_lease(
    valkey: ValkeyServer,
) -> None:
    writer, reader, deleter = RecordingOwner("w"), RecordingOwner("r"), RecordingOwner("d")
    valkey.execute("SET", "big", "x" * 4_000_000)
    async with opened(connector_to(valkey), renewal_s=0.05, lease_s=0.5) as store:
        valkey.execute("CONFIG", "SET", "maxmemory", "2mb")
        write = RecordingSubmission(writer, pack("SET", "k", "v"))
        barrier_of_writer = RecordingSubmission(writer)
        barrier = RecordingSubmission(reader)
        for submission in (write, barrier_of_writer, barrier):
            store.submit(submission)
        refused = await write.wait()
        assert isinstance(refused, UnavailableError)
        assert "OOM" in str(refused)
        assert isinstance(barrier_of_writer.outcome, UnavailableError)
        assert await barrier.wait() == []
        assert len(writer.refusals) == 1
        assert not reader.refusals
        # The lease lives on although nothing can be written.
        await trio.sleep(0.7)
        assert store.is_current
        delete = RecordingSubmission(deleter, pack("DEL", "big"), frees_memory=True)
        again = RecordingSubmission(writer, pack("SET", "k", "v"))
        store.submit(delete)
        store.submit(again)
        assert await delete.wait() == [1]
        assert await again.wait() == [b"OK"]


async def test_a_store_can_be_opened_when_redis_is_out_of_memory(valkey: ValkeyServer) -> None:
    valkey.execute("SET", "big", "x" * 4_000_000)
    valkey.execute("CONFIG", "SET", "maxmemory", "2mb")
    delete = RecordingSubmission(RecordingOwner(), pack("DEL", "big"), frees_memory=True)
    async with opened(connector_to(valkey)) as store:
        store.submit(delete)
        assert await delete.wait() == [1]


async def test_a_demoted_redis_refuses_and_is_asked_again_until_it_is_primary(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey), renewal_s=60.0) as store:
        # A primary that does not exist: it stays as it is, but read-only.
        valkey.execute("REPLICAOF", "127.0.0.1", "1")
        write = RecordingSubmission(owner, pack("SET", "k", "v"))
        store.submit(write)
        assert "READONLY" in str(await write.wait())
        assert len(owner.refusals) == 1
        valkey.execute("REPLICAOF", "NO", "ONE")
        again = RecordingSubmission(owner, pack("SET", "k", "v"))
        store.submit(again)
        assert await again.wait() == [b"OK"]
        assert store.statistics().reconnects >= 1


async def test_a_redis_without_enough_replicas_refuses_but_still_shows(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey)) as store:
        valkey.execute("CONFIG", "SET", "min-replicas-to-write", "1")
        write = RecordingSubmission(owner, pack("SET", "k", "v"))
        store.submit(write)
        assert "NOREPLICAS" in str(await write.wait())
        assert await store.read(pack("EXISTS", "k")) == [0]
        valkey.execute("CONFIG", "SET", "min-replicas-to-write", "0")
        again = RecordingSubmission(owner, pack("SET", "k", "v"))
        store.submit(again)
        assert await again.wait() == [b"OK"]


# ------------------------------------------------------------------------ reads


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_a_read_whose_connection_breaks_at_any_byte_is_read_again(
    quick_valkey: ValkeyServer, direction: Direction
) -> None:
    quick_valkey.execute("SET", "a", "1")
    after = 0
    broke = True
    while broke:
        connector = connector_to(quick_valkey)
        async with opened(connector, partition=f"{direction}{after}") as store:

            def arm(stream: BreakingStream, after: int = after) -> None:
                if direction == "sent":
                    stream.break_after(sent=after)
                else:
                    stream.break_after(received=after)
                connector.on_connect = lambda _: None  # noqa: B023 - runs within this round

            connector.on_connect = arm
            for _ in range(2):
                assert await store.read(pack("GET", "a"), pack("EXISTS", "a")) == [b"1", 1]
            broke = connector.streams[1].broken
            assert store.statistics().reconnects == 0
        after += 1
    assert after > 20


async def test_reads_without_a_connection_of_their_own_give_up_though_commits_work(
    valkey: ValkeyServer,
) -> None:
    async with opened(connector_to(valkey), patience_s=0.2) as store:
        # Ourselves and the client that sets it.
        valkey.execute("CONFIG", "SET", "maxclients", "1")
        with pytest.raises(UnavailableError, match="is away"):
            await store.read(pack("PING"))
        submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
        store.submit(submission)
        assert await submission.wait() == [b"OK"]
        assert store.state.value is StoreState.CONNECTED


async def test_reads_that_have_given_up_make_room_for_others(valkey: ValkeyServer) -> None:
    settings: dict[str, Any] = {"patience_s": 0.05, "renewal_s": 0.02, "read_queue_commands": 10}
    async with opened(connector_to(valkey), **settings) as store:
        valkey.kill()
        await until(lambda: store.state.value is StoreState.AWAY)
        for _ in range(30):
            with pytest.raises(UnavailableError, match="is away"):
                await store.read(pack("PING"))
        valkey.start()
        assert await store.read(pack("PING")) == [b"PONG"]


async def test_a_read_in_flight_when_the_commit_connection_is_replaced_is_read_again(
    valkey: ValkeyServer,
) -> None:
    connector = connector_to(valkey)
    async with opened(connector, renewal_s=0.02) as store:
        outcomes: list[object] = []
        # Waits in Redis, so that it is in flight for as long as the test likes.
        store.submit_read([pack("BLPOP", "queue", 20)], outcomes.append)
        await until(lambda: valkey.execute("INFO", "clients")["blocked_clients"] == 1)
        connector.streams[0].break_after(sent=0)
        await until(lambda: store.statistics().reconnects == 1)
        valkey.execute("RPUSH", "queue", "from the old connection")
        await until(lambda: valkey.execute("LLEN", "queue") == 0)
        await until(lambda: valkey.execute("INFO", "clients")["blocked_clients"] == 1)
        valkey.execute("RPUSH", "queue", "from the new one")
        await until(lambda: bool(outcomes))
        assert outcomes == [[[b"queue", b"from the new one"]]]


async def test_a_cancelled_read_is_not_delivered(valkey: ValkeyServer) -> None:
    async with opened(connector_to(valkey)) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.read(pack("INCR", "n"))
        assert scope.cancelled_caught
        assert await store.read(pack("PING")) == [b"PONG"]


# ---------------------------------------------------------------------- loading


async def test_a_redis_that_loads_its_data_is_waited_for(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    server = start_valkey(key_load_delay=200)
    owner = RecordingOwner()
    async with opened(connector_to(server), renewal_s=0.02) as store:
        await fill(store, 3_000)
        server.kill()
        await until(lambda: store.state.value is StoreState.AWAY)
        submission = RecordingSubmission(owner, pack("SET", "k", "v"))
        store.submit(submission)
        server.start(until_loaded=False)
        assert await submission.wait() == [b"OK"]
        assert not owner.refusals
        assert not submission.give_ups
    server.kill()
    server.start(until_loaded=False)
    async with opened(connector_to(server)) as store:
        assert await store.read(pack("GET", "k")) == [b"v"]


async def fill(store: Store, keys: int) -> None:
    """Write so many small keys."""
    commands = [pack("SET", f"key:{number}", "x") for number in range(keys)]
    submission = RecordingSubmission(RecordingOwner(), *commands)
    store.submit(submission)
    await submission.wait()


# ------------------------------------------------------------------ backpressure


async def test_commits_wait_while_what_is_kept_is_full_of_younger_ones(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    settings: dict[str, Any] = {"kept_bytes": 50_000, "kept_s": 0.3, "batch_bytes": 10_000}
    submissions = [RecordingSubmission(owner, pack("SET", "k", "x" * 1_000)) for _ in range(150)]
    async with opened(connector_to(valkey), **settings) as store:
        began_s = trio.current_time()
        for submission in submissions:
            store.submit(submission)
        while not submissions[-1].outcomes:
            assert store.statistics().kept_bytes < 60_000
            await trio.sleep(0.01)
        # Three times what may be kept takes two periods of keeping it.
        assert trio.current_time() - began_s >= 0.6
        assert not owner.refusals


# ------------------------------------------------------------------ others' bugs


async def test_a_submission_that_raises_costs_nobody_else_an_answer(valkey: ValkeyServer) -> None:
    class Raising(RecordingSubmission):
        def committed(self, replies: object) -> None:
            raise ZeroDivisionError

    owner = RecordingOwner()
    async with opened(connector_to(valkey)) as store:
        store.submit(Raising(owner, pack("SET", "a", "1")))
        other = RecordingSubmission(owner, pack("SET", "b", "2"))
        store.submit(other)
        assert await other.wait() == [b"OK"]


# ------------------------------------------------------------------ real owners

OWNER = """
import random, sys, trio
from dbos_actors.clock import SystemClock
from dbos_actors.store import StoreSettings, connector_for, open_store

async def main():
    opened = open_store(
        connector_for(sys.argv[1]), settings=StoreSettings(), clock=SystemClock(),
        random=random.Random(7),
    )
    async with opened:
        print("open", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_killed_owner_of_this_host_is_succeeded_at_once_a_stopped_one_is_not(
    valkey: ValkeyServer,
) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time worth a thread
        [sys.executable, "-c", OWNER, valkey.address], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(OwnedElsewhereError, match=f"process {process.pid}"):
            async with opened(connector_to(valkey)):
                raise AssertionError
    finally:
        process.kill()
    process.wait()
    process.stdout.close()
    assert valkey.execute("EXISTS", "dbos:{p0}:owner") == 1
    async with opened(connector_to(valkey)) as store:
        assert store.is_current


# --------------------------------------------------------------------- all at once


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_everything_acknowledged_is_there_once_and_in_order(
    start_valkey: Callable[..., ValkeyServer], seed: int
) -> None:
    """Many owners under random faults; ``seed`` is in the test's name."""
    dice = random.Random(seed)
    valkey = start_valkey(appendfsync=dice.choice(["everysec", "always"]))
    connector = connector_to(valkey)
    owners = [RecordingOwner(f"o{n}") for n in range(8)]
    submissions: list[RecordingSubmission] = []
    settings: dict[str, Any] = {"batch_submissions": 20, "renewal_s": 0.05, "stall_s": 0.1}
    async with opened(connector, seed=seed, **settings) as store:
        for _ in range(25):
            mark = valkey.aof_mark()
            for _ in range(dice.randrange(60)):
                owner = dice.choice(owners)
                number = len(submissions)
                commands = [pack("RPUSH", owner.name, number)] * dice.choice([0, 1, 1, 1])
                freeing = dice.random() < 0.2
                submissions.append(RecordingSubmission(owner, *commands, frees_memory=freeing))
                store.submit(submissions[-1])
            for _ in range(dice.randrange(20)):
                await trio.lowlevel.checkpoint()
            match dice.choice(["none", "none", "break", "kill", "lose", "pause"]):
                case "break":
                    stream = dice.choice(connector.streams[-2:])
                    size = dice.randrange(400)
                    if dice.random() < 0.5:
                        stream.break_after(sent=size)
                    else:
                        stream.break_after(received=size)
                case "kill":
                    valkey.restart()
                case "lose":
                    end = valkey.aof_mark()
                    valkey.lose_writes_since(dice.randint(mark, end))
                case "pause":
                    valkey.pause()
                    await trio.sleep(0.01)
                    valkey.resume()
                case _:
                    pass
            if dice.random() < 0.5:
                await trio.sleep(dice.choice([0.0, 0.005, 0.03]))
        for submission in submissions:
            await submission.wait()
        last = RecordingSubmission(owners[0])
        store.submit(last)
        await last.wait()
        statistics = store.statistics()
    assert all(len(s.outcomes) == 1 and s.was_committed for s in submissions)
    for owner in owners:
        expected = [n for n, s in enumerate(submissions) if s.owner is owner and s.commands]
        found = [int(n) for n in valkey.execute("LRANGE", owner.name, 0, -1)]
        assert found == expected
    assert statistics.batches_lost == 0
    assert statistics.command_errors == 0


# ---------------------------------------------------------------- a stale replica


class SplitConnector(BreakingConnector):
    """Leads the first connection to one server and all others to another."""

    def __init__(self, first: ValkeyServer, others: ValkeyServer) -> None:
        super().__init__(connector_for(first.address))
        self._others = connector_for(others.address)

    async def connect(self) -> trio.abc.Stream:
        if self.streams:
            self._inner = self._others
        return await super().connect()


async def test_a_replica_that_lags_behind_the_same_address_is_not_read(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    """Catches a load that was answered by a replica which was level when it was connected to."""
    primary, replica = start_valkey(), start_valkey()
    owner = RecordingOwner()
    async with opened(SplitConnector(primary, replica)) as store:

        async def write(value: str) -> None:
            submission = RecordingSubmission(owner, pack("SET", "k", value))
            store.submit(submission)
            await submission.wait()

        def replicate() -> None:
            for key in ("k", "dbos:{p0}:commit"):
                replica.execute("SET", key, primary.execute("GET", key))

        await write("old")
        replicate()
        assert await store.read(pack("GET", "k")) == [b"old"]
        await write("new")
        stale: list[object] = []
        store.submit_read([pack("GET", "k")], stale.append, deadline_s=trio.current_time() + 0.2)
        await until(lambda: bool(stale))
        assert isinstance(stale[0], UnavailableError)
        assert "replica" in str(stale[0])
        replicate()
        assert await store.read(pack("GET", "k")) == [b"new"]
        assert store.is_current
