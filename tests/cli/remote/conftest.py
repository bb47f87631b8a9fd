"""A server, and the commands that call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
from click.testing import CliRunner, Result

from dbos_actors.cli import main
from tests.support.servers import ServerThread
from tests.support.service_fixtures import (
    client,
    clock,
    redis,
    server,
    shared_valkey,
    start_server,
)

__all__ = ["client", "clock", "redis", "server", "shared_valkey", "start_server"]

Run: TypeAlias = Callable[..., Result]


@pytest.fixture
def run(server: ServerThread) -> Run:
    """Run a command against the server."""

    def run(*arguments: str, input: str | None = None) -> Result:  # noqa: A002 - as click says
        environment = {"DBOS_ADDRESS": server.address}
        return CliRunner().invoke(main, arguments, input=input, env=environment)

    return run
