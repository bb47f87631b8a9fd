"""Fixtures every test package may use, and how Hypothesis searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import settings

from dbos_actors.log_limits import LIMITS
from tests.support.valkey import ValkeyServer

# The gate tries the same examples each time, so that what it says depends on the code alone.
# `python -m tests.search` looks for others. No example has a deadline: how long one takes depends
# on what else the machine does.
settings.register_profile("gate", derandomize=True, database=None, deadline=None)
settings.register_profile("search", database=None, print_blob=True, deadline=None)
settings.load_profile("gate")


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


@pytest.fixture(autouse=True)
def _log_lines_of_earlier_tests_are_forgotten() -> None:
    """The limits of log lines are the process's, and this process runs many tests a second."""
    LIMITS._events.clear()


@pytest.fixture(autouse=True)
def _log_lines_go_to_logging() -> None:
    """Commands that run in this process set structlog up, and would leave it so for later tests."""
    structlog.reset_defaults()
