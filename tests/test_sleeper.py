"""A task that sleeps until another one wakes it."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from dbos_actors.sleeper import Sleeper


async def test_a_sleeping_task_runs_again_once_it_is_woken() -> None:
    sleeper, rounds = Sleeper(), []

    async def work() -> None:
        for number in range(2):
            await sleeper.sleep()
            rounds.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await wait_all_tasks_blocked()
        assert not rounds
        sleeper.wake()
        sleeper.wake()
        await wait_all_tasks_blocked()
        assert rounds == [0]
        sleeper.wake()
    assert rounds == [0, 1]


async def test_waking_a_task_that_does_not_sleep_is_no_error() -> None:
    Sleeper().wake()


async def test_a_sleep_that_is_cancelled_is_over_and_cannot_be_woken_twice() -> None:
    # Mutation: remember the task when its sleep is cancelled; Trio's run crashes then.
    sleeper = Sleeper()
    with trio.move_on_after(0) as scope:
        await sleeper.sleep()
    assert scope.cancelled_caught
    sleeper.wake()
    await trio.lowlevel.checkpoint()
