"""A worker of the SDK, on asyncio and on Trio, against a real server."""

from __future__ import annotations

from functools import partial

import anyio

from dbos_actors.client import (
    AckTaskRequest,
    CancelTaskRequest,
    DbosStub,
    LeaseTasksRequest,
    RetryLaterError,
    Task,
    work,
)
from tests.client.conftest import RunWithStub
from tests.client.stub_calls import has_status, schedule, task_of, until
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer


def test_a_worker_does_each_task_once_a_few_at_a_time(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    ids = [f"t{number}" for number in range(40)]

    async def body(stub: DbosStub) -> None:
        await schedule(stub, *ids)
        done: list[str] = []
        running = most = 0

        async def handle(task: Task) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.sleep(0.01)
            running -= 1
            done.append(task.id)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: work(stub, handle, concurrency=4))
            await until(lambda: len(done) == len(ids))
            for one in ids:
                await until(partial(has_status, stub, one, "completed"))
            tasks.cancel_scope.cancel()
        assert sorted(done) == sorted(ids)
        assert most == 4

    run_with_stub(server.address, body)


def test_a_task_whose_handler_fails_goes_back_with_the_reason(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    async def body(stub: DbosStub) -> None:
        await schedule(stub, "fails", "later", max_attempts=1)
        told: list[str] = []

        async def handle(task: Task) -> None:
            if task.id == "later":
                raise RetryLaterError("not now", delay_s=60)
            raise ValueError("no such host")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: work(stub, handle, on_error=lambda task, _: told.append(task.id))
            )
            await until(lambda: has_status(stub, "fails", "dead"))

            async def has_gone_back() -> bool:
                return bool((await task_of(stub, "later")).last_error)

            await until(has_gone_back)
            tasks.cancel_scope.cancel()
        assert (await task_of(stub, "fails")).last_error == "ValueError: no such host"
        assert "not now" in (await task_of(stub, "later")).last_error
        assert sorted(told) == ["fails", "later"]

    run_with_stub(server.address, body)


def test_the_lease_lasts_as_long_as_the_handler(
    redis: ValkeyServer, run_with_stub: RunWithStub
) -> None:
    server = ServerThread(redis.address).start()

    async def body(stub: DbosStub) -> None:
        await schedule(stub, "t")
        begun = 0
        ended = False

        async def handle(task: Task) -> None:
            nonlocal begun, ended
            begun += 1
            await anyio.sleep(3.5)
            ended = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: work(stub, handle, lease_s=2))
            await until(lambda: ended)
            await until(lambda: has_status(stub, "t", "completed"))
            tasks.cancel_scope.cancel()
        assert begun == 1

    try:
        run_with_stub(server.address, body)
    finally:
        server.stop()


def test_a_handler_whose_lease_is_lost_is_cancelled(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    async def body(stub: DbosStub) -> None:
        await schedule(stub, "t", "after")
        order: list[str] = []

        async def handle(task: Task) -> None:
            order.append(f"begun {task.id}")
            if task.id == "t":
                try:
                    await anyio.sleep_forever()
                finally:
                    order.append("cancelled t")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: work(stub, handle, lease_s=1, concurrency=1))
            await until(lambda: bool(order))
            if order == ["begun after"]:
                await until(lambda: len(order) == 2)
            await stub.cancel_task(CancelTaskRequest(task_id="t"))
            await until(lambda: "cancelled t" in order)
            await until(lambda: has_status(stub, "after", "completed"))
            tasks.cancel_scope.cancel()
        assert order.index("cancelled t") > order.index("begun t")
        assert (await task_of(stub, "t")).status == "cancelled"

    run_with_stub(server.address, body)


def test_a_cancelled_worker_gives_its_tasks_back_at_once(
    server: ServerThread, run_with_stub: RunWithStub
) -> None:
    async def body(stub: DbosStub) -> None:
        await schedule(stub, "t")
        async with anyio.create_task_group() as tasks:
            begun = anyio.Event()

            async def handle(task: Task) -> None:
                begun.set()
                await anyio.sleep_forever()

            tasks.start_soon(lambda: work(stub, handle))
            await begun.wait()
            tasks.cancel_scope.cancel()
        leased: list[Task] = []
        while not leased:
            leased = (await stub.lease_tasks(LeaseTasksRequest(limit=1))).tasks
        ack = AckTaskRequest(task_id="t", lease_token=leased[0].lease_token)
        assert (await stub.ack_task(ack)).success

    run_with_stub(server.address, body)
