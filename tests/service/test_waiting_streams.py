"""What a stream costs that waits: ten thousand of them are an ordinary network's workers."""

from __future__ import annotations

import time

import trio

from dbos_actors.api.messages import SubscribeTasksRequest
from tests.support.raw_client import RawSocketClient
from tests.support.servers import ServerThread

STREAMS = 50


def test_a_subscriber_that_waits_costs_one_task(server: ServerThread) -> None:
    first = SubscribeTasksRequest()
    first.start.max_in_flight = 10
    message = first.SerializeToString()

    def tasks_living() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    def subscribers() -> int:
        return server.inside.tasks.statistics().subscribers

    with RawSocketClient(server.address) as client:
        client.call("/grpc.health.v1.Health/Check")
        before = server.run(tasks_living)
        for _ in range(STREAMS):
            client.request("/dbos.DBOS/SubscribeTasks", message, end=False)
        client.flush()
        give_up_at = time.monotonic() + 10.0
        while server.run(subscribers) < STREAMS:
            assert time.monotonic() < give_up_at, "they do not subscribe"
            time.sleep(0.01)
        assert server.run(tasks_living) == before + STREAMS
