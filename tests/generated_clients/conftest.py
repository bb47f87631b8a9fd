"""The server and its clients, as fixtures."""

from tests.support.service_fixtures import (
    any_client,
    client,
    clock,
    redis,
    server,
    shared_valkey,
    start_server,
)

__all__ = ["any_client", "client", "clock", "redis", "server", "shared_valkey", "start_server"]
