"""Fixtures of the tests that talk to a server through a client.

One Valkey serves a whole test run and is emptied between tests; every test has a server
of its own, in a thread, so that what a test sees is all that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import KINDS, Client, GrpcioClient, open_client
from tests.support.servers import ServerThread, SteppedClock
from tests.support.valkey import ValkeyServer


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def redis(shared_valkey: ValkeyServer) -> ValkeyServer:
    """An empty Valkey, for tests that do it no harm."""
    shared_valkey.execute("FLUSHALL")
    shared_valkey.execute("CONFIG", "RESETSTAT")
    return shared_valkey


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def start_server(redis: ValkeyServer, clock: SteppedClock) -> Iterator[Callable[..., ServerThread]]:
    """Start servers on `redis` with settings of one's own; all are stopped at the end."""
    servers: list[ServerThread] = []

    def start(**options: Any) -> ServerThread:
        options.setdefault("clock", clock)
        server = ServerThread(redis.address, **options)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in reversed(servers):
        server.stop()


@pytest.fixture
def server(start_server: Callable[..., ServerThread]) -> ServerThread:
    return start_server()


@pytest.fixture
def client(server: ServerThread) -> Iterator[GrpcioClient]:
    """A client with today's contract."""
    with GrpcioClient(server.address) as client:
        yield client


@pytest.fixture(params=KINDS)
def any_client(server: ServerThread, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of every kind in turn."""
    with open_client(request.param, server.address) as client:
        yield client
