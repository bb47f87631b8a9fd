"""Fixtures every test package may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.valkey import ValkeyServer


@pytest.fixture
def start_valkey() -> Iterator[Callable[..., ValkeyServer]]:
    """Start private Valkey servers with a configuration; all are gone at the end of the test."""
    servers: list[ValkeyServer] = []

    def start(*, tcp: bool = False, **config: str | int) -> ValkeyServer:
        server = ValkeyServer(tcp=tcp, **config)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def valkey(start_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    """A private, empty, durable Valkey on a unix socket."""
    return start_valkey()
