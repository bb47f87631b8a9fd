"""A writer and workers while servers are killed: nothing is lost, and nothing is stored twice."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable

import anyio
import pytest

from dbos_actors.client import (
    DbosStub,
    GetTaskRequest,
    ListResultsRequest,
    MeasurementResult,
    ScheduleTaskRequest,
    Task,
    pages,
    work,
    writer,
)
from tests.client.conftest import RunWithStub
from tests.support.process import ServerProcess
from tests.support.valkey import ValkeyServer

RESULTS = 2_000
TASKS = 60
KILLS = 3


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Servers:
    """One server at a time on a Redis, always at the same address."""

    def __init__(self, valkey: ValkeyServer) -> None:
        self._listen = f"127.0.0.1:{unused_port()}"
        self._valkey = valkey
        self._server = self._start()

    @property
    def address(self) -> str:
        return self._listen

    def _start(self) -> ServerProcess:
        # `--listen` comes after the port 0 of `ServerProcess`, and wins.
        return ServerProcess(self._valkey.address, "--listen", self._listen).wait_ready()

    def kill(self) -> None:
        """Kill the server, and start another one."""
        self._server.close()
        self._server = self._start()

    def close(self) -> None:
        self._server.close()


@pytest.mark.long
def test_a_writer_and_workers_outlive_servers_that_are_killed(
    start_valkey: Callable[..., ValkeyServer], run_with_stub: RunWithStub
) -> None:
    servers = Servers(start_valkey())
    done: Counter[str] = Counter()

    async def body(stub: DbosStub) -> None:
        async def handle(task: Task) -> None:
            await anyio.sleep(0.05)
            done[task.id] += 1

        async def write() -> None:
            async with writer(stub) as results:
                for number in range(RESULTS):
                    result = MeasurementResult(
                        id=f"r{number}", agent_id="a", module_name="ping", data=b"x"
                    )
                    await results.send(result)
                    await anyio.sleep(0.002)
            assert results.durable == RESULTS

        for number in range(TASKS):
            task = Task(id=f"t{number}", agent_id="a", module_name="ping", max_attempts=100)
            assert (await stub.schedule_task(ScheduleTaskRequest(task=task))).success
        async with anyio.create_task_group() as writing:
            writing.start_soon(write)
            async with anyio.create_task_group() as working:
                working.start_soon(lambda: work(stub, handle, concurrency=3, lease_s=2))
                with anyio.move_on_after(0.3):  # a worker that is gone in mid-task
                    await work(stub, handle, concurrency=3, lease_s=2)
                for _ in range(KILLS):
                    await anyio.sleep(0.5)
                    await anyio.to_thread.run_sync(servers.kill)
                for number in range(TASKS):
                    request = GetTaskRequest(task_id=f"t{number}")
                    while (await stub.get_task(request)).task.status != "completed":  # noqa: ASYNC110
                        await anyio.sleep(0.05)
                working.cancel_scope.cancel()
        found = [one.id async for one in pages.results(stub, ListResultsRequest(agent_id="a"))]
        assert sorted(found) == sorted(f"r{number}" for number in range(RESULTS))

    try:
        run_with_stub(servers.address, body, limit_s=120)
    finally:
        servers.close()
    assert set(done) == {f"t{number}" for number in range(TASKS)}
    # A kill may have a task done again that was done already, never more than what was in flight.
    assert sum(done.values()) - TASKS <= 3 * (KILLS + 1), json.dumps(done)
