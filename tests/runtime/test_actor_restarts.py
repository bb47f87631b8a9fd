"""What an actor does when a commit is refused, a turn raises or its state cannot be loaded."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.errors import UnavailableError
from dbos_actors.runtime import ActorLimits, State, Turn
from tests.runtime.fakes import (
    AWAY,
    REFUSED,
    BugError,
    FakeCall,
    Recorder,
    Request,
    call,
    do_crash,
    do_write,
    do_write_and_then,
    event_command,
    raise_bug,
    read,
    running,
    write,
)

# --------------------------------------------------------------- refusals


async def test_after_a_refused_commit_the_caller_gets_an_error_and_the_state_is_loaded_again() -> (
    None
):
    async with running() as actors:
        await actors.ready()
        one, two, three = write(1), write(2), read()
        actors.send(one)
        actors.store.commit()
        actors.send(two, three)
        actors.store.refuse(1)
        assert two.answer is REFUSED
        assert three.answer is REFUSED
        four, five = read(), write(5)
        actors.send(four, five)
        await actors.settle()
        assert four.answer == (1,)
        assert actors.store.value("a") == (1, 5)


async def test_no_read_is_answered_from_memory_while_a_refused_commit_is_handled() -> None:
    # Mutation: reload only when all of the actor's turns have been told, by `store_refused`.
    async with running() as actors:
        await actors.ready()
        other = read()
        one = write(1)
        one.on_answer = lambda _: None
        bystander = write("b")
        await actors.ready("b")

        def resend(_: FakeCall) -> None:
            actors.send(other)

        bystander.on_answer = resend
        actors.send(one)
        actors.send(bystander, to="b")
        actors.store.refuse()
        assert not other.answered
        await actors.settle()
        assert other.answer == ()


async def test_refusals_do_not_count_as_crashes() -> None:
    async with running(actor=ActorLimits(intensity=1)) as actors:
        for number in range(5):
            await actors.ready()
            actors.send(write(number))
            actors.store.refuse()
        last = write("last")
        actors.send(last)
        await actors.settle()
        assert last.answer == "last"


async def test_an_actor_nobody_waits_for_leaves_memory_instead_of_loading_again() -> None:
    # Mutation: load in any case; a reload of everyone then reads everyone at once.
    async with running() as actors:
        await actors.ready()
        loads = actors.store.loads
        actors.supervisor.reload_all()
        await wait_all_tasks_blocked()
        assert actors.supervisor.get("a") is None
        assert actors.store.loads == loads
        assert actors.made[0].is_released


# ---------------------------------------------------------------- crashes


async def test_a_handler_that_raises_fails_its_caller_and_the_others_go_on() -> None:
    async with running() as actors:
        one, two, three = write(1), call(do_crash), write(3)
        actors.send(one, two, three)
        await actors.settle()
        assert one.answer == 1
        assert isinstance(two.answer, BugError)
        assert three.answer == 3
        assert actors.store.value("a") == (1, 3)


async def test_a_crashed_actor_loads_only_when_its_writes_have_left_the_queue() -> None:
    async with running() as actors:
        await actors.ready()
        later = read()
        actors.send(write(1), call(do_crash), later)
        loads = actors.store.loads
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.AWAITING_WRITES
        assert actors.store.loads == loads
        actors.store.commit()
        await wait_all_tasks_blocked()
        assert later.answer == (1,)


async def test_too_many_crashes_quarantine_the_actor_and_time_lets_it_out(
    mock_clock: MockClock,
) -> None:
    async with running(actor=ActorLimits(intensity=2, quarantine_s=30)) as actors:
        crashes = [call(do_crash) for _ in range(3)]
        waiting = read()
        actors.send(*crashes, waiting)
        await wait_all_tasks_blocked()
        assert all(isinstance(crash.answer, BugError) for crash in crashes)
        assert isinstance(waiting.answer, UnavailableError)
        assert actors.supervisor.statistics().quarantined == 1
        during, healthy = read(), read()
        actors.send(during)
        actors.send(healthy, to="b")
        await wait_all_tasks_blocked()
        assert isinstance(during.answer, UnavailableError)
        assert healthy.answer == ()
        mock_clock.jump(30)
        await wait_all_tasks_blocked()
        after = read()
        actors.send(after)
        await wait_all_tasks_blocked()
        assert after.answer == ()


async def test_an_actor_leaves_memory_when_its_quarantine_ends(mock_clock: MockClock) -> None:
    # Mutation: load after a quarantine. An actor that cannot load would then never leave.
    async with running(actor=ActorLimits(intensity=0)) as actors:
        actors.store.load_error = BugError()
        actors.send(read())
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.QUARANTINED
        mock_clock.jump(30)
        await wait_all_tasks_blocked()
        assert actors.supervisor.get("a") is None


async def test_crashes_far_apart_do_not_quarantine(mock_clock: MockClock) -> None:
    async with running(actor=ActorLimits(intensity=1, period_s=10)) as actors:
        for _ in range(5):
            crash = call(do_crash)
            actors.send(crash)
            await wait_all_tasks_blocked()
            assert isinstance(crash.answer, BugError)
            mock_clock.jump(11)
        last = read()
        actors.send(last)
        await wait_all_tasks_blocked()
        assert last.answer == ()


async def test_crashes_after_one_commit_quarantine_even_while_the_actor_settles() -> None:
    # Mutation: `_settle` goes on to LOADING whatever the state has become meanwhile.
    async with running(actor=ActorLimits(intensity=2)) as actors:
        await actors.ready()
        calls = [call(do_write_and_then(raise_bug), n) for n in range(4)]
        actors.send(*calls)
        actors.store.commit(1)
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.AWAITING_WRITES
        actors.store.commit()
        await wait_all_tasks_blocked()
        assert all(isinstance(c.answer, BugError) for c in calls)
        assert actors.cell().state is State.QUARANTINED
        assert actors.cell().uncommitted == 0


async def test_an_answer_that_cannot_be_sent_is_that_actors_crash_alone() -> None:
    # Mutation: let what `reply` raises out of `Turn.committed`, into the store.
    class Unsendable(FakeCall):
        def reply(self, message: Any) -> None:
            raise BugError

    async with running() as actors:
        await actors.ready("a", "b")
        bad, good = Unsendable(Request(do_write, tag=1)), write(2)
        actors.send(bad)
        actors.send(good, to="b")
        actors.store.commit()
        assert isinstance(bad.answer, BugError)
        assert good.answer == 2
        after = read()
        actors.send(after)
        await actors.settle()
        assert after.answer == (1,)


async def test_no_message_is_handled_on_state_that_a_crash_made_invalid() -> None:
    # Mutation: fail the caller before the state is left.
    async with running() as actors:
        await actors.ready()
        again = read()
        one = call(do_write_and_then(raise_bug), 1)
        one.on_answer = lambda _: actors.send(again)
        actors.send(one)
        actors.store.commit()
        assert not actors.store.queue
        await actors.settle()
        assert again.answer == (1,)


async def test_an_error_after_a_commit_does_not_restart_an_actor_that_has_left_memory() -> None:
    # Mutation: count crashes of a passive cell, and quarantine it.
    async with running(actor=ActorLimits(intensity=0)) as actors:
        await actors.ready()
        cell = actors.cell()
        assert cell.passivate()
        one = read()
        cell.submit(Turn(None, commands=[event_command(1)], then=raise_bug), one)
        actors.store.commit()
        assert isinstance(one.answer, BugError)
        assert cell.state is State.PASSIVE


# ---------------------------------------------------------------- loading


async def test_a_state_that_cannot_be_loaded_fails_those_who_wait_for_it() -> None:
    async with running() as actors:
        actors.store.load_error = AWAY
        one, two = read(), write(2)
        actors.send(one, two)
        await wait_all_tasks_blocked()
        assert one.answer is AWAY
        assert two.answer is AWAY
        assert actors.supervisor.get("a") is None
        actors.store.load_error = None
        three = read()
        actors.send(three)
        await wait_all_tasks_blocked()
        assert three.answer == ()


async def test_a_caller_that_sends_again_at_once_finds_a_new_cell() -> None:
    # Mutation: fail those who wait before unrouting; the cell then never gets empty.
    async with running() as actors:
        actors.store.load_error = AWAY
        again = read()
        one = read()

        def resend(_: FakeCall) -> None:
            actors.store.load_error = None
            actors.send(again)

        one.on_answer = resend
        actors.send(one)
        await wait_all_tasks_blocked()
        assert again.answer == ()


async def test_a_bug_while_loading_fails_one_caller_at_a_time() -> None:
    async with running(actor=ActorLimits(intensity=1)) as actors:
        actors.store.load_error = BugError()
        calls = [read() for _ in range(4)]
        actors.send(*calls)
        await wait_all_tasks_blocked()
        kinds = [type(c.answer) for c in calls]
        assert kinds == [BugError, BugError, UnavailableError, UnavailableError]


async def test_a_reload_while_loading_loads_once_more() -> None:
    # Mutation: `_load` goes on to READY without a look at the generation.
    async with running() as actors:
        actors.store.loads_may_finish = trio.Event()
        one = read()
        actors.send(one)
        await wait_all_tasks_blocked()
        actors.store.data["a", "main"] = ("newer",)
        actors.supervisor.reload_all()
        actors.store.loads_may_finish.set()
        await wait_all_tasks_blocked()
        assert one.answer == ("newer",)
        assert actors.store.loads == 2


async def test_a_load_that_fails_after_a_reload_is_tried_again() -> None:
    async with running() as actors:
        actors.store.loads_may_finish = trio.Event()
        actors.store.load_error = AWAY
        one = read()
        actors.send(one)
        await wait_all_tasks_blocked()
        actors.supervisor.reload_all()
        actors.store.load_error = None
        actors.store.loads_may_finish.set()
        await wait_all_tasks_blocked()
        assert one.answer == ()


async def test_a_burst_that_waited_for_the_state_lets_other_tasks_run_in_between() -> None:
    # Mutation: drain the whole mailbox in one go.
    async with running() as actors:
        seen: list[Any] = []

        def act(actor: Recorder, request: Request) -> Turn:
            seen.append(request.tag)
            return Turn(None)

        actors.store.loads_may_finish = trio.Event()
        actors.send(*(call(act, n) for n in range(900)))
        await wait_all_tasks_blocked()
        actors.store.loads_may_finish.set()
        longest = before = 0
        while len(seen) < 900:
            await trio.lowlevel.checkpoint()
            longest = max(longest, len(seen) - before)
            before = len(seen)
        # Two slices of a hundred, since Trio shuffles who runs first in a pass.
        assert longest <= 200
        assert seen == list(range(900))


async def test_a_message_that_arrives_during_the_drain_comes_last() -> None:
    async with running(actor=ActorLimits(mailbox_messages=300)) as actors:
        actors.send(*(write(n) for n in range(250)))
        while not actors.store.queue:
            await trio.lowlevel.checkpoint()
        actors.send(write("late"))
        await actors.settle()
        assert actors.store.value("a") == (*range(250), "late")
