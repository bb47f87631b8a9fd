"""A refusal is a value: what a turn, or what follows its commit, answers to say no."""

from __future__ import annotations

from typing import Any

import pytest

from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.runtime import Refusal, State, Turn
from tests.runtime.fakes import call, do_write_and_then, read, running, write

NO = RefusedError("no")


async def test_a_turn_that_answers_with_a_refusal_fails_its_call_at_once() -> None:
    async with running() as actors:
        await actors.ready()
        one = call(lambda *_: Turn(Refusal(NO)))
        actors.send(one)
        assert one.answers == [NO]
        assert actors.cell().state is State.READY


async def test_a_refusal_that_a_turn_answers_waits_for_the_writes_it_was_decided_on() -> None:
    async with running() as actors:
        await actors.ready()
        first, second = write(1), call(lambda *_: Turn(Refusal(NO)))
        actors.send(first, second)
        assert not second.answered
        actors.store.commit()
        assert second.answers == [NO]


@pytest.mark.parametrize(
    "error", [NO, UnavailableError("away"), OverloadedError("a queue", limit=1, unit="bytes")]
)
async def test_what_follows_a_commit_may_refuse_by_returning_it(error: Any) -> None:
    async with running() as actors:
        await actors.ready()
        one = call(do_write_and_then(lambda *_: Refusal(error)), 1)
        actors.send(one)
        actors.store.commit()
        assert one.answers == [error]
        # The write is committed, and memory knows it: nothing was restarted.
        assert actors.cell().state is State.READY
        assert actors.store.loads == 1
        two = read()
        actors.send(two)
        assert two.answer == (1,)


async def test_a_refusal_raised_after_the_commit_is_a_bug_of_the_actor() -> None:
    # Mutation: treat a RefusedError from `then` as an answer.
    def then(*_: Any) -> Any:
        raise NO

    async with running() as actors:
        await actors.ready()
        one = call(do_write_and_then(then), 1)
        actors.send(one)
        actors.store.commit()
        assert one.answers == [NO]
        assert actors.cell().state is not State.READY
        await actors.settle()
        assert actors.store.loads == 2


async def test_the_store_may_be_away_for_what_follows_a_commit() -> None:
    def then(*_: Any) -> Any:
        raise UnavailableError("away")

    async with running() as actors:
        await actors.ready()
        one = call(do_write_and_then(then), 1)
        actors.send(one)
        actors.store.commit()
        assert isinstance(one.answer, UnavailableError)
        assert actors.cell().state is State.READY
        assert actors.store.loads == 1
