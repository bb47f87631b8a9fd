"""A commit key that somebody else has written to, and a Redis that came back empty or older."""

from __future__ import annotations

import pytest
import trio

from dbos_actors.errors import UnavailableError, UnusableStoreError
from dbos_actors.store import Store, StoreState, pack
from tests.store.breakable import connector_to, opened, until
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer

COMMIT = "dbos:{p0}:commit"


async def write(store: Store, deadline_s: float | None = None) -> RecordingSubmission:
    submission = RecordingSubmission(RecordingOwner(), pack("INCR", "n"), deadline_s=deadline_s)
    store.submit(submission)
    return submission


GARBAGE = [
    (("SET", COMMIT, "hello"), "holds b'hello'"),
    (("SET", COMMIT, ""), "holds b''"),
    (("SET", COMMIT, "-1:5"), "holds b'-1:5'"),
    (("HSET", COMMIT, "a", "b"), "is no string"),
]


@pytest.mark.parametrize(("command", "said"), GARBAGE)
async def test_a_commit_key_that_becomes_garbage_ends_the_server_with_the_key_and_the_remedy(
    valkey: ValkeyServer, command: tuple[str, ...], said: str
) -> None:
    """Catches a server that reconnects for ever, or takes it for another server's."""
    with pytest.raises(UnusableStoreError) as raised:  # noqa: PT012 - the context raises
        async with opened(connector_to(valkey)) as store:
            await (await write(store)).wait()
            valkey.execute("DEL", COMMIT)
            valkey.execute(*command)
            await write(store)
            await trio.sleep(5)
    for part in (COMMIT, said, "backup", "DEL"):
        assert part in str(raised.value)


@pytest.mark.parametrize(("command", "said"), GARBAGE)
async def test_a_commit_key_that_is_garbage_at_the_start_is_not_an_unreachable_redis(
    valkey: ValkeyServer, command: tuple[str, ...], said: str
) -> None:
    valkey.execute(*command)
    with pytest.raises(UnusableStoreError, match="cannot be used"):
        async with opened(connector_to(valkey)):
            raise AssertionError
    assert valkey.execute("EXISTS", "dbos:{p0}:owner") == 0


async def test_a_redis_that_comes_back_empty_is_refused_where_a_setting_says_so(
    valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """And served again as soon as it has everything."""
    settings = {"replay_s": 0.0, "renewal_s": 0.05, "refuse_loss": True, "wait_timeout_s": 0.2}
    async with opened(connector_to(valkey), **settings) as store:  # type: ignore[arg-type]
        for _ in range(3):
            await (await write(store)).wait()
        await until(lambda: not store.statistics().replayable_batches)
        saved = valkey.execute("GET", COMMIT)
        valkey.execute("FLUSHALL")
        await until(lambda: store.state.value is StoreState.AWAY)
        refused = await write(store)
        await until(lambda: bool(refused.give_ups))
        assert "DBOS_REFUSE_LOST_COMMITS" in str(refused.give_ups[0])
        with pytest.raises(UnavailableError, match="empty"):
            await store.read(pack("GET", "n"))
        assert valkey.execute("DBSIZE") == 0
        assert store.statistics().losses_refused >= 1
        assert store.statistics().batches_lost == 0
        valkey.execute("SET", "n", "3")
        valkey.execute("SET", COMMIT, saved)
        assert await refused.wait() == [4]
        assert await store.read(pack("GET", "n")) == [b"4"]
    assert caplog.text.count("older_redis_refused") == 1


async def test_without_the_setting_the_loss_is_shouted_about_and_counted(
    valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(connector_to(valkey), replay_s=0.0, renewal_s=0.05) as store:
        await (await write(store)).wait()
        await until(lambda: not store.statistics().replayable_batches)
        valkey.execute("FLUSHALL")
        await until(lambda: store.statistics().batches_lost > 0)
        assert await (await write(store)).wait() == [1]
    assert "commits_lost" in caplog.text
