"""A server, and the SDK on asyncio and on Trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest

from dbos_actors import client as sdk
from dbos_actors.client import DbosStub
from dbos_actors.client import trio as trio_sdk
from dbos_actors.client.trio import ChannelOptions
from tests.support.service_fixtures import (
    client,
    clock,
    redis,
    server,
    shared_valkey,
    start_server,
)

__all__ = ["client", "clock", "redis", "server", "shared_valkey", "start_server"]

Body: TypeAlias = Callable[[DbosStub], Awaitable[None]]
RunWithStub: TypeAlias = Callable[..., None]


@pytest.fixture(params=["asyncio", "trio"])
def run_with_stub(request: pytest.FixtureRequest) -> RunWithStub:
    """Run a coroutine function with a stub of the server at an address, on one of the two."""
    connect: Any = sdk.connect if request.param == "asyncio" else trio_sdk.connect

    def run(
        address: str,
        body: Body,
        *,
        limit_s: float = 60.0,
        connect_s_max: float | None = None,
        **options: Any,
    ) -> None:
        if connect_s_max is not None and request.param == "trio":
            options["options"] = ChannelOptions(connect_s_max=connect_s_max)

        async def main() -> None:
            with anyio.fail_after(limit_s):
                async with connect(address, **options) as stub:
                    await body(stub)

        anyio.run(main, backend=request.param)

    return run
