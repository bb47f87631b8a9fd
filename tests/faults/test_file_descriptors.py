"""Connections must not take the file descriptors that the server itself needs."""

from __future__ import annotations

import resource
from contextlib import ExitStack
from pathlib import Path

import pytest
from grpclib.const import Status

from dbos_actors.rpc.server.descriptors import RESERVED
from tests.support.process import NotReadyError, ServerProcess
from tests.support.raw_client import RawSocketClient
from tests.support.valkey import ValkeyServer

GET_AGENT = "/dbos.DBOS/GetAgent"
AGENT = b"\x0a\x01a"  # agent_id: "a"


def limited(server: ServerProcess, soft: int, hard: int) -> ServerProcess:
    """Give a process that is still starting its limits."""
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
    return server.wait_ready()


def descriptors(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def test_the_server_connects_to_redis_again_while_idle_connections_stay(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n")
    with (
        ServerProcess(valkey.address, DBOS_AUTH_TOKEN_FILE=str(tokens)) as server,
        ExitStack() as s,
    ):
        limited(server, 200, 300)
        client = s.enter_context(RawSocketClient(server.address, token="first"))
        assert client.call(GET_AGENT, AGENT) is Status.OK
        strangers = [s.enter_context(RawSocketClient(server.address)) for _ in range(400)]
        late = s.enter_context(RawSocketClient(server.address, token="first"))
        assert late.call(GET_AGENT, AGENT) is Status.OK, "the last of 400 had no place"
        assert 200 < descriptors(server) <= 300 - RESERVED + 5
        valkey.restart()
        assert client.call(GET_AGENT, AGENT) is Status.OK
        assert late.call(GET_AGENT, AGENT) is Status.OK
        assert not strangers[-1].is_closed
        assert "Too many open files" not in server.log()


def test_too_few_descriptors_are_told_at_the_start(valkey: ValkeyServer) -> None:
    with ServerProcess(valkey.address) as server:
        with pytest.raises(NotReadyError) as refused:
            limited(server, 64, 64)
        assert refused.value.status == 2
        assert "RLIMIT_NOFILE" in refused.value.log
