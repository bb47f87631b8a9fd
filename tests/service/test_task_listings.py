"""Listings of many tasks, and of large ones, through real clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.service.test_listing_costs import MIB, HighWater
from tests.support.clients import GrpcioClient
from tests.support.process import ServerProcess
from tests.support.servers import ServerThread
from tests.support.tasks import NOW_S
from tests.support.valkey import ValkeyServer

COUNT = 2_500


def schedule_many(client: GrpcioClient, count: int = COUNT, payload: bytes = b"p") -> None:
    """Tasks of ten agents, the one with the highest id the oldest; the last tenth of the future."""
    calls = (
        {
            "task": {
                "id": f"t{number:05}",
                "agent_id": f"a{number % 10}",
                "module_name": "ping" if number % 5 else "dns",
                "payload": payload,
                "scheduled_at": NOW_S - number if number < 0.9 * count else NOW_S + number,
            }
        }
        for number in range(count)
    )
    assert all(response.success for response in client.call_many("ScheduleTask", calls))


@pytest.mark.parametrize("lease_s", [0, 300])
def test_due_tasks_are_listed_oldest_first_however_many_slices_that_takes(
    start_server: Callable[..., ServerThread], lease_s: int
) -> None:
    server = start_server(due_tasks_lease_s=lease_s)
    with GrpcioClient(server.address) as client:
        schedule_many(client)
        due = [f"t{number:05}" for number in reversed(range(int(0.9 * COUNT)))]

        def listed(**fields: Any) -> list[str]:
            tasks = client.call("ListDueTasks", **fields).tasks
            assert all(task.payload == b"p" for task in tasks)
            assert {task.status for task in tasks} <= {"inflight" if lease_s else "pending"}
            ids = [task.id for task in tasks]
            if lease_s:
                assert all(client.call("NackTask", task_id=one).success for one in ids)
            return ids

        of_agent = [one for one in due if one.endswith("3")]
        assert listed(agent_id="a3") == of_agent
        assert listed(agent_id="a3", limit=2) == of_agent[:2]
        assert listed(module_name="dns", limit=300) == [one for one in due if one[-1] in "05"][:300]
        assert listed(limit=700, timestamp=NOW_S + COUNT) == due[:700]
        assert listed(timestamp=NOW_S - 100) == due[:-100]
        assert listed(agent_id="a5", module_name="ping") == []
        future = [] if lease_s else [f"t{number:05}" for number in range(int(0.9 * COUNT), COUNT)]
        assert listed(timestamp=NOW_S + COUNT) == due + future


def test_pages_of_every_filter_hold_every_task_once_in_order(
    start_server: Callable[..., ServerThread],
) -> None:
    server = start_server()
    with GrpcioClient(server.address) as client:
        schedule_many(client)
        for number in range(0, 400, 2):
            assert client.call("AckTask", task_id=f"t{number:05}").success
        every = [f"t{number:05}" for number in range(COUNT)]
        completed = every[:400:2]

        def paged(page_size: int, **filters: Any) -> list[str]:
            found: list[str] = []
            token = ""
            while True:
                page = client.call("ListTasks", page_size=page_size, page_token=token, **filters)
                assert len(page.tasks) <= page_size
                found += [task.id for task in page.tasks]
                token = page.next_page_token
                if not token:
                    return found

        assert paged(999) == every
        assert paged(100, status="completed") == completed
        assert paged(7, status="completed", agent_id="a4") == [
            one for one in completed if one[-1] == "4"
        ]
        assert paged(600, status="pending", module_name="dns") == [
            one for one in every if one[-1] in "05" and one not in completed
        ]
        assert paged(60, agent_id="a9", module_name="ping") == [
            one for one in every if one[-1] == "9"
        ]
        assert paged(5, agent_id="a9", module_name="dns") == []
        assert paged(5, status="dead") == []
        assert [task.id for task in client.call("ListTasks").tasks] == every


@pytest.mark.parametrize("method", ["ListTasks", "ListDueTasks"])
def test_listings_of_megabyte_tasks_hold_a_bounded_number_of_bytes(
    redis: ValkeyServer, method: str
) -> None:
    with (
        ServerProcess(redis.address).wait_ready() as server,
        GrpcioClient(server.address) as client,
    ):
        schedule_many(client, 64, b"x" * (MIB - 1024))
        redis_before = redis.execute("INFO", "memory")["used_memory"]
        filters: dict[str, Any] = {"page_size": 1_000} if method == "ListTasks" else {}

        def list_some(_: int) -> int:
            with GrpcioClient(server.address) as own:
                tasks = own.call(method, timeout_s=60, **filters).tasks
                assert all(len(task.payload) == MIB - 1024 for task in tasks)
                return len(tasks)

        time.sleep(6)  # what may be sent again to Redis leaves memory after five seconds
        before = server.rss_bytes()
        figures = server.rss_bytes, lambda: redis.execute("INFO", "memory")["used_memory"]
        with HighWater(*figures) as high, ThreadPoolExecutor(16) as pool:
            # A page keeps room for its token.
            fitting = 3 if method == "ListTasks" else 4
            assert list(pool.map(list_some, range(16))) == [fitting] * 16
        assert high.highest[0] - before < 150 * MIB
        assert high.highest[1] - redis_before < 40 * MIB


def test_leases_of_megabyte_tasks_that_come_at_once_are_read_a_few_at_a_time(
    redis: ValkeyServer,
) -> None:
    with (
        ServerProcess(redis.address).wait_ready() as server,
        GrpcioClient(server.address) as client,
    ):
        schedule_many(client, 64, b"x" * (MIB - 1024))
        time.sleep(6)  # what may be sent again to Redis leaves memory after five seconds

        def used_memory() -> int:
            return int(redis.execute("INFO", "memory")["used_memory"])

        before = used_memory()
        with HighWater(used_memory) as high:
            responses = client.call_many("LeaseTasks", [{"limit": 100}] * 20)
        leased = [task.id for response in responses for task in response.tasks]
        assert len(leased) == len(set(leased)) == 64
        assert [len(response.tasks) for response in responses] == [4] * 16 + [0] * 4
        assert high.highest[0] - before < 20 * MIB
