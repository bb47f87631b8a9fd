"""A store behind connections that a test can break."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

import trio

from dbos_actors.clock import SystemClock
from dbos_actors.store import Store, StoreSettings, connector_for, open_store
from tests.support.faults import BreakingConnector
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
