"""The SDK for Trio programs: the same messages and stub, over a channel on Trio.

::

    async with connect("127.0.0.1:50051") as stub:
        response = await stub.get_agent(GetAgentRequest(agent_id="probe-1"))

        async for outcome in stub.store_results(requests()):  # sent as they come
            ...

Messages, errors and helpers (`writer`, `work`, ...) are those of `dbos_actors.client`. Cancelling a
task cancels its call.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dbos_actors.api.sdk import dbos
from dbos_actors.client import DEFAULT_TIMEOUT_S, GRPCError, Status
from dbos_actors.client.addresses import channel_target
from dbos_actors.client.calls import CheckedStub
from dbos_actors.client.environment import default_address
from dbos_actors.rpc.client.channel import BackoffPolicy, Channel, ChannelOptions
from dbos_actors.rpc.client.stubs import TrioStub

__all__ = [
    "BackoffPolicy",
    "Channel",
    "ChannelOptions",
    "DbosStub",
    "GRPCError",
    "Status",
    "connect",
]


class DbosStub(CheckedStub, TrioStub, dbos.DbosStub):  # type: ignore[misc] # streams are no generators here
    """The service's stub; all of its methods run on Trio."""


@asynccontextmanager
async def connect(
    address: str | None = None,
    *,
    token: str | None = None,
    tls: ssl.SSLContext | bool = False,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    options: ChannelOptions | None = None,
    retries: bool = True,
) -> AsyncIterator[DbosStub]:
    """A stub of the service at ``address``, for the length of the block.

    ``address``, ``token``, ``tls``, ``timeout_s`` and ``retries`` are as for
    `dbos_actors.client.connect`; ``timeout_s`` is also the deadline of streams: give long ones
    their own. ``options`` are the channel's, among them whether calls wait for a server that is
    away.

    At the end of the block calls still running fail, CANCELLED. Raises `ValueError` for an
    address of another form.
    """
    host, port, path = channel_target(default_address() if address is None else address)
    metadata = {"authorization": f"Bearer {token}"} if token is not None else None
    async with Channel(host, port, path=path, ssl=tls, options=options) as channel:
        grpclib_shaped: Any = channel  # the stub names grpclib's own type
        stub = DbosStub(grpclib_shaped, timeout=timeout_s, metadata=metadata)
        stub.retries = retries
        yield stub
