"""A server with a token for each role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dbos_actors.access import token_file
from dbos_actors.access.entries import Entry, digest_of, new_token
from dbos_actors.access.roles import Role
from tests.support.servers import ServerThread
from tests.support.service_fixtures import clock, redis, shared_valkey, start_server

__all__ = ["clock", "redis", "shared_valkey", "start_server"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the token file is to be."""
    return tmp_path / "tokens"


@pytest.fixture
def tokens(path: Path) -> dict[Role, str]:
    """The token of one principal for each role, named as its role."""
    made = {role: new_token() for role in Role}
    for role, token in made.items():
        token_file.add(path, Entry(name=role.value, role=role, sha256=digest_of(token.encode())))
    return made


@pytest.fixture
def guarded(
    start_server: Callable[..., ServerThread], path: Path, tokens: dict[Role, str]
) -> ServerThread:
    """A server that demands these tokens."""
    assert tokens
    return start_server(auth_token_file=path)
