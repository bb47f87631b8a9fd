"""The moment that the key ``changes`` holds, when a server starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dbos_actors.actors.agents.change_clock import ChangeClock
from dbos_actors.clock import SystemClock
from dbos_actors.errors import UnusableStoreError
from dbos_actors.store import Keys
from tests.store.test_store import opened
from tests.support.valkey import ValkeyServer

CHANGES = Keys().changes


async def test_a_later_server_goes_on_above_the_moment_in_redis(valkey: ValkeyServer) -> None:
    ahead_ms = int(SystemClock().wall_s() * 1000) + 3_600_000
    valkey.execute("SET", CHANGES, ahead_ms)
    async with opened(valkey.address) as store:
        changes = ChangeClock(store, SystemClock())
        await changes.load()
        assert changes.next_us() == ahead_ms * 1000 + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda valkey: valkey.execute("SET", CHANGES, "garbage"),
        lambda valkey: valkey.execute("SET", CHANGES, ""),
        lambda valkey: valkey.execute("SET", CHANGES, "9" * 4_000),
        lambda valkey: valkey.execute("SADD", CHANGES, "x"),
    ],
    ids=["garbage", "nothing", "a number beyond all times", "a set"],
)
async def test_a_moment_that_is_none_stops_the_start_and_names_the_remedy(
    valkey: ValkeyServer, damage: Callable[[ValkeyServer], object]
) -> None:
    damage(valkey)
    async with opened(valkey.address) as store:
        with pytest.raises(UnusableStoreError, match=r"changes is no time .* 'dbos-actors repair'"):
            await ChangeClock(store, SystemClock()).load()
