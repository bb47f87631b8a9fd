"""A connection without ownership: for programs that look into a store beside its server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from dbos_actors.store.connection import Connection, answered_within, handshake
from dbos_actors.store.connector import Connector

Call = Callable[[bytes, int], Awaitable[list[Any]]]
"""Sends packed commands, gives that many replies. Raises `ConnectionLostError`."""

_CLIENT_NAME = "dbos-actors-maintenance"


@asynccontextmanager
async def open_connection(connector: Connector, *, timeout_s: float) -> AsyncIterator[Call]:
    """A connection for the length of the block; each call is answered within ``timeout_s``.

    Raises `ConnectionLostError`, and `AuthenticationError` if Redis refuses the user.
    """
    with answered_within(timeout_s):
        connection = Connection(await connector.connect())
    try:
        with answered_within(timeout_s):
            await handshake(
                connection,
                username=connector.username,
                password=connector.password,
                database=connector.database,
                client_name=_CLIENT_NAME,
            )

        async def call(payload: bytes, count: int) -> list[Any]:
            with answered_within(timeout_s):
                return await connection.call(payload, count)

        yield call
    finally:
        with trio.CancelScope(shield=True):
            await connection.aclose()
