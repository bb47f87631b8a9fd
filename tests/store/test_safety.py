"""A Redis whose configuration changes while the server runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from dbos_actors.errors import UnavailableError, UnsafeStoreError
from dbos_actors.store import Store, pack
from dbos_actors.store.safety import Requirements, judge
from tests.store.breakable import connector_to, opened, until
from tests.support.submissions import RecordingOwner, RecordingSubmission
from tests.support.valkey import ValkeyServer

SOON: dict[str, Any] = {"inspection_s": 0.05}


async def write(store: Store, owner: RecordingOwner) -> object:
    """The outcome of a write."""
    submission = RecordingSubmission(owner, pack("INCR", "n"))
    try:
        store.submit(submission)
    except UnavailableError as error:
        return error
    return await submission.wait()


@pytest.mark.parametrize(
    ("settings", "option", "values", "named"),
    [
        ({"durability": "fsync"}, "appendfsync", "always everysec", "DBOS_DURABILITY=fsync"),
        ({"durability": "fsync"}, "appendonly", "yes no", "DBOS_DURABILITY=fsync"),
        ({"require_safe": True}, "appendfsync", "everysec no", "DBOS_REQUIRE_SAFE_REDIS"),
        ({"require_safe": True}, "appendonly", "yes no", "DBOS_REQUIRE_SAFE_REDIS"),
        (
            {"argument_bytes": 2 << 20, "argument_setting": "DBOS_MAX_DATA_BYTES=1500000"},
            "proto-max-bulk-len",
            "2097152 1048576",
            "DBOS_MAX_DATA_BYTES=1500000 needs 2097152",
        ),
    ],
)
async def test_writes_are_refused_while_redis_is_not_as_a_setting_demands(
    start_valkey: Callable[..., ValkeyServer],
    settings: dict[str, Any],
    option: str,
    values: str,
    named: str,
) -> None:
    """Catches a check that is made at the start only."""
    good, bad = values.split()
    valkey = start_valkey(**{"appendfsync": "always", option.replace("-", "_"): good})
    owner = RecordingOwner()
    async with opened(connector_to(valkey), **settings, **SOON) as store:
        assert await write(store, owner) == [1]
        valkey.execute("CONFIG", "SET", option, bad)
        await until(lambda: store.forbidden.value is not None)
        assert store.statistics().writes_forbidden
        error = await write(store, owner)
        assert isinstance(error, UnavailableError)
        assert named in str(error)
        assert option in str(error)
        # Reads go on, and so does the lease.
        barrier = RecordingSubmission(owner)
        store.submit(barrier)
        assert await barrier.wait() == []
        assert await store.read(pack("GET", "n")) == [b"1"]
        valkey.execute("CONFIG", "SET", option, good)
        await until(lambda: store.forbidden.value is None)
        assert await write(store, owner) == [2]


async def test_a_new_connection_is_looked_at_before_anything_is_committed_on_it(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    """A commit in doubt that the new Redis does not have is refused, and never sent again."""
    valkey = start_valkey(appendfsync="always")
    connector = connector_to(valkey)
    owner = RecordingOwner()
    async with opened(connector, durability="fsync") as store:
        connector.streams[0].break_after(
            sent=0, on_break=lambda: valkey.execute("CONFIG", "SET", "appendfsync", "no")
        )
        outcome = await write(store, owner)
        assert isinstance(outcome, UnavailableError)
        assert "DBOS_DURABILITY=fsync" in str(outcome)
        assert owner.refusals
        assert valkey.execute("EXISTS", "n") == 0
        assert store.is_current


async def test_without_such_a_setting_a_change_is_told_and_counted(
    start_valkey: Callable[..., ValkeyServer], caplog: pytest.LogCaptureFixture
) -> None:
    valkey = start_valkey()
    owner = RecordingOwner()
    async with opened(connector_to(valkey), **SOON) as store:
        assert store.statistics().warnings == 0
        valkey.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await until(lambda: store.statistics().warnings == 1)
        assert [warning.name for warning in store.warnings] == ["maxmemory-policy"]
        assert await write(store, owner) == [1]
        await trio.sleep(0.2)
    assert caplog.text.count("unsafe_redis") == 1


async def test_a_redis_that_reads_no_argument_as_long_as_ours_is_refused_at_the_start(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    """Catches a commit that such a Redis closes the connection at, and that is sent for ever."""
    valkey = start_valkey(proto_max_bulk_len=1 << 20)
    demands: dict[str, Any] = {
        "argument_bytes": 2 << 20,
        "argument_setting": "DBOS_MAX_DATA_BYTES=2097152",
    }
    with pytest.raises(UnsafeStoreError, match=r"proto-max-bulk-len 1048576.*DBOS_MAX_DATA_BYTES"):
        async with opened(connector_to(valkey), **demands):
            raise AssertionError


def test_what_cannot_be_read_of_a_configuration_is_no_violation_of_its_own() -> None:
    assert judge({}, Requirements(durability="fsync", argument_bytes=1 << 30)).violation is None
