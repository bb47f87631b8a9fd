"""What has ended is freed at once: nothing waits for the garbage collector."""

from __future__ import annotations

import gc
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dbos_actors.api.messages import StoreResultRequest, SubscribeTasksRequest
from tests.support.raw_client import RawSocketClient
from tests.support.servers import ServerThread

SUBSCRIBE = "/dbos.DBOS/SubscribeTasks"
STORE = "/dbos.DBOS/StoreResults"
WATCH = "/grpc.health.v1.Health/Watch"
LIST = "/dbos.DBOS/ListAgents"

STREAMS = 8


def first_message(path: str) -> bytes:
    if path == SUBSCRIBE:
        start = SubscribeTasksRequest()
        start.start.max_in_flight = 10
        return start.SerializeToString()
    if path == STORE:
        result = StoreResultRequest()
        result.result.id, result.result.agent_id, result.result.module_name = "r", "a", "m"
        return result.SerializeToString()
    return b""


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < give_up_at, "it never happened"
        time.sleep(0.01)


def run_streams(server: ServerThread, path: str, ending: str) -> None:
    """Some streams from begin to end; the server has dealt with them when it returns."""
    client = RawSocketClient(server.address)
    ends = ending == "ended by the client" or path == WATCH
    streams = [client.request(path, first_message(path), end=ends) for _ in range(STREAMS)]
    client.flush()
    if ending == "ended by the client" and path != WATCH:
        client.read_until(lambda: set(streams) <= set(client.statuses))
    elif path == LIST:
        pass
    else:
        wait_until(lambda: server.run(server.inside.rpc.statistics).calls_live == STREAMS)
        if path != SUBSCRIBE:
            client.read_until(lambda: set(streams) <= set(client.received))
    if ending == "reset by the client":
        client.reset(streams)
        wait_until(lambda: server.run(server.inside.rpc.statistics).calls_live == 0)
    if ending == "cut":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: server.run(server.inside.rpc.statistics).connections == 0)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No collection happens unless the test asks for one."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("ending", ["cut", "closed", "reset by the client", "ended by the client"])
@pytest.mark.parametrize("path", [SUBSCRIBE, STORE, WATCH, LIST])
def test_streams_and_connections_that_have_ended_are_in_no_cycle(
    server: ServerThread, uncollected: None, path: str, ending: str
) -> None:
    run_streams(server, path, ending)  # what is made once, is made now
    gc.collect()
    run_streams(server, path, ending)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    left = Counter(
        type(one).__qualname__
        for one in gc.garbage
        if str(type(one).__module__).startswith(("dbos_actors", "trio", "ngh2"))
        or isinstance(one, BaseException)
    )
    assert left == Counter()
