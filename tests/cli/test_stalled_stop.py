"""SIGTERM while Redis is stalled and a stream waits for it."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable

import grpc
import pytest

from dbos_actors.api.messages import (
    MeasurementResult,
    StoreResultRequest,
    StoreResultsResponse,
)
from tests.support.process import ServerProcess
from tests.support.valkey import ValkeyServer

GRACE_S = 4.0


@pytest.mark.parametrize("attempt", range(3))
def test_a_stop_with_a_stalled_redis_and_an_open_stream_ends_in_its_grace(
    start_valkey: Callable[..., ValkeyServer],
    attempt: int,  # which of two tasks fails first is chance
) -> None:
    valkey = start_valkey()
    requests: queue.Queue[StoreResultRequest] = queue.Queue()
    with (
        ServerProcess(valkey.address, DBOS_DRAIN_GRACE=f"{GRACE_S}s").wait_ready() as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = channel.stream_stream(
            "/dbos.DBOS/StoreResults",
            request_serializer=StoreResultRequest.SerializeToString,
            response_deserializer=StoreResultsResponse.FromString,
        )
        stream = call(iter(requests.get, None))
        result = MeasurementResult(id="r", agent_id="a", module_name="ping")
        requests.put(StoreResultRequest(result=result))
        assert next(stream).durable == 1
        valkey.pause()
        try:
            for number in range(100):
                result.id = f"r{number}"
                requests.put(StoreResultRequest(result=result))

            began_s = time.monotonic()
            server.send(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as ended:
                next(stream)
            status = server.wait(3 * GRACE_S)
            took_s = time.monotonic() - began_s
        finally:
            valkey.resume()
            requests.put(None)  # type: ignore[arg-type]
        assert (status, ended.value.code()) == (0, grpc.StatusCode.UNAVAILABLE), server.log()
        assert ended.value.details() == "the server is draining"
        assert "Traceback" not in server.log()
        assert took_s < GRACE_S + 1.0
