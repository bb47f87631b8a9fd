"""The server dies at every single commit of a scheduler's life, before and after Redis has it.

The life covers each kind of turn and two snapshots with their trims. After each death everything
acknowledged is there, the ledger balances, and the next server serves on.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio

from dbos_actors.actors.tasks.messages import Barrier
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.api.messages import (
    AckTaskRequest,
    LeaseTasksRequest,
    LeaseTasksResponse,
    NackTaskRequest,
    ScheduleTaskRequest,
    Task,
)
from dbos_actors.clock import SystemClock
from dbos_actors.domain.tasks.states import Status
from dbos_actors.errors import RefusedError
from dbos_actors.runtime import Waiter
from dbos_actors.store import Connector, StoreSettings, connector_for, open_store
from tests.support.tasks import kept
from tests.support.valkey import ValkeyServer


class MortalConnector:
    """A connector of a process that dies at its ``die_at``-th commit; then nothing moves."""

    def __init__(self, inner: Connector, *, die_at: int, is_sent: bool) -> None:
        self._inner = inner
        self._left = die_at
        self._is_sent = is_sent
        self.has_died = trio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def connect(self) -> trio.abc.Stream:
        await self.pass_or_hang()
        return _MortalStream(await self._inner.connect(), self)

    async def pass_or_hang(self) -> None:
        if self.has_died.is_set():
            await trio.sleep_forever()

    def counts(self, data: bytes) -> bool:
        """Whether this is the commit to die at."""
        if b"MULTI" in data or b"EVAL" in data:
            self._left -= 1
            return self._left == 0
        return False

    @property
    def is_sent(self) -> bool:
        return self._is_sent


class _MortalStream(trio.abc.Stream):
    def __init__(self, inner: trio.abc.Stream, owner: MortalConnector) -> None:
        self._inner = inner
        self._owner = owner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._owner.pass_or_hang()
        if self._owner.counts(bytes(data)):
            self._owner.has_died.set()
            if self._owner.is_sent:
                await self._inner.send_all(data)
                await self._inner.receive_some(1)  # so it has been executed
            await trio.sleep_forever()
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._inner.receive_some(max_bytes)
        await self._owner.pass_or_hang()
        return data

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def open_scheduler(connector: Any) -> AsyncIterator[Scheduler]:
    settings = StoreSettings(take_over=True, close_timeout_s=0.0)
    random = Random(1)
    clock = SystemClock()
    async with (
        open_store(connector, settings=settings, clock=clock, random=random) as store,
        trio.open_nursery() as nursery,
    ):
        scheduler = Scheduler(
            store=store,
            clock=clock,
            random=random,
            settings=SchedulerSettings(snapshot_rows=5, max_attempts=3),
        )
        await nursery.start(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


async def ask(scheduler: Scheduler, request: Any) -> Any:
    waiter = Waiter(request)
    scheduler.deliver(waiter)
    return await waiter.wait()


class Life:
    """A script of requests, and what of them was acknowledged."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.scheduled: set[str] = set()
        self.forgotten = False
        self.completed: dict[str, str] = {}
        self.dead: set[str] = set()
        self.is_over = False

    async def live(self) -> None:
        await self._schedule(f"a{n}" for n in range(12))
        first = await self._lease(4)
        await self._ack(first[0], first[1])
        await self._nack(first[2])
        await self._scheduler.take_snapshot()
        await self._ack(first[3])
        for _ in range(3):
            for task in await self._lease(12):
                await self._nack(task)
        await self._schedule((f"b{n}" for n in range(6)), agent_id="b")
        second = await self._lease(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._scheduler.take_snapshot)
            for task in second:
                nursery.start_soon(self._ack, task)
        await self._scheduler.forget_agent("b")
        self.forgotten = True
        await self._schedule(["c0"])
        self.is_over = True

    async def _schedule(self, names: Iterable[str], agent_id: str = "a") -> None:
        for name in names:
            task = Task(id=name, agent_id=agent_id, module_name="m", payload=name.encode())
            await ask(self._scheduler, ScheduleTaskRequest(task=task))
            self.scheduled.add(name)

    async def _lease(self, limit: int) -> list[Task]:
        answer = await ask(self._scheduler, LeaseTasksRequest(limit=limit, lease_seconds=600))
        return list(LeaseTasksResponse.FromString(answer).tasks)

    async def _ack(self, *tasks: Task) -> None:
        for task in tasks:
            request = AckTaskRequest(task_id=task.id, lease_token=task.lease_token)
            await ask(self._scheduler, request)
            self.completed[task.id] = task.lease_token

    async def _nack(self, task: Task) -> None:
        request = NackTaskRequest(task_id=task.id, lease_token=task.lease_token)
        await ask(self._scheduler, request)
        if task.retry_count == 2:
            self.dead.add(task.id)


async def live_until_death(valkey: ValkeyServer, *, die_at: int, is_sent: bool) -> Life:
    """One life; what was acknowledged in it."""
    lives: list[Life] = []
    connector = MortalConnector(connector_for(valkey.address), die_at=die_at, is_sent=is_sent)

    async def live() -> None:
        async with open_scheduler(connector) as scheduler:
            lives.append(Life(scheduler))
            await lives[0].live()
        connector.has_died.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await connector.has_died.wait()
        nursery.cancel_scope.cancel()
    return lives[0] if lives else Life(None)  # type: ignore[arg-type]  # died at its birth


def check(life: Life, valkey: ValkeyServer) -> None:
    """What is kept agrees with what was acknowledged."""
    book = kept(valkey)
    for name in life.scheduled:
        # Those of the agent that is forgotten may be gone.
        assert name[0] == "b" or book.get(name) is not None, name
    for name in life.completed:
        record = book.get(name)
        assert record is not None, name
        assert record.status is Status.COMPLETED, name
    for name in life.dead:
        record = book.get(name)
        assert record is not None, name
        assert record.status is Status.DEAD, name
    if life.forgotten:
        assert all(
            (record := book.get(f"b{n}")) is None or record.status is Status.COMPLETED
            for n in range(6)
        )


async def check_next(life: Life, valkey: ValkeyServer) -> None:
    """The next server hands out what is left, and nothing that was completed."""
    async with open_scheduler(connector_for(valkey.address)) as scheduler:
        await ask(scheduler, Barrier())
        answer = await ask(scheduler, LeaseTasksRequest(limit=1_000))
        tasks = LeaseTasksResponse.FromString(answer).tasks
        assert not {task.id for task in tasks} & (set(life.completed) | life.dead)
        assert all(task.payload == task.id.encode() for task in tasks)
        for name, token in life.completed.items():
            # The first answer again, which changes nothing.
            await ask(scheduler, AckTaskRequest(task_id=name, lease_token=token))
        for name in life.dead:
            with pytest.raises(RefusedError):
                await ask(scheduler, AckTaskRequest(task_id=name))
        await scheduler.take_snapshot()
        statistics = scheduler.statistics()
        assert statistics.imbalance == 0
        assert statistics.completed >= len(life.completed)
    kept(valkey)


@pytest.mark.long
@pytest.mark.parametrize("is_sent", [False, True], ids=["before Redis has it", "after"])
async def test_a_server_that_dies_at_any_commit_loses_nothing_it_acknowledged(
    valkey: ValkeyServer, is_sent: bool
) -> None:
    for die_at in itertools.count(1):
        valkey.execute("FLUSHALL")
        with trio.fail_after(20):
            life = await live_until_death(valkey, die_at=die_at, is_sent=is_sent)
            check(life, valkey)
            await check_next(life, valkey)
        if life.is_over:
            break
    assert die_at > 40
    assert (len(life.scheduled), len(life.completed), len(life.dead)) == (19, 6, 9)
