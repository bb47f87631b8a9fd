"""What a listing costs: bytes held in the server and in Redis, and round trips."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

from dbos_actors.actors.pages import Page
from tests.support.clients import GrpcioClient
from tests.support.process import ServerProcess
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

MIB = 1 << 20


def store(client: GrpcioClient, count: int, **fields: Any) -> None:
    base = {"agent_id": "a", "module_name": "m", **fields}
    calls = ({"result": {"id": f"r{number:06}", **base}} for number in range(count))
    assert all(response.success for response in client.call_many("StoreResult", calls))


def calls_of(redis: ValkeyServer, command: str) -> int:
    statistics = redis.execute("INFO", "commandstats")
    return int(statistics.get(f"cmdstat_{command.lower()}", {}).get("calls", 0))


class HighWater:
    """Watches two figures from a thread of its own, and keeps their highest values."""

    def __init__(self, *figures: Callable[[], int]) -> None:
        self._figures = figures
        self.highest = [0] * len(figures)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            values = [figure() for figure in self._figures]
            self.highest = [max(pair) for pair in zip(self.highest, values, strict=True)]
            time.sleep(0.002)


def test_listings_of_megabyte_results_hold_a_bounded_number_of_bytes(
    redis: ValkeyServer,
) -> None:
    with (
        ServerProcess(redis.address).wait_ready() as server,
        GrpcioClient(server.address) as client,
    ):
        store(client, 64, data=b"x" * (MIB - 1024))
        redis_before = redis.execute("INFO", "memory")["used_memory"]

        def list_some(_: int) -> int:
            with GrpcioClient(server.address) as own:
                response = own.call("ListResults", agent_id="a", page_size=1_000, timeout_s=60)
                assert response.next_page_token
                return len(response.results)

        time.sleep(6)  # what may be sent again to Redis leaves memory after five seconds
        before = server.rss_bytes()
        figures = server.rss_bytes, lambda: redis.execute("INFO", "memory")["used_memory"]
        with HighWater(*figures) as high, ThreadPoolExecutor(8) as pool:
            assert list(pool.map(list_some, range(8))) == [4 - 1] * 8
        assert high.highest[0] - before < 150 * MIB
        assert high.highest[1] - redis_before < 40 * MIB


@pytest.mark.parametrize("page_size", [1, 1_000])
def test_the_newest_result_of_a_rare_module_takes_few_round_trips(
    server: ServerThread, redis: ValkeyServer, client: GrpcioClient, page_size: int
) -> None:
    store(client, 1, module_name="rare", received_at=1_000)
    for start in range(0, 10_000, 1_000):
        calls = (
            {
                "result": {
                    "id": f"c{number:06}",
                    "agent_id": "a",
                    "module_name": "common",
                    "received_at": 2_000 + number,
                }
            }
            for number in range(start, start + 1_000)
        )
        assert all(response.success for response in client.call_many("StoreResult", calls))
    before = calls_of(redis, "HMGET")
    response = client.call(
        "ListResults", agent_id="a", module_name="rare", page_size=page_size, newest_first=True
    )
    assert [result.id for result in response.results] == ["r000000"]
    assert calls_of(redis, "HMGET") - before < 50


def test_the_newest_result_of_a_common_module_reads_few_records(
    server: ServerThread, redis: ValkeyServer, client: GrpcioClient
) -> None:
    store(client, 500)
    before = calls_of(redis, "HSTRLEN")
    response = client.call(
        "ListResults", agent_id="a", module_name="m", page_size=1, newest_first=True
    )
    assert len(response.results) == 1
    assert calls_of(redis, "HSTRLEN") - before <= 16


@pytest.mark.parametrize("method", ["ListResults", "ListModuleStates", "ListAgents"])
@pytest.mark.parametrize("page_size", [0, 9, 10, 11])
def test_a_page_that_ends_the_listing_reads_the_index_once(
    server: ServerThread, redis: ValkeyServer, client: GrpcioClient, method: str, page_size: int
) -> None:
    # Mutation: ask what follows the last entry, though fewer came than were asked for.
    store(client, 9, agent_id="a0")
    for number in range(9):
        state = {"agent_id": "a0", "request_id": f"q{number}", "module_name": "m"}
        client.call("SetModuleState", state={**state, "state": "created"})
        client.call("RegisterAgent", agent={"id": f"a{number}"})
    before = {name: calls_of(redis, name) for name in ("ZRANGE", "HSTRLEN", "HMGET")}
    listed: dict[str, Any] = {"page_size": page_size}
    if method != "ListAgents":
        listed["agent_id"] = "a0"
    response = client.call(method, **listed)
    assert not response.next_page_token
    used = {name: calls_of(redis, name) - count for name, count in before.items()}
    assert used == {"ZRANGE": 1, "HSTRLEN": 9, "HMGET": 1}


def test_records_added_together_make_the_page_that_they_make_one_by_one() -> None:
    sizes = [0, 1, 127, 128, 5_000, 16_383, 16_384, 70_000]
    records = [b"x" * size for size in sizes]
    limits = {"page_size": len(sizes), "limit_bytes": MIB}
    together, singly = Page(**limits), Page(**limits)
    assert together.add_all(records)
    assert all(singly.add(record) for record in records)
    assert together.response("token") == singly.response("token")
    assert not together.add_all([b""]), "the page is full"
    assert not Page(page_size=0, limit_bytes=50_000).add_all(records), "they do not fit"
