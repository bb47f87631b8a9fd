"""Streams are told of a drain a few at a time, and cost nothing for it while they wait."""

from __future__ import annotations

import trio
import trio.testing

from dbos_actors.service.draining import Moment
from tests.support.rounds import Rounds


async def test_blocks_are_ended_a_few_in_each_round() -> None:
    moment = Moment()
    rounds = Rounds()

    async def block() -> None:
        with moment.until():
            await trio.sleep_forever()
        rounds.count("ended")

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(block)
        await trio.testing.wait_all_tasks_blocked()
        with rounds:
            await moment.come()
            await trio.testing.wait_all_tasks_blocked()
    assert rounds.total("ended") == 200
    assert rounds.most("ended") <= 8


async def test_a_block_that_begins_after_the_moment_is_ended_at_once() -> None:
    moment = Moment()
    await moment.come()
    assert moment.has_come
    with trio.fail_after(5.0):
        with moment.until():
            await trio.sleep_forever()


async def test_a_block_that_has_ended_by_itself_is_forgotten() -> None:
    moment = Moment()
    with moment.until():
        await trio.lowlevel.checkpoint()
    await moment.come()
    await trio.lowlevel.checkpoint()  # would be cancelled if the block were still known
