"""Many handlers start and end a few in each round, and every connection has its turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dbos_actors.rpc.server.handler_turns import STEPS, HandlerTurns
from dbos_actors.rpc.server.stream import ServerStream
from tests.rpc.conftest import SocketClient
from tests.rpc.server.raw_service import Connect, Raw, Serve, server_of
from tests.support.rounds import Rounds

CONNECTIONS = 10
STREAMS = 100

ONE_ROUND = 2 * STEPS
"""Handlers are counted when they run: those that were started before and after the turns of one
round may run in the same one."""


@asynccontextmanager
async def turns() -> AsyncIterator[HandlerTurns]:
    turns = HandlerTurns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        yield turns
        nursery.cancel_scope.cancel()


async def test_a_step_is_done_at_once_while_there_is_time_in_the_round() -> None:
    done: list[int] = []
    async with turns() as line:
        for number in range(STEPS + 1):
            line.take("a", partial(done.append, number))
        assert done == list(range(STEPS))
        assert line.waits("a")
        await wait_all_tasks_blocked()
        assert done == list(range(STEPS + 1))
        assert not line.waits("a")
        line.take("a", lambda: done.append(-1))
        assert done[-1] == -1


async def test_connections_take_turns_and_each_keeps_its_order() -> None:
    done: list[str] = []
    async with turns() as line:
        for _ in range(STEPS):
            line.take("first", lambda: done.append("first"))
        done.clear()
        for number in range(3):
            line.take("a", partial(done.append, f"a{number}"))
        line.take("b", lambda: done.append("b0"))
        line.take("c", lambda: done.append("c0"))
        await wait_all_tasks_blocked()
    assert done == ["a0", "b0", "c0", "a1", "a2"]


async def test_no_round_has_more_than_its_steps() -> None:
    async with turns() as line:
        with Rounds() as rounds:
            for number in range(20 * STEPS):
                line.take(number % 3, lambda: rounds.count("step"))
            await wait_all_tasks_blocked()
    assert rounds.total("step") == 20 * STEPS
    assert rounds.most("step") == STEPS


class Waiting:
    """A method whose handlers wait until they are cancelled."""

    def __init__(self) -> None:
        self.rounds = Rounds()
        self.order: list[str] = []
        """The user agents of the calls whose handlers were started."""
        self.ended = 0
        self._changed = trio.Event()

    @property
    def started(self) -> int:
        return len(self.order)

    async def handler(self, stream: ServerStream[Raw, Raw]) -> None:
        self.rounds.count("started")
        self.order.append(stream.user_agent)
        self._changed.set()
        try:
            await trio.sleep_forever()
        finally:
            self.rounds.count("ended")
            self.ended += 1
            self._changed.set()

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that a start or an end may change."""
        with trio.fail_after(20.0):
            while not condition():
                self._changed = trio.Event()
                await self._changed.wait()


async def open_streams(client: SocketClient, count: int, **headers: bytes) -> list[int]:
    """Begin so many calls, in one write."""
    changes: dict[str, Any] = headers  # or mypy takes them for other arguments
    streams = [client.raw.request(None, end=False, **changes) for _ in range(count)]
    await client.flush()
    return streams


@pytest.mark.parametrize("ending", ["cut", "reset", "deadline"])
async def test_handlers_of_many_connections_start_and_end_a_few_in_a_round(
    serve: Serve, connect: Connect, ending: str
) -> None:
    method = Waiting()
    server = server_of(method.handler)
    headers = {"grpc_timeout": b"500m"} if ending == "deadline" else {}
    async with serve(server) as address:
        clients = [await connect(address) for _ in range(CONNECTIONS)]
        with method.rounds:
            streams = [await open_streams(client, STREAMS, **headers) for client in clients]
            if ending != "deadline":
                await method.wait(lambda: method.started == CONNECTIONS * STREAMS)
            for client, ids in zip(clients, streams, strict=True):
                if ending == "cut":
                    await client.stream.aclose()
                elif ending == "reset":
                    for stream_id in ids:
                        client.raw.reset(stream_id)
                    await client.flush()
            await method.wait(lambda: method.ended == method.started)
            await wait_all_tasks_blocked()
        statistics = server.statistics()
    assert method.rounds.most("started") <= ONE_ROUND
    assert method.rounds.most("ended") <= ONE_ROUND
    assert method.started == method.ended > STREAMS
    assert (statistics.calls_live, statistics.deadlines) == (0, 0)


async def test_one_stream_does_not_wait_behind_the_hundreds_of_another_client(
    serve: Serve, connect: Connect
) -> None:
    method = Waiting()
    async with serve(server_of(method.handler)) as address:
        many, one = await connect(address), await connect(address)
        await many.call(path=b"/test.Test/Nothing")  # which brings the limit of its streams
        await open_streams(many, 900, user_agent=b"many")
        await method.wait(lambda: method.started > 0)
        await open_streams(one, 1, user_agent=b"one")
        before = method.started
        await method.wait(lambda: method.started == 901)
    assert before < 100, "it was sent too late to see anything"
    assert method.order.index("one") - before < 20 * STEPS


async def test_a_call_that_is_reset_before_its_turn_runs_no_handler(
    serve: Serve, connect: Connect
) -> None:
    method = Waiting()
    server = server_of(method.handler)
    async with serve(server) as address:
        client = await connect(address)
        streams = [client.raw.request(None, end=False) for _ in range(STREAMS)]
        begun = client.raw.output()
        for stream_id in streams:
            client.raw.reset(stream_id)
        await client.stream.send_all(begun + client.raw.output())
        await client.call(path=b"/test.Test/Nothing")
        await wait_all_tasks_blocked()
        assert server.statistics().calls_live == 0
    assert method.started == method.ended <= STEPS
