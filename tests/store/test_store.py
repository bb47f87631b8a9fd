"""The store against a real Valkey: commits, reads, ownership."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio

from dbos_actors.clock import SystemClock
from dbos_actors.errors import (
    FencedError,
    OverloadedError,
    OwnedElsewhereError,
    StoreUnreachableError,
    UnavailableError,
    UnsafeStoreError,
)
from dbos_actors.store import (
    Keys,
    Store,
    StoreSettings,
    StoreState,
    connector_for,
    open_store,
    pack,
)
from dbos_actors.store.connection import Connection
from dbos_actors.store.ownership import take_ownership, this_process
from tests.store.breakable import until
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer


def opened(address: str, *, seed: int = 1, **settings: Any) -> AbstractAsyncContextManager[Store]:
    """The store at ``address``, with settings that differ from the defaults."""
    return open_store(
        connector_for(address),
        settings=StoreSettings(**settings),
        clock=SystemClock(),
        random=random.Random(seed),
    )


# ------------------------------------------------------------------ commits


async def test_a_submission_is_in_redis_when_it_is_told_so(valkey: ValkeyServer) -> None:
    async with opened(valkey.address) as store:
        submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"), pack("INCR", "n"))
        store.submit(submission)
        assert await submission.wait() == [b"OK", 1]
        assert valkey.execute("MGET", "k", "n") == [b"v", b"1"]


async def test_submit_calls_nobody_back_before_it_returns(valkey: ValkeyServer) -> None:
    async with opened(valkey.address) as store:
        submission = RecordingSubmission(RecordingOwner())
        store.submit(submission)
        assert not submission.outcomes
        assert await submission.wait() == []


async def test_each_submission_gets_the_replies_to_its_own_commands(valkey: ValkeyServer) -> None:
    owner = RecordingOwner()
    submissions = [
        RecordingSubmission(owner, *[pack("INCR", "n") for _ in range(i % 4)]) for i in range(500)
    ]
    async with opened(valkey.address, batch_submissions=70) as store:
        for submission in submissions:
            store.submit(submission)
        await submissions[-1].wait()
    replies = [reply for submission in submissions for reply in submission.replies]
    assert replies == list(range(1, 751))


async def test_all_that_waits_goes_into_one_commit_up_to_the_limits(valkey: ValkeyServer) -> None:
    owner = RecordingOwner()
    submissions = [RecordingSubmission(owner, pack("INCR", "n")) for _ in range(100)]
    async with opened(valkey.address, batch_submissions=40) as store:
        for submission in submissions:
            store.submit(submission)
        await submissions[-1].wait()
        assert store.statistics().commits == 3


async def test_a_batch_ends_before_the_submission_that_would_exceed_its_bytes(
    valkey: ValkeyServer,
) -> None:
    owner = RecordingOwner()
    submissions = [RecordingSubmission(owner, pack("SET", "k", "x" * 600)) for _ in range(4)]
    async with opened(valkey.address, batch_bytes=1_400) as store:
        for submission in submissions:
            store.submit(submission)
        await submissions[-1].wait()
        assert store.statistics().commits == 2


async def test_a_submission_larger_than_a_batch_is_committed_whole(valkey: ValkeyServer) -> None:
    submission = RecordingSubmission(
        RecordingOwner(), *[pack("RPUSH", "l", "x" * 1000) for _ in range(50)]
    )
    async with opened(valkey.address, batch_bytes=1_400) as store:
        store.submit(submission)
        assert await submission.wait() == list(range(1, 51))
        assert store.statistics().commits == 1


async def test_a_full_queue_refuses_and_keeps_nothing_of_it(valkey: ValkeyServer) -> None:
    async with opened(valkey.address, queue_bytes=10_000) as store:
        first = RecordingSubmission(RecordingOwner(), pack("SET", "k", "x" * 9_000))
        second = RecordingSubmission(RecordingOwner(), pack("SET", "k", "y" * 9_000))
        store.submit(first)
        with pytest.raises(OverloadedError, match="commit queue"):
            store.submit(second)
        await first.wait()
        store.submit(second)
        await second.wait()
        assert len(second.outcomes) == 1


async def test_a_command_redis_will_not_queue_costs_only_its_owner(valkey: ValkeyServer) -> None:
    guilty, innocent = RecordingOwner("guilty"), RecordingOwner("innocent")
    async with opened(valkey.address) as store:
        before = RecordingSubmission(innocent, pack("SET", "a", "1"))
        bad = RecordingSubmission(guilty, pack("SET", "b"))
        barrier = RecordingSubmission(guilty)
        after = RecordingSubmission(innocent, pack("SET", "c", "1"))
        for submission in (before, bad, barrier, after):
            store.submit(submission)
        assert await after.wait() == [b"OK"]
        assert before.outcome == [b"OK"]
        assert isinstance(bad.outcome, UnavailableError)
        assert isinstance(barrier.outcome, UnavailableError)
        assert len(guilty.refusals) == 1
        assert not innocent.refusals
        assert valkey.execute("MGET", "a", "b", "c") == [b"1", None, b"1"]


async def test_deletions_as_large_as_allowed_are_committed_in_several_scripts(
    valkey: ValkeyServer,
) -> None:
    fields = [f"field-{number:09}-{'x' * 60}" for number in range(3_998)]
    deletions = [
        RecordingSubmission(RecordingOwner(), pack("HDEL", "h", *fields), frees_memory=True)
        for _ in range(12)
    ]
    async with opened(valkey.address) as store:
        fill = RecordingSubmission(
            RecordingOwner(), pack("HSET", "h", *[x for field in fields for x in (field, "v")])
        )
        store.submit(fill)
        for deletion in deletions:
            store.submit(deletion)
        assert await deletions[-1].wait() == [0]
        assert deletions[0].outcome == [3_998]
        # The filling, then three deletions of some 310 kB to a script; none sent twice.
        assert store.statistics().commits == 5
        after = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
        store.submit(after)
        await after.wait()
        assert store.statistics().commits_repeated == 0
        too_many = pack("HDEL", "h", *fields, "one", "more")
        with pytest.raises(ValueError, match="4000 arguments"):
            store.submit(RecordingSubmission(RecordingOwner(), too_many, frees_memory=True))


async def test_all_outcomes_of_a_commit_or_of_reads_are_told_within_one_round(
    valkey: ValkeyServer,
) -> None:
    async with opened(valkey.address) as store:
        told: list[object] = []
        rounds: list[tuple[int, int]] = []

        class Round:
            def __enter__(self) -> None:
                self._told_before = len(told)

            def __exit__(self, *_: object) -> None:
                if len(told) > self._told_before:
                    rounds.append((self._told_before, len(told)))

        store.tell_within(Round())
        submissions = [RecordingSubmission(RecordingOwner(), pack("INCR", "n")) for _ in range(20)]
        for submission in submissions:
            submission.outcomes = told  # type: ignore[assignment]
            store.submit(submission)
        await until(lambda: len(told) == 20)
        for _ in range(3):
            store.submit_read([pack("GET", "n")], told.append)
        await until(lambda: len(told) == 23)
        assert rounds == [(0, 20), (20, 23)]


# -------------------------------------------------------------------- reads


async def test_reads_that_wait_share_a_round_trip(valkey: ValkeyServer) -> None:
    valkey.execute("MSET", "a", "1", "b", "2")
    async with opened(valkey.address) as store:
        got: list[object] = []

        async def read(*names: str) -> None:
            got.append(await store.read(*[pack("GET", name) for name in names]))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(read, "a", "b")
        assert got == [[b"1", b"2"]] * 50
        assert store.statistics().read_round_trips <= 2


async def test_an_error_reply_fails_only_the_read_that_caused_it(valkey: ValkeyServer) -> None:
    valkey.execute("SET", "a", "1")
    async with opened(valkey.address) as store:
        outcomes: list[object] = []
        store.submit_read([pack("LLEN", "a"), pack("GET", "a")], outcomes.append)
        store.submit_read([pack("GET", "a")], outcomes.append)
        await store.read(pack("PING"))
        assert isinstance(outcomes[0], UnavailableError)
        assert "WRONGTYPE" in str(outcomes[0])
        assert outcomes[1] == [b"1"]


async def test_too_many_reads_are_refused(valkey: ValkeyServer) -> None:
    async with opened(valkey.address, read_queue_commands=3) as store:
        outcomes: list[object] = []
        store.submit_read([pack("GET", "a")] * 3, outcomes.append)
        with pytest.raises(OverloadedError, match="read queue"):
            store.submit_read([pack("GET", "a")], outcomes.append)


# ---------------------------------------------------------------- ownership


async def test_a_second_server_is_told_who_owns_the_store(valkey: ValkeyServer) -> None:
    async with opened(valkey.address, server_address="127.0.0.1:50051") as store:
        epoch = store.statistics().epoch
        with pytest.raises(OwnedElsewhereError, match=r"process \d+ on .* serving 127.0.0.1:50051"):
            async with opened(valkey.address, seed=2):
                raise AssertionError
        assert store.statistics().epoch == epoch
        submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
        store.submit(submission)
        await submission.wait()


async def test_leaving_releases_the_lease_and_the_next_owner_has_a_higher_epoch(
    valkey: ValkeyServer,
) -> None:
    async with opened(valkey.address) as store:
        first = store.statistics().epoch
    assert valkey.execute("EXISTS", "dbos:{p0}:owner") == 0
    async with opened(valkey.address, seed=2) as store:
        assert store.statistics().epoch > first


async def test_leaving_commits_what_is_queued(valkey: ValkeyServer) -> None:
    submissions = [RecordingSubmission(RecordingOwner(), pack("INCR", "n")) for _ in range(100)]
    async with opened(valkey.address, batch_submissions=7) as store:
        for submission in submissions:
            store.submit(submission)
    assert [s.outcome for s in submissions] == [[i] for i in range(1, 101)]
    late = RecordingSubmission(RecordingOwner(), pack("INCR", "n"))
    with pytest.raises(UnavailableError):
        store.submit(late)
    with pytest.raises(UnavailableError):
        await store.read(pack("PING"))


async def test_a_cancelled_server_releases_the_lease_too(valkey: ValkeyServer) -> None:
    with trio.CancelScope() as scope:
        async with opened(valkey.address) as store:
            submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "v"))
            store.submit(submission)
            scope.cancel()
            await trio.sleep_forever()
    assert submission.outcome == [b"OK"]
    assert valkey.execute("EXISTS", "dbos:{p0}:owner") == 0


async def until_taken_over(
    valkey: ValkeyServer, then: Callable[[Store], None], **settings: Any
) -> None:
    """Run a server, have another one take over, do something, and wait for the first to end."""
    async with (
        opened(valkey.address, **settings) as store,
        opened(valkey.address, seed=2, take_over=True),
    ):
        then(store)
        with trio.fail_after(5):
            await trio.sleep_forever()


async def test_a_taken_over_server_answers_nothing_more_and_ends(valkey: ValkeyServer) -> None:
    submission = RecordingSubmission(RecordingOwner(), pack("SET", "k", "old"))
    with pytest.raises(FencedError):
        await until_taken_over(valkey, lambda store: store.submit(submission))
    assert not submission.outcomes
    assert not submission.give_ups
    assert valkey.execute("GET", "k") is None


async def test_a_taken_over_server_notices_within_a_renewal_though_idle(
    valkey: ValkeyServer,
) -> None:
    with pytest.raises(FencedError):
        await until_taken_over(valkey, lambda _: None, renewal_s=0.1)


class Overtaken(Connection):
    """A connection whose first script is overtaken by another server's start."""

    __slots__ = ("overtake",)
    overtake: Callable[[], object] | None

    async def call(self, payload: bytes, count: int) -> list[Any]:
        if b"EVAL" in payload and self.overtake is not None:
            self.overtake()
            self.overtake = None
        return await super().call(payload, count)


async def test_of_two_servers_that_start_together_only_one_takes_the_store(
    valkey: ValkeyServer,
) -> None:
    keys = Keys()
    dice = random.Random(1)
    winner, loser = (this_process(address=name, random=dice) for name in ("winner", "loser"))
    connection = Overtaken(await connector_for(valkey.address).connect())
    connection.overtake = lambda: valkey.execute("SET", keys.owner, winner.to_json())
    try:
        with pytest.raises(OwnedElsewhereError, match="winner"):
            await take_ownership(
                connection, keys=keys, owner=loser, lease_ms=5_000, take_over=False, random=dice
            )
    finally:
        await connection.aclose()
    assert valkey.execute("GET", keys.owner) == winner.to_json()
    assert valkey.execute("EXISTS", keys.commit) == 0


async def test_the_lease_is_renewed_while_idle(valkey: ValkeyServer) -> None:
    async with opened(valkey.address, renewal_s=0.05, lease_s=0.5) as store:
        await trio.sleep(1.0)
        assert store.is_current
        assert int(valkey.execute("PTTL", store.keys.owner)) > 200


# ------------------------------------------------------------------- at start


async def test_no_redis_is_said_clearly_with_the_address_and_the_reason() -> None:
    with pytest.raises(StoreUnreachableError, match="No such file"):
        async with opened("unix:///nowhere/at/all"):
            raise AssertionError


async def test_a_wrong_password_is_not_tried_twice(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    server = start_valkey(requirepass="secret", tcp=True)
    with pytest.raises(StoreUnreachableError, match="WRONGPASS") as raised:
        async with opened(f"redis://:wr0ng@{server.tcp_address}"):
            raise AssertionError
    assert "wr0ng" not in str(raised.value)
    with pytest.raises(StoreUnreachableError, match="NOAUTH"):
        async with opened(server.tcp_address):
            raise AssertionError
    async with opened(f"redis://:secret@{server.tcp_address}/3") as store:
        assert await store.read(pack("PING")) == [b"PONG"]


async def test_a_redis_that_may_lose_writes_is_warned_about_by_name(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    server = start_valkey(appendonly="no", maxmemory_policy="allkeys-lru")
    async with opened(server.address) as store:
        assert [w.name for w in store.warnings] == ["appendonly", "maxmemory-policy"]
    with pytest.raises(UnsafeStoreError, match="appendonly is off"):
        async with opened(server.address, require_safe=True):
            raise AssertionError
    with pytest.raises(UnsafeStoreError, match="fsync"):
        async with opened(server.address, durability="fsync"):
            raise AssertionError


async def test_fsync_durability_is_content_with_appendfsync_always(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    server = start_valkey(appendfsync="always")
    async with opened(server.address, durability="fsync", require_safe=True) as store:
        assert store.warnings == ()


async def test_a_user_without_config_gets_a_warning_and_what_info_shows(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    server = start_valkey(appendonly="no")
    server.execute("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-config")
    async with opened(f"unix://u:p@{server.socket_path}") as store:
        assert [w.name for w in store.warnings] == ["config-unreadable", "appendonly"]


async def test_event_ids_go_on_above_the_stream_also_when_it_was_trimmed(
    valkey: ValkeyServer,
) -> None:
    future = b"9999999999999-5"
    valkey.execute("XADD", "dbos:{p0}:events", future, "e", "x")
    valkey.execute("XTRIM", "dbos:{p0}:events", "MAXLEN", "0")
    async with opened(valkey.address) as store:
        assert [store.next_event_id() for _ in range(2)] == [
            b"9999999999999-6",
            b"9999999999999-7",
        ]
        assert store.state.value is StoreState.CONNECTED
