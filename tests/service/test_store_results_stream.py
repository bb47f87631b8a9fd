"""StoreResults: many results on one stream."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import trio

from dbos_actors.api.messages import (
    MeasurementResult,
    StoreResultRequest,
    StoreResultsResponse,
)
from dbos_actors.domain.limits import Limits
from dbos_actors.errors import UnavailableError, sole_cause
from dbos_actors.runtime import Call
from dbos_actors.service.draining import Draining
from dbos_actors.service.store_results import store_results
from dbos_actors.store import connector_for
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread
from tests.support.stalling import StallingConnector

TIMEOUT_S = 20.0


def result(number: int, *, data: bytes = b"x" * 200) -> StoreResultRequest:
    return StoreResultRequest(
        result=MeasurementResult(
            id=f"r{number}", agent_id=f"a{number % 7}", module_name="ping", data=data
        )
    )


def results(count: int) -> list[StoreResultRequest]:
    return [result(number) for number in range(count)]


@pytest.fixture
def stream_results(
    server: ServerThread,
) -> Iterator[Callable[[Any], Iterator[StoreResultsResponse]]]:
    with grpc.insecure_channel(server.address) as channel:
        yield open_stream(channel)


def open_stream(channel: grpc.Channel) -> Callable[[Any], Iterator[StoreResultsResponse]]:
    method = channel.stream_stream(
        "/dbos.DBOS/StoreResults",
        request_serializer=StoreResultRequest.SerializeToString,
        response_deserializer=StoreResultsResponse.FromString,
    )

    def start(requests: Any) -> Iterator[StoreResultsResponse]:
        responses: Iterator[StoreResultsResponse] = method(iter(requests), timeout=TIMEOUT_S)
        return responses

    return start


def test_every_result_of_a_stream_is_settled_and_stored(
    stream_results: Any, client: GrpcioClient
) -> None:
    responses = list(stream_results(results(2_500)))
    assert responses[-1].durable == 2_500
    assert [r.durable for r in responses] == sorted(r.durable for r in responses)
    assert sum(len(r.rejected) for r in responses) == 0
    stored = client.call("ListResults", agent_id="a3")
    assert len(stored.results) == len(range(3, 2_500, 7))


def test_repeats_are_counted_and_rejected_ones_named_by_their_place(stream_results: Any) -> None:
    batch = results(10)
    batch[4].result.module_name = ""
    batch[8].result.agent_id = ""
    list(stream_results(batch))
    responses = list(stream_results(batch))
    assert responses[-1].durable == 10
    assert responses[-1].duplicates == 8
    rejected = [(r.index, r.agent_id, r.id, r.error) for part in responses for r in part.rejected]
    assert rejected == [
        (4, "a4", "r4", "result.module_name is required"),
        (8, "", "r8", "result.agent_id is required"),
    ]


def test_a_long_lived_stream_is_answered_while_it_is_open(stream_results: Any) -> None:
    requests: queue.Queue[StoreResultRequest | None] = queue.Queue()
    responses = stream_results(iter(requests.get, None))
    for number, request in enumerate(results(5), start=1):
        requests.put(request)
        assert next(responses).durable == number
    requests.put(None)
    assert list(responses) == []


def test_an_empty_stream_ends_well(stream_results: Any) -> None:
    assert list(stream_results([])) == []


def test_memory_is_bounded_while_redis_takes_nothing(
    start_server: Callable[..., ServerThread], redis: Any
) -> None:
    """Nothing is read beyond what may be unsettled: the client is stopped by flow control."""
    connector = StallingConnector(connector_for(redis.address))
    server = start_server(connector=connector)
    sent = 0

    def requests() -> Iterator[StoreResultRequest]:
        nonlocal sent
        while True:
            sent += 1
            yield result(sent, data=b"x" * 8_000)

    with grpc.insecure_channel(server.address) as channel:
        responses = open_stream(channel)(requests())
        assert next(responses).durable > 0
        server.run(connector.stall)
        with pytest.raises(grpc.RpcError) as ended:
            list(responses)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sent < 20_000
        server.run(connector.release)


class FakeStream:
    """A stream whose messages are there at once, and whose responses are kept."""

    def __init__(self, requests: list[StoreResultRequest]) -> None:
        self.responses: list[StoreResultsResponse] = []
        self._requests = requests

    async def recv_messages(self, count_max: int) -> list[StoreResultRequest]:
        await trio.lowlevel.checkpoint()
        taken, self._requests = self._requests[:count_max], self._requests[count_max:]
        return taken

    async def send_message(self, response: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.responses.append(StoreResultsResponse.FromString(response))


async def test_durable_never_passes_a_message_that_failed() -> None:
    """Also when an earlier message is settled before the failure has ended the stream."""
    stream: Any = FakeStream(results(3))
    calls: list[Call] = []

    def deliver(_: str, call: Call) -> None:
        calls.append(call)
        if len(calls) == 3:
            calls[1].fail(UnavailableError("its agent is quarantined"))
            calls[2].reply(b"")
            calls[0].reply(b"")

    with pytest.raises(ExceptionGroup) as raised:
        await store_results(stream, limits=Limits(), deliver=deliver, draining=Draining())
    assert str(sole_cause(raised.value)) == "its agent is quarantined"
    assert [response.durable for response in stream.responses] == [1]
