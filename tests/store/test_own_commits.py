"""What the server commits for itself, outside any actor's turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from dbos_actors.errors import DamagedKeyError, OverloadedError, UnavailableError
from dbos_actors.store import OwnCommit, Store, StoreState, pack
from tests.store.breakable import connector_to, opened
from tests.support.valkey import ValkeyServer


@asynccontextmanager
async def away(valkey: ValkeyServer) -> AsyncIterator[Store]:
    """A store whose Redis has gone; callers wait for it for 0.2 seconds."""
    async with opened(connector_to(valkey), wait_timeout_s=0.2) as store:
        valkey.kill()
        await store.state.wait_value(StoreState.AWAY)
        yield store


async def test_a_commit_returns_the_replies_once_it_is_in_redis(valkey: ValkeyServer) -> None:
    async with opened(connector_to(valkey)) as store:
        replies = await store.commit(pack("SET", "k", "v"), pack("INCR", "n"), name="test")
        assert replies == [b"OK", 1]
        assert valkey.execute("MGET", "k", "n") == [b"v", b"1"]


async def test_commits_that_are_begun_are_under_way_together(valkey: ValkeyServer) -> None:
    async with opened(connector_to(valkey)) as store:
        begun = [store.begin_commit(pack("INCR", "n"), name="test") for _ in range(3)]
        assert not any(commit.has_ended for commit in begun)
        assert [await commit.wait() for commit in begun] == [[1], [2], [3]]
        assert all(commit.has_ended for commit in begun)
        assert store.statistics().commits == 1


async def test_a_commit_to_a_damaged_key_raises_and_names_the_key(valkey: ValkeyServer) -> None:
    async with opened(connector_to(valkey)) as store:
        valkey.execute("SET", "k", "no hash")
        with pytest.raises(DamagedKeyError, match="WRONGTYPE"):
            await store.commit(pack("HSET", "k", "f", "v"), name="test")


async def test_a_commit_that_frees_memory_gets_through_when_redis_has_none_left(
    valkey: ValkeyServer,
) -> None:
    async with opened(connector_to(valkey)) as store:
        valkey.execute("SET", "k", "v" * 1_000_000)
        valkey.execute("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(UnavailableError, match="OOM"):
            await store.commit(pack("SET", "l", "v"), name="test")
        assert await store.commit(pack("DEL", "k"), name="test", frees_memory=True) == [1]


async def test_a_full_queue_refuses_a_commit(valkey: ValkeyServer) -> None:
    async with opened(connector_to(valkey), queue_bytes=300) as store:
        with pytest.raises(OverloadedError, match="commit queue"):
            await store.commit(pack("SET", "k", "v" * 300), name="test")


async def test_a_commit_gives_up_when_redis_is_away_as_callers_do(valkey: ValkeyServer) -> None:
    async with away(valkey) as store:
        with pytest.raises(UnavailableError, match="is away"):
            await store.commit(pack("SET", "k", "v"), name="test")
        # It stays queued, so it gets there when Redis is back; by then nobody waits for it.
        valkey.start()
        await store.commit(name="test", gives_up=False)
        assert valkey.execute("GET", "k") == b"v"


async def test_a_commit_that_does_not_give_up_waits_for_its_outcome(valkey: ValkeyServer) -> None:
    # Mutation: end every commit when it is told to give up.
    async with away(valkey) as store:
        commit = store.begin_commit(pack("SET", "k", "v"), name="test", gives_up=False)
        # The other is told to give up later than the first.
        with pytest.raises(UnavailableError, match="is away"):
            await store.commit(name="test")
        assert not commit.has_ended
        valkey.start()
        assert await commit.wait() == [b"OK"]


async def test_a_waiting_commit_fails_when_the_store_closes_before_redis_is_back(
    valkey: ValkeyServer,
) -> None:
    commit: OwnCommit
    async with opened(connector_to(valkey), close_timeout_s=0.1) as store:
        valkey.kill()
        await store.state.wait_value(StoreState.AWAY)
        commit = store.begin_commit(pack("SET", "k", "v"), name="test", gives_up=False)
    with trio.fail_after(1), pytest.raises(UnavailableError, match="closed"):
        await commit.wait()
