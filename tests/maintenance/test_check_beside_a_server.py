"""A check beside a server that writes finds nothing that is only half seen."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from dbos_actors.maintenance import tasks
from dbos_actors.maintenance.check import check
from dbos_actors.maintenance.findings import Finding
from dbos_actors.maintenance.reading import StoreReader
from dbos_actors.store import connector_for
from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

CHECKS = 15


def write(client: GrpcioClient, number: int) -> None:
    """A little of everything; what came twenty writes before it ends."""
    agent = f"probe-{number % 7}"
    run = {"agent_id": agent, "module_name": f"m-{number % 3}", "request_id": f"run-{number % 50}"}
    client.call("RegisterAgent", agent={"id": agent, "hostname": "h", "alive": True})
    client.call("SetModuleState", state={**run, "state": ("running", "completed")[number % 2]})
    client.call("StoreResult", result={"id": str(number), "agent_id": agent, "module_name": "m"})
    client.call("ScheduleTask", task={"id": str(number), "agent_id": agent, "module_name": "m"})
    for task in client.call("LeaseTasks", limit=1, lease_seconds=60).tasks:
        client.call("AckTask", task_id=task.id, lease_token=task.lease_token)
    if number % 40 == 39:
        client.call("DeleteAgent", agent_id=agent)


@pytest.fixture
def writing(valkey: ValkeyServer) -> Iterator[tuple[ServerThread, Callable[[], int]]]:
    """A server whose clients never rest, and how often they have written."""
    stop = threading.Event()
    written = 0
    errors: list[BaseException] = []
    server = ServerThread(valkey.address, tasks_max_age_s=1).start()

    def run(first: int) -> None:
        nonlocal written
        try:
            with GrpcioClient(server.address) as client:
                for number in itertools.count(first, 3):
                    if stop.is_set():
                        return
                    write(client, number)
                    written += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    writers = [threading.Thread(target=run, args=(first,)) for first in range(3)]
    for writer in writers:
        writer.start()
    yield server, lambda: written
    stop.set()
    for writer in writers:
        writer.join()
    server.stop()
    assert not errors


async def test_nothing_is_found_while_clients_write(
    valkey: ValkeyServer,
    writing: tuple[ServerThread, Callable[[], int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, written = writing
    found: list[str] = []

    async def report(finding: Finding) -> None:
        found.append(str(finding))

    # Small steps, so that much is written between two of them.
    monkeypatch.setattr("dbos_actors.maintenance.reading._ENTRIES", 10)
    monkeypatch.setattr(tasks, "_STEP", 10)
    read = StoreReader.read

    async def slow_read(reader: StoreReader, *commands: bytes) -> list[Any]:
        await trio.sleep(0.001)
        return await read(reader, *commands)

    monkeypatch.setattr(StoreReader, "read", slow_read)
    before = written()
    for number in range(CHECKS):
        if number % 5 == 4:
            # Everything the scheduler has is written anew while it is read.
            await trio.to_thread.run_sync(
                lambda: trio.from_thread.run(
                    server.inside.tasks.take_snapshot, trio_token=server.token
                )
            )
        await check(connector_for(valkey.address), report)
    assert found == []
    assert written() - before > 50
