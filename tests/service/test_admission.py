"""Clients without a token must not use up what those with one need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from grpclib.const import Status

from dbos_actors.rpc.server.limits import ServerLimits
from tests.support.raw_client import RawSocketClient
from tests.support.servers import ServerThread

StartServer = Callable[..., ServerThread]

WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"
GET_AGENT = "/dbos.DBOS/GetAgent"
AGENT = b"\x0a\x01a"  # agent_id: "a"

LIMITS = ServerLimits()


@pytest.fixture
def guarded(start_server: StartServer, tmp_path: Path) -> ServerThread:
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n")
    return start_server(auth_token_file=tokens)


def watch(client: RawSocketClient, count: int) -> list[int]:
    """Begin so many Watch calls; all have a first answer or their status when it returns."""
    streams = [client.request(WATCH) for _ in range(count)]
    client.read_until(
        lambda: all(one in client.statuses or one in client.received for one in streams)
    )
    return streams


def test_130_connections_of_1000_health_watches_lock_nobody_out(guarded: ServerThread) -> None:
    with ExitStack() as stack:
        strangers = [stack.enter_context(RawSocketClient(guarded.address)) for _ in range(130)]
        for stranger in strangers:
            streams = watch(stranger, 1_000)
            refused = [one for one in streams if one in stranger.statuses]
            assert len(refused) >= 1_000 - LIMITS.open_calls_connection_max
            assert {stranger.statuses[one] for one in refused} == {Status.RESOURCE_EXHAUSTED}
        client = stack.enter_context(RawSocketClient(guarded.address, token="first"))
        assert client.call(GET_AGENT, AGENT) is Status.OK
        late = stack.enter_context(RawSocketClient(guarded.address))
        assert late.call(CHECK) is Status.OK
        statistics = guarded.run(guarded.inside.rpc.statistics)
        assert statistics.calls_open <= LIMITS.open_calls_strangers_max
        assert statistics.calls_live <= LIMITS.open_calls_strangers_max


def test_a_call_without_a_token_is_refused_while_its_message_is_still_to_come(
    guarded: ServerThread,
) -> None:
    with RawSocketClient(guarded.address) as stranger:
        stream = stranger.request("/dbos.DBOS/StoreResults", AGENT, end=False)
        stranger.read_until(lambda: stream in stranger.statuses)
        assert stranger.statuses[stream] is Status.UNAUTHENTICATED
        assert guarded.run(guarded.inside.rpc.statistics).calls_live == 0
