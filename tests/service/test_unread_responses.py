"""What clients cost that send on streams and do not read what they are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from dbos_actors.api.messages import (
    MeasurementResult,
    StoreResultRequest,
    SubscribeTasksRequest,
)
from tests.support.clients import GrpcioClient
from tests.support.process import ServerProcess
from tests.support.unread import send_until_stopped
from tests.support.valkey import ValkeyServer

MIB = 1 << 20

Messages = Callable[[], Iterator[bytes]]


def refused_results(id_bytes: int) -> Messages:
    """Without a module's name, or with an id that is too long."""

    def messages() -> Iterator[bytes]:
        for number in count():
            name = f"{number:x>{id_bytes}}"
            result = MeasurementResult(id=name, agent_id="a")
            yield StoreResultRequest(result=result).SerializeToString()

    return messages


def empty_results() -> Iterator[bytes]:
    while True:
        yield b""


def acknowledgements(id_bytes: int) -> Messages:
    """Of tasks that nobody knows, or with an id that is too long."""

    def messages() -> Iterator[bytes]:
        yield SubscribeTasksRequest(start={}).SerializeToString()
        for number in count():
            name = f"{number:x>{id_bytes}}"
            yield SubscribeTasksRequest(ack={"task_id": name}).SerializeToString()

    return messages


@pytest.fixture
def server(start_valkey: Callable[..., ValkeyServer]) -> Iterator[ServerProcess]:
    valkey = start_valkey(appendonly="no")
    with ServerProcess(valkey.address) as process:
        yield process.wait_ready()


@pytest.mark.parametrize(
    ("method", "messages"),
    [
        ("StoreResults", refused_results(256)),
        ("StoreResults", refused_results(1_000_000)),
        ("StoreResults", empty_results),
        ("SubscribeTasks", acknowledgements(256)),
        ("SubscribeTasks", acknowledgements(1_000_000)),
        ("SubscribeTasks", acknowledgements(1)),
    ],
    ids=["results", "long-results", "empty-results", "acks", "long-acks", "short-acks"],
)
def test_one_client_that_does_not_read_costs_at_most_eight_mebibytes(
    server: ServerProcess,
    method: str,
    messages: Messages,
    record_property: Callable[[str, Any], None],
) -> None:
    warm_up(server, method, messages)
    before = server.rss_bytes()
    with send_until_stopped(
        server.address, f"/dbos.DBOS/{method}", messages, clients=1, total_bytes_max=64 * MIB
    ):
        grown = server.rss_bytes() - before
        record_property("grown_kib", grown // 1024)
        print(f"{method}: {grown / MIB:.1f} MiB")
        assert grown < 8 * MIB
        with GrpcioClient(server.address) as client:
            assert client.call("ListAgents").error == ""


def warm_up(server: ServerProcess, method: str, messages: Messages) -> None:
    """What the process keeps for later use is not this client's."""
    with send_until_stopped(
        server.address, f"/dbos.DBOS/{method}", messages, clients=1, total_bytes_max=64 * MIB
    ):
        pass


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "messages"),
    [
        ("StoreResults", refused_results(256)),
        ("StoreResults", refused_results(1_000)),
        ("SubscribeTasks", acknowledgements(256)),
        ("SubscribeTasks", acknowledgements(1)),
    ],
    ids=["results", "long-results", "acks", "short-acks"],
)
def test_a_thousand_clients_that_do_not_read_cost_at_most_half_a_gibibyte(
    start_valkey: Callable[..., ValkeyServer], method: str, messages: Messages
) -> None:
    valkey = start_valkey(appendonly="no")
    with ServerProcess(valkey.address).wait_ready() as server:
        before = server.rss_bytes()
        with send_until_stopped(
            server.address,
            f"/dbos.DBOS/{method}",
            messages,
            clients=1_000,
            total_bytes_max=2_048 * MIB,
        ):
            grown = server.rss_bytes() - before
            print(f"{method}: {grown / MIB:.0f} MiB")
            assert grown < 512 * MIB
