"""Whose turn it is to read: nobody starves, and what was read gets done before more is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from dbos_actors.clock import SystemClock
from dbos_actors.rpc.server import ReadTurns


def turns(*, calls_live: int = 0) -> ReadTurns:
    core: Any = SimpleNamespace(calls_live=calls_live)
    return ReadTurns(core, SystemClock())


async def read(turns: ReadTurns, size_bytes: int = 16 * 1024) -> None:
    """As a connection does."""
    await trio.lowlevel.checkpoint()
    try:
        if not turns.is_free:
            await turns.wait()
    finally:
        turns.end(size_bytes)


async def test_a_connection_alone_reads_at_once() -> None:
    one = turns()
    assert one.is_free
    one.end(1_000)
    assert one.is_free


async def test_busy_connections_read_one_in_a_round_and_in_order() -> None:
    shared = turns()
    shared.end(10**9)
    rounds = 0
    order: list[tuple[int, int]] = []

    async def count() -> None:
        nonlocal rounds
        while True:
            await trio.lowlevel.checkpoint()
            rounds += 1

    async def busy(number: int) -> None:
        for _ in range(5):
            await read(shared)
            order.append((rounds, number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        async with trio.open_nursery() as readers:
            for number in range(10):
                readers.start_soon(busy, number)
        nursery.cancel_scope.cancel()
    at = [when for when, _ in order]
    assert max(at.count(when) for when in at) <= 2
    # Nobody has a second turn long before another has the first.
    first = {
        number: min(i for i, one in enumerate(order) if one[1] == number) for number in range(10)
    }
    assert max(first.values()) < 20


async def test_while_many_calls_are_live_pauses_follow_turns(autojump_clock: Any) -> None:
    shared = turns(calls_live=40_000)
    shared.end(10**9)
    with trio.fail_after(10):
        start = trio.current_time()
        for _ in range(3):
            await read(shared)
            await trio.sleep(0.004)  # what a turn takes
        paused = trio.current_time() - start - 3 * 0.004
    assert 0.08 <= paused <= 0.15


async def test_who_is_cancelled_in_line_passes_the_turn_on() -> None:
    shared = turns()
    shared.end(10**9)
    done: list[int] = []

    async def busy(number: int, scope: trio.CancelScope) -> None:
        with scope:
            await read(shared)
            done.append(number)

    scopes = [trio.CancelScope() for _ in range(6)]
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for number, scope in enumerate(scopes):
                nursery.start_soon(busy, number, scope)
            for scope in scopes[:3]:
                scope.cancel()
    assert sorted(done) == [3, 4, 5]
    await wait_all_tasks_blocked()
    await read(shared)
