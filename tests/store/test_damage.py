"""Keys of the wrong type: what a command that fails inside EXEC does to those who wait."""

from __future__ import annotations

import json
from typing import Literal

import pytest

from dbos_actors.errors import DamagedKeyError
from dbos_actors.store import Store, pack
from dbos_actors.store.batch import Batch, Form
from tests.store.breakable import connector_to, opened, until
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer

TO_CHECK = "dbos:{p0}:to-check"


def record_and_index(owner: RecordingOwner, name: str) -> RecordingSubmission:
    """As a result is written: a record, and its place in an index."""
    return RecordingSubmission(
        owner,
        pack("HSETNX", f"record:{owner.key}", name, "x"),
        pack("ZADD", f"index:{owner.key}", 1, name),
    )


async def listed(valkey: ValkeyServer) -> dict[str, dict[str, object]]:
    """What is listed for ``check``, once something is."""
    await until(lambda: valkey.execute("TYPE", TO_CHECK) == b"hash")
    fields = valkey.execute("HGETALL", TO_CHECK)
    return {key.decode(): json.loads(value) for key, value in fields.items()}


async def test_a_command_that_fails_in_exec_fails_its_submission_and_lists_the_key(
    valkey: ValkeyServer,
) -> None:
    """Catches an acknowledged record that no index knows."""
    valkey.execute("SET", "index:a", "not a sorted set")
    damaged, whole = RecordingOwner("a"), RecordingOwner("b")
    async with opened(connector_to(valkey)) as store:
        first, other = record_and_index(damaged, "1"), record_and_index(whole, "1")
        store.submit(first)
        store.submit(other)
        error = await first.wait()
        assert await other.wait() == [1, 1]
        assert isinstance(error, DamagedKeyError)
        assert (error.key, error.command) == ("index:a", "ZADD")
        assert "index:a" in str(error)
        assert "dbos-actors check" in str(error)
        assert damaged.refusals == [error]
        assert not whole.refusals
        mark = (await listed(valkey))["index:a"]
        assert (mark["owner"], mark["command"]) == ("a", "ZADD")
        assert str(mark["error"]).startswith("WRONGTYPE")
        assert store.statistics().command_errors == 1
        # What was written stays: Redis does not roll back. A repeat after the repair completes it.
        assert valkey.execute("HLEN", "record:a") == 1
        valkey.execute("DEL", "index:a")
        again = record_and_index(damaged, "1")
        store.submit(again)
        assert await again.wait() == [0, 1]


async def test_what_an_owner_did_after_a_failed_command_is_refused_too(
    valkey: ValkeyServer,
) -> None:
    """Catches a barrier in the same commit that is answered from what is not in the store."""
    valkey.execute("SET", "index:a", "not a sorted set")
    owner = RecordingOwner("a")
    before = RecordingSubmission(owner, pack("SET", "k", "v"))
    failed = record_and_index(owner, "1")
    barrier = RecordingSubmission(owner)
    after = RecordingSubmission(owner, pack("SET", "l", "v"))
    queued = RecordingSubmission(owner, pack("DEL", "never"), frees_memory=True)
    async with opened(connector_to(valkey)) as store:
        for submission in (before, failed, barrier, after, queued):
            store.submit(submission)
        for submission in (failed, barrier, after, queued):
            assert isinstance(await submission.wait(), DamagedKeyError)
        assert await before.wait() == [b"OK"]
        assert len(owner.refusals) == 1
        assert store.statistics().queued_submissions == 0


async def test_a_deletion_that_fails_is_refused_as_well(valkey: ValkeyServer) -> None:
    """The script has the error among its replies."""
    valkey.execute("SET", "index:a", "not a sorted set")
    owner = RecordingOwner("a")
    deletion = RecordingSubmission(owner, pack("ZREM", "index:a", "1"), frees_memory=True)
    async with opened(connector_to(valkey)) as store:
        store.submit(deletion)
        error = await deletion.wait()
        assert isinstance(error, DamagedKeyError)
        assert error.command == "ZREM"
        assert "index:a" in await listed(valkey)


@pytest.mark.parametrize("form", ["transaction", "script"])
async def test_a_failure_whose_reply_was_lost_is_found_by_the_types_of_the_keys(
    valkey: ValkeyServer, form: Literal["transaction", "script"]
) -> None:
    """Catches a commit in doubt that is acknowledged because the commit key says: executed."""
    valkey.execute("SET", "index:a", "not a sorted set")
    damaged, whole = RecordingOwner("a"), RecordingOwner("b")
    connector = connector_to(valkey)
    freeing = form == "script"
    bad = RecordingSubmission(damaged, pack("ZREM", "index:a", "1"), frees_memory=freeing)
    good = RecordingSubmission(whole, pack("ZREM", "index:b", "1"), frees_memory=freeing)
    async with opened(connector) as store:
        connector.streams[0].break_after(received=0)
        store.submit(bad)
        store.submit(good)
        error = await bad.wait()
        assert isinstance(error, DamagedKeyError)
        assert error.key == "index:a"
        assert await good.wait() is None  # in the store, its replies lost
        assert "index:a" in await listed(valkey)


async def _write(store: Store, owner: RecordingOwner) -> object:
    submission = record_and_index(owner, "1")
    store.submit(submission)
    return await submission.wait()


async def test_a_list_of_damaged_keys_that_is_damaged_itself_stops_nothing(
    valkey: ValkeyServer,
) -> None:
    valkey.execute("SET", TO_CHECK, "not a hash")
    valkey.execute("SET", "index:a", "not a sorted set")
    async with opened(connector_to(valkey), renewal_s=0.05) as store:
        assert isinstance(await _write(store, RecordingOwner("a")), DamagedKeyError)
        assert await _write(store, RecordingOwner("b")) == [1, 1]
        await until(lambda: store.statistics().command_errors >= 2)
        valkey.execute("DEL", TO_CHECK)
        assert list(await listed(valkey)) == ["index:a"]


@pytest.mark.parametrize("form", [Form.TRANSACTION, Form.SCRIPT])
def test_a_batch_tells_its_commands_after_its_submissions_are_gone(form: Form) -> None:
    owner = RecordingOwner()
    submissions = [
        RecordingSubmission(owner, pack("ZREM", "a", "1", "2"), pack("DEL", "b")),
        RecordingSubmission(owner),
        RecordingSubmission(owner, pack("DEL", "c\r\n")),
    ]
    batch = Batch(form, sequence=1, entries=[(submission, 0.0) for submission in submissions])
    batch.entries = []
    expected = [[b"ZREM", b"a", b"1", b"2"], [b"DEL", b"b"], [b"DEL", b"c\r\n"]]
    assert batch.commands() == expected
