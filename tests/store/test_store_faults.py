"""Connections that break at every byte, a Redis killed at every step, and random faults."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from dbos_actors.errors import OwnedElsewhereError, UnavailableError
from dbos_actors.store import Store, StoreState, connector_for, pack
from tests.store.breakable import Direction, connector_to, opened, until
from tests.support.faults import BreakingConnector, BreakingStream
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer


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
    async with opened(connector_to(valkey), wait_timeout_s=0.2) as store:
        # Ourselves and the client that sets it.
        valkey.execute("CONFIG", "SET", "maxclients", "1")
        with pytest.raises(UnavailableError, match="is away"):
            await store.read(pack("PING"))
        submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
        store.submit(submission)
        assert await submission.wait() == [b"OK"]
        assert store.state.value is StoreState.CONNECTED


async def test_reads_that_have_given_up_make_room_for_others(valkey: ValkeyServer) -> None:
    settings: dict[str, Any] = {
        "wait_timeout_s": 0.05,
        "renewal_s": 0.02,
        "read_queue_commands": 10,
    }
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


# ------------------------------------------------------------------ backpressure


async def test_commits_wait_while_what_is_kept_is_full_of_younger_ones(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    settings: dict[str, Any] = {"replay_bytes": 50_000, "replay_s": 0.3, "batch_bytes": 10_000}
    submissions = [RecordingSubmission(owner, pack("SET", "k", "x" * 1_000)) for _ in range(150)]
    async with opened(connector_to(valkey), **settings) as store:
        began_s = trio.current_time()
        for submission in submissions:
            store.submit(submission)
        while not submissions[-1].outcomes:
            assert store.statistics().replayable_bytes < 60_000
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
