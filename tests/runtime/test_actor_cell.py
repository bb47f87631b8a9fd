"""One actor: its turns, its restarts, and that nothing it is told is lost or told twice.

The comments name the change to the runtime that only that test notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.runtime import DEFERRED, ActorLimits, Job, JobCell, State, Turn, Waiter
from tests.runtime.fakes import (
    AWAY,
    REFUSED,
    BugError,
    FakeStore,
    Recorder,
    Request,
    bare_cell,
    call,
    do_job_write,
    do_log,
    do_read,
    do_refuse,
    do_write,
    do_write_and_then,
    event_command,
    raise_bug,
    read,
    running,
    write,
    write_command,
)

# ------------------------------------------------------------------ turns


async def test_the_first_message_waits_for_the_state_and_has_its_turn_on_it() -> None:
    async with running() as actors:
        actors.store.data["a", "main"] = ("before",)
        first = read()
        actors.send(first)
        assert not first.answered
        await wait_all_tasks_blocked()
        assert first.answer == ("before",)


async def test_a_write_is_acknowledged_when_it_is_committed_and_not_before() -> None:
    async with running() as actors:
        await actors.ready()
        one = write(1)
        actors.send(one)
        await wait_all_tasks_blocked()
        assert not one.answered
        actors.store.commit()
        assert one.answer == 1
        assert actors.store.value("a") == (1,)


async def test_an_idle_actor_takes_its_turn_in_the_task_that_delivers() -> None:
    async with running() as actors:
        await actors.ready()
        one = read()
        actors.send(one)
        assert one.answer == ()


async def test_a_read_waits_for_the_writes_it_shows() -> None:
    async with running() as actors:
        await actors.ready()
        one = read()
        actors.send(write(1), one)
        assert not one.answered
        actors.store.commit(1)
        assert not one.answered
        actors.store.commit()
        assert one.answer == (1,)


async def test_a_read_does_not_wait_for_writes_that_change_nothing_it_could_show() -> None:
    # Mutation: have every uncommitted turn hold reads back.
    async with running() as actors:
        await actors.ready()
        stored = call(do_log, "an event")
        one = read()
        actors.send(stored, one)
        assert one.answer == ()
        assert not stored.answered
        actors.store.commit()
        assert stored.answered


async def test_a_read_asks_the_store_first_while_the_store_is_in_doubt() -> None:
    async with running() as actors:
        await actors.ready()
        actors.store.is_current = False
        one = read()
        actors.send(one)
        assert not one.answered
        actors.store.commit()
        assert one.answer == ()


async def test_a_refused_request_changes_nothing_and_restarts_nothing() -> None:
    async with running() as actors:
        await actors.ready()
        one = call(do_refuse)
        actors.send(one)
        assert isinstance(one.answer, RefusedError)
        assert actors.cell().state is State.READY
        assert not actors.store.queue


async def test_a_refusal_waits_for_the_writes_it_was_decided_on() -> None:
    # Mutation: refuse at once. A crash could take the writes back that the refusal tells of.
    async with running() as actors:
        await actors.ready()
        one, two = write(1), call(do_refuse)
        actors.send(one, two)
        assert not two.answered
        actors.store.commit()
        assert isinstance(two.answer, RefusedError)
        assert actors.cell().state is State.READY


async def test_a_refusal_decided_on_writes_that_failed_becomes_their_error() -> None:
    async with running() as actors:
        await actors.ready()
        one, two = write(1), call(do_refuse)
        actors.send(one, two)
        actors.store.refuse()
        assert two.answer is REFUSED


async def test_a_refusal_asks_the_store_first_while_the_store_is_in_doubt() -> None:
    async with running() as actors:
        await actors.ready()
        actors.store.is_current = False
        one = call(do_refuse)
        actors.send(one)
        assert not one.answered
        actors.store.commit()
        assert isinstance(one.answer, RefusedError)


async def test_a_write_the_queue_has_no_room_for_leaves_memory_as_it_was() -> None:
    # Mutation: apply the changes before the turn is submitted.
    async with running() as actors:
        await actors.ready()
        actors.store.is_full = True
        one, two = write(1), read()
        actors.send(one, two)
        assert isinstance(one.answer, OverloadedError)
        assert two.answer == ()
        assert actors.cell().uncommitted == 0


async def test_a_call_that_expired_in_the_mailbox_is_not_executed() -> None:
    async with running() as actors:
        one = write(1)
        actors.send(one)
        one.answered = True
        await wait_all_tasks_blocked()
        assert not actors.store.queue


async def test_what_a_turn_does_after_its_commit_decides_the_answer() -> None:
    async with running() as actors:
        await actors.ready()
        seen: list[Sequence[object] | None] = []

        def then(turn: Turn, replies: Sequence[object] | None) -> Any:
            seen.append(replies)
            return "instead"

        one, two = call(do_write_and_then(then), 1), call(do_write_and_then(then), 2)
        actors.send(one, two)
        actors.store.commit(1)
        actors.store.commit(lose_replies=True)
        assert (one.answer, two.answer) == ("instead", "instead")
        assert seen == [[b"OK"], None]


async def test_a_turn_without_writes_may_also_have_something_to_do_afterwards() -> None:
    # Mutation: answer every turn without commands at once.
    async with running() as actors:
        await actors.ready()
        one = call(lambda *_: Turn(1, then=lambda *_: 2))
        actors.send(one)
        actors.store.commit()
        assert one.answer == 2


async def test_a_deferred_answer_may_need_a_commit_of_its_own() -> None:
    async with running() as actors:
        await actors.ready()
        cell = actors.cell()

        def then(turn: Turn, replies: Sequence[object] | None) -> Any:
            cell.submit(Turn("late", commands=[event_command("seen")]), turn.call)
            return DEFERRED

        one = call(do_write_and_then(then), 1)
        actors.send(one)
        actors.store.commit()
        assert not one.answered
        assert cell.uncommitted == 1
        actors.store.commit()
        assert one.answer == "late"
        assert actors.store.events == ["seen"]
        assert cell.uncommitted == 0


async def test_a_turn_given_up_for_its_caller_stays_queued_and_is_answered_once() -> None:
    async with running() as actors:
        await actors.ready()
        one, two = write(1), read()
        actors.send(one)
        actors.store.queue[0].give_up(AWAY)
        assert one.answer is AWAY
        assert actors.cell().uncommitted == 1
        actors.send(two)
        assert not two.answered
        actors.store.commit()
        assert one.answer is AWAY
        assert two.answer == (1,)
        assert actors.cell().uncommitted == 0


async def test_a_message_sent_from_within_a_turn_has_its_turn_after_it() -> None:
    async with running() as actors:
        await actors.ready()
        second = write(2)

        def act(actor: Recorder, request: Request) -> Turn:
            actors.send(second)
            return do_write(actor, request)

        first = call(act, 1)
        actors.send(first)
        await actors.settle()
        assert actors.store.value("a") == (1, 2)
        assert second.answer == 2


# ------------------------------------------------------------- the bound


async def test_a_full_mailbox_refuses_the_next_message() -> None:
    async with running(actor=ActorLimits(mailbox_messages=2)) as actors:
        one, two, three = read(), read(), read()
        actors.send(one, two, three)
        assert isinstance(three.answer, OverloadedError)
        await wait_all_tasks_blocked()
        assert one.answer == two.answer == ()


async def test_messages_parked_behind_many_parts_count_for_the_bound() -> None:
    # Mutation: check the bound only behind a part that is already on its way.
    async with running(actor=ActorLimits(mailbox_messages=2)) as actors:
        await actors.ready()
        one, two, three, four = read("p"), read("q"), read("r"), read("p")
        actors.send(one, two, three, four)
        assert isinstance(three.answer, OverloadedError)
        assert isinstance(four.answer, OverloadedError)
        assert actors.supervisor.statistics().mailbox_messages == 2
        assert len(actors.store.fetches) == 2
        actors.store.arrive()
        five = read("r")
        actors.send(five)
        await actors.settle()
        assert one.answer == two.answer == five.answer == ()
        assert actors.supervisor.statistics().mailbox_messages == 0


# -------------------------------------------------- leaving and the end


async def test_an_actor_leaves_memory_only_with_nothing_under_way() -> None:
    async with running() as actors:
        actors.send(read())
        cell = actors.cell()
        assert not cell.passivate(), "while loading"
        await wait_all_tasks_blocked()
        actors.send(write(1))
        assert not cell.passivate(), "with a write queued"
        actors.store.commit()
        actors.send(read("p"))
        assert not cell.passivate(), "with a message parked"
        actors.store.arrive()
        inside: list[bool] = []

        def act(actor: Recorder, request: Request) -> Turn:
            inside.append(cell.passivate())
            return do_read(actor, request)

        actors.send(call(act))
        assert inside == [False], "within a turn"
        assert cell.passivate()
        assert not cell.passivate()
        assert actors.supervisor.get("a") is None
        assert actors.made[0].is_released


async def test_a_passive_cell_refuses_what_it_is_handed() -> None:
    # Mutation: put it into the mailbox, where nobody ever looks again.
    async with running() as actors:
        await actors.ready()
        cell = actors.cell()
        cell.passivate()
        one, two = read(), read()
        cell.deliver(one)
        actors.send(two)
        await wait_all_tasks_blocked()
        assert isinstance(one.answer, UnavailableError)
        assert two.answer == ()
        assert actors.cell() is not cell


async def test_waiting_callers_get_an_error_when_the_actors_are_stopped() -> None:
    # Mutation: let a cancelled task end without a word to its callers.
    calls = [write(1, "p"), call(do_job_write, "job"), read(), read()]
    parked, job, behind, loading = calls
    async with running() as actors:
        await actors.ready()
        await actors.ready("b")
        actors.send(parked)
        actors.send(job, behind, to="b")
        await wait_all_tasks_blocked()
        actors.store.loads_may_finish = trio.Event()
        actors.send(loading, to="c")
        await wait_all_tasks_blocked()
    assert all(isinstance(c.answer, UnavailableError) for c in calls)
    for key in "abcd":
        late = read()
        actors.send(late, to=key)
        assert isinstance(late.answer, UnavailableError)


async def test_a_write_queued_when_the_actors_stop_is_still_acknowledged() -> None:
    async with running() as actors:
        await actors.ready()
        one = write(1)
        actors.send(one)
        await wait_all_tasks_blocked()
    actors.store.commit()
    assert one.answer == 1


@pytest.mark.parametrize("first", ["wake", "cancel"])
async def test_waking_a_cell_and_cancelling_it_at_once_wakes_its_task_once(first: str) -> None:
    # Mutation: keep the sleeper when Trio aborts the sleep. Trio would stop with TrioInternalError.
    cell = bare_cell(FakeStore())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cell.run)
        await wait_all_tasks_blocked()
        if first == "wake":
            cell.reload()
            nursery.cancel_scope.cancel()
        else:
            nursery.cancel_scope.cancel()
            cell.reload()
    assert cell.state is State.PASSIVE


async def test_reloads_and_commits_during_a_quarantine_do_no_harm() -> None:
    async with running(actor=ActorLimits(intensity=1)) as actors:
        await actors.ready()
        actors.send(*(call(do_write_and_then(raise_bug), n) for n in range(4)))
        actors.supervisor.reload_all()
        actors.store.commit()
        actors.supervisor.reload_all()
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.QUARANTINED


# ---------------------------------------------------------------- waiters


async def test_a_waiter_gets_its_answer_or_its_error() -> None:
    async with running() as actors:
        one, two = Waiter(Request(do_read)), Waiter(Request(do_refuse))
        actors.supervisor.deliver("a", one)
        actors.supervisor.deliver("a", two)
        assert await one.wait() == ()
        with pytest.raises(RefusedError):
            await two.wait()
        one.reply("again")
        two.fail(BugError())
        assert await one.wait() == ()


async def test_the_message_of_a_cancelled_waiter_is_dropped_unexecuted() -> None:
    async with running() as actors:
        waiter = Waiter(Request(do_write, tag=1))
        actors.supervisor.deliver("a", waiter)
        with trio.CancelScope() as scope:
            scope.cancel()
            await waiter.wait()
        await wait_all_tasks_blocked()
        assert waiter.answered
        assert not actors.store.queue


async def test_a_commit_of_a_job_that_finds_the_queue_full_says_so() -> None:
    async with running() as actors:
        await actors.ready()

        async def run(cell: JobCell) -> Any:
            actors.store.is_full = True
            await cell.commit(write_command("a", "main", (1,)))

        job = call(lambda *_: Job(run))
        actors.send(job)
        await wait_all_tasks_blocked()
        assert isinstance(job.answer, OverloadedError)
