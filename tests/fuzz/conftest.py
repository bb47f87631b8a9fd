"""One server for each module: it has to live through everything that is thrown at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyServer]:
    with ValkeyServer(appendfsync="everysec") as valkey:
        yield valkey


@pytest.fixture(scope="module")
def victim(store: ValkeyServer) -> Iterator[ServerThread]:
    """The server under attack."""
    server = ServerThread(store.address, idle_passivation_s=1.0)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def attacker(victim: ServerThread) -> Iterator[GrpcioClient]:
    with GrpcioClient(victim.address) as client:
        yield client


@pytest.fixture(scope="module")
def witness(victim: ServerThread) -> Iterator[GrpcioClient]:
    """A client on a connection of its own, which must not notice anything."""
    with GrpcioClient(victim.address) as client:
        yield client
