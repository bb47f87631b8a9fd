"""A Redis that is dead, stalled, full, demoted or still loading: who is told what, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from dbos_actors.errors import FencedError, UnavailableError
from dbos_actors.store import Store, StoreState, pack
from tests.store.breakable import connector_to, opened, until
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer

# ----------------------------------------------------------- away and stalled


async def test_callers_of_a_dead_redis_are_answered_in_time_and_the_writes_come_through(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    async with opened(connector_to(valkey), wait_timeout_s=0.4, renewal_s=0.05) as store:
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
        await until(lambda: bool(urgent.give_ups))
        assert not patient.give_ups
        with pytest.raises(UnavailableError, match="is away"):
            await store.read(pack("PING"))
        elapsed_s = trio.current_time() - now_s
        assert 0.35 < elapsed_s < 3
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
    settings["wait_timeout_s"] = 0.5
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
