"""The base class of actors, over the log that commits in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dbos_actors.clock import SystemClock
from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.runtime import (
    Actor,
    ActorCell,
    Job,
    JobCell,
    MemoryLog,
    Refusal,
    Supervisor,
    SupervisorLimits,
    Turn,
    Waiter,
)

NO = RefusedError("no")


class Data:
    """What is committed: the last value of each key, and how often one was."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.commands = 0
        self.may_load = trio.Event()
        self.may_load.set()

    def execute(self, command: bytes) -> object:
        key, value = command.decode().split("=")
        self.values[key] = int(value)
        self.commands += 1
        return self.commands


class Counter(Actor):
    """Adds numbers; does what else a test asks for."""

    count = 0

    def __init__(self, key: str, cell: ActorCell, data: Data) -> None:
        super().__init__(key, cell)
        self._data = data

    async def load(self) -> None:
        await self._data.may_load.wait()
        self.count = self._data.values.get(self.key, 0)

    def handle(self, request: int | Callable[[Counter], Turn | Job]) -> Turn | Job:
        if not isinstance(request, int):
            return request(self)
        count = self.count + request
        return Turn(count, commands=[self.command(count)], changes=[("count", count)])

    def command(self, count: int) -> bytes:
        return f"{self.key}={count}".encode()


@asynccontextmanager
async def counting(
    data: Data, *, queue_bytes: int = 10_000
) -> AsyncIterator[tuple[MemoryLog, Supervisor]]:
    log = MemoryLog(data.execute, queue_bytes=queue_bytes)
    supervisor = Supervisor(
        make=lambda key, cell: Counter(key, cell, data),
        log=log,
        clock=SystemClock(),
        limits=SupervisorLimits(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        await nursery.start(supervisor.run)
        yield log, supervisor
        nursery.cancel_scope.cancel()


async def test_an_answer_is_given_once_the_turn_is_committed() -> None:
    data = Data()
    async with counting(data) as (_, counters):
        assert await counters.ask("a", 2) == 2
        assert data.values == {"a": 2}
        assert await counters.ask("a", 3) == 5
        assert await counters.ask("b", 1) == 1
    assert data.values == {"a": 5, "b": 1}


async def test_actors_that_are_started_again_go_on_from_what_is_committed() -> None:
    data = Data()
    for expected in (1, 2, 3):
        async with counting(data) as (_, counters):
            assert await counters.ask("a", 1) == expected


async def test_turns_that_wait_are_committed_together_and_in_order() -> None:
    data = Data()
    async with counting(data) as (_, counters):
        await counters.ask("a", 0)
        calls = [Waiter(1) for _ in range(3)]
        for call in calls:
            counters.deliver("a", call)
        assert not any(call.answered for call in calls)
        assert data.values == {"a": 0}
        await wait_all_tasks_blocked()
        assert [await call.wait() for call in calls] == [1, 2, 3]


async def test_what_follows_a_commit_gets_the_replies_of_its_own_commands() -> None:
    def act(counter: Counter) -> Turn:
        commands = [counter.command(7), counter.command(8)]
        return Turn(None, commands=commands, then=lambda _, replies: replies)

    async with counting(Data()) as (_, counters):
        await counters.ask("b", 1)
        assert await counters.ask("a", act) == [2, 3]


async def test_a_job_commits_step_by_step() -> None:
    async def run(cell: JobCell) -> Any:
        await cell.commit(b"a=10")
        await cell.commit(b"a=11")
        return "done"

    data = Data()
    async with counting(data) as (_, counters):
        assert await counters.ask("a", lambda _: Job(run)) == "done"
        # The actor is loaded again after its job.
        assert await counters.ask("a", 1) == 12


async def test_a_refusal_is_raised_to_who_asks() -> None:
    async with counting(Data()) as (_, counters):
        with pytest.raises(RefusedError) as raised:
            await counters.ask("a", lambda _: Turn(Refusal(NO)))
        assert raised.value is NO


async def test_a_cancelled_question_is_not_handled_if_it_still_waits() -> None:
    data = Data()
    data.may_load = trio.Event()
    async with counting(data) as (_, counters):
        with trio.CancelScope() as scope:
            scope.cancel()
            await counters.ask("a", 5)
        assert scope.cancelled_caught
        data.may_load.set()
        assert await counters.ask("a", 1) == 1


async def test_a_full_queue_refuses_the_next_turn_and_changes_nothing() -> None:
    # Mutation: bound only the commands. Turns without any would wait without a bound.
    data = Data()
    async with counting(data, queue_bytes=600) as (_, counters):
        await counters.ask("a", 0)
        calls = [Waiter(1) for _ in range(3)]
        for call in calls:
            counters.deliver("a", call)
        assert [call.answered for call in calls] == [False, False, True]
        with pytest.raises(OverloadedError, match="600"):
            await calls[2].wait()
        # What was committed has left the queue.
        assert [await call.wait() for call in calls[:2]] == [1, 2]
        assert await counters.ask("a", 1) == 3


async def test_a_log_that_stops_refuses_what_waits_and_what_comes() -> None:
    data = Data()
    log = MemoryLog(data.execute)
    assert not log.is_current
    counters = Supervisor(
        make=lambda key, cell: Counter(key, cell, data),
        log=log,
        clock=SystemClock(),
        limits=SupervisorLimits(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(counters.run)
        async with trio.open_nursery() as inner:
            await inner.start(log.run)
            assert log.is_current
            await counters.ask("a", 1)
            inner.cancel_scope.cancel()
            call = Waiter(1)
            counters.deliver("a", call)
        with pytest.raises(UnavailableError, match="has stopped"):
            await call.wait()
        assert data.values == {"a": 1}
        with pytest.raises(UnavailableError, match="does not run"):
            await counters.ask("a", 1)
        nursery.cancel_scope.cancel()


async def test_an_actor_that_names_a_missing_part_must_know_how_to_fetch_it() -> None:
    class Partial(Counter):
        def missing(self, request: Any) -> str | None:
            return "part"

    data = Data()
    log = MemoryLog(data.execute)
    actors = Supervisor(
        make=lambda key, cell: Partial(key, cell, data),
        log=log,
        clock=SystemClock(),
        limits=SupervisorLimits(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        await nursery.start(actors.run)
        with pytest.raises(NotImplementedError, match="Partial cannot fetch 'part'"):
            await actors.ask("a", 1)
        nursery.cancel_scope.cancel()
