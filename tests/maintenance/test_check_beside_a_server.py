"""A check beside a server that writes finds nothing that is only half seen."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
READS_A_WRITE = 8
"""Clients write once while the check reads so often: how much there is to check at the end does not
depend on how fast the machine is."""


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


@dataclass
class Writing:
    """A server and clients that write whenever they are permitted to."""

    server: ServerThread
    permits: threading.Semaphore
    written: int = 0


@pytest.fixture
def writing(valkey: ValkeyServer) -> Iterator[Writing]:
    """Three clients, with a permit each for their first twenty writes."""
    stop = threading.Event()
    errors: list[BaseException] = []
    writing = Writing(
        ServerThread(valkey.address, tasks_max_age_s=1).start(), threading.Semaphore(60)
    )

    def run(first: int) -> None:
        try:
            with GrpcioClient(writing.server.address) as client:
                for number in itertools.count(first, 3):
                    writing.permits.acquire()
                    if stop.is_set():
                        return
                    write(client, number)
                    writing.written += 1
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    writers = [threading.Thread(target=run, args=(first,)) for first in range(3)]
    for writer in writers:
        writer.start()
    yield writing
    stop.set()
    writing.permits.release(len(writers))
    for writer in writers:
        writer.join()
    writing.server.stop()
    assert not errors


async def test_nothing_is_found_while_clients_write(
    valkey: ValkeyServer, writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = writing.server
    reads = 0
    found: list[str] = []

    async def report(finding: Finding) -> None:
        found.append(str(finding))

    # Small steps, so that much is written between two of them.
    monkeypatch.setattr("dbos_actors.maintenance.reading._ENTRIES", 10)
    monkeypatch.setattr(tasks, "_STEP", 10)
    read = StoreReader.read

    async def slow_read(reader: StoreReader, *commands: bytes) -> list[Any]:
        nonlocal reads
        reads += 1
        if reads % READS_A_WRITE == 0:
            writing.permits.release()
        await trio.sleep(0.001)
        return await read(reader, *commands)

    monkeypatch.setattr(StoreReader, "read", slow_read)
    before = writing.written
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
    assert writing.written - before > 50


@contextmanager
def stopping(server: ServerThread) -> Iterator[None]:
    try:
        yield
    finally:
        server.stop()


async def test_a_task_that_is_completed_between_two_pages_is_counted_once(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of the second page is deleted meanwhile, so the journal is read again."""
    monkeypatch.setattr(tasks, "_STEP", 10)
    found: list[str] = []

    async def report(finding: Finding) -> None:
        found.append(str(finding))

    server = ServerThread(valkey.address).start()
    with stopping(server), GrpcioClient(server.address) as client:
        for number in range(20):
            agent = ("first", "second")[number // 10]
            task = {"id": f"{number:02}", "agent_id": agent, "module_name": "m"}
            assert client.call("ScheduleTask", task=task).success
        pages = 0

        def change() -> None:
            assert client.call("AckTask", task_id="00").success
            assert client.call("DeleteAgent", agent_id="second").success

        read = StoreReader.read

        async def change_after_the_first_page(reader: StoreReader, *commands: bytes) -> list[Any]:
            nonlocal pages
            replies = await read(reader, *commands)
            if b"HEXISTS" in commands[0]:
                pages += 1
                if pages == 1:
                    await trio.to_thread.run_sync(change)
            return replies

        monkeypatch.setattr(StoreReader, "read", change_after_the_first_page)
        await check(connector_for(valkey.address), report)
    assert pages == 2
    assert found == []
