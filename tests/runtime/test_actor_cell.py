"""One actor: its turns, its restarts, and that nothing it is told is lost or told twice.

The comments name the change to the runtime that only that test notices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.runtime import AGAIN, DEFERRED, ActorCell, ActorLimits, Job, State, Turn, Waiter
from tests.runtime.fakes import (
    AWAY,
    REFUSED,
    BugError,
    FakeCall,
    FakeStore,
    Recorder,
    Request,
    bare_cell,
    call,
    do_crash,
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


async def test_a_refusal_whose_writes_are_taken_back_is_not_told() -> None:
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


# --------------------------------------------------------------- refusals


async def test_a_refused_commit_is_told_and_memory_is_what_the_store_has() -> None:
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


async def test_nothing_is_read_from_memory_while_a_refusal_is_being_told() -> None:
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
        assert actors.cell().state is State.SETTLING
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
        assert actors.cell().state is State.SETTLING
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


async def test_no_turn_is_taken_on_state_that_a_crash_has_condemned() -> None:
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


async def test_a_bug_in_what_follows_a_commit_cannot_revive_a_passive_actor() -> None:
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


# ------------------------------------------------------------------ parts


async def test_messages_queue_behind_the_part_they_need_and_others_go_on() -> None:
    async with running() as actors:
        await actors.ready()
        one, two, other = write(1, "p"), read("p"), read()
        actors.send(one, two, other)
        assert other.answer == ()
        assert len(actors.store.fetches) == 1
        await actors.settle()
        assert one.answer == 1
        assert two.answer == (1,)


async def test_a_part_that_cannot_be_fetched_fails_only_those_behind_it() -> None:
    async with running() as actors:
        await actors.ready()
        one, two, other = write(1, "p"), read("p"), write(2, "q")
        actors.send(one, two, other)
        actors.store.arrive(error=AWAY)
        assert one.answer is AWAY
        assert two.answer is AWAY
        await actors.settle()
        assert other.answer == 2


@pytest.mark.parametrize("restart", ["refusal", "crash", "reload", "job"])
async def test_parked_messages_survive_a_restart_in_order(restart: str) -> None:
    async with running() as actors:
        await actors.ready()
        actors.send(write("w"))
        parked = [write(n, "pq"[n % 2]) for n in range(6)]
        actors.send(*parked)
        match restart:
            case "refusal":
                actors.store.refuse()
            case "crash":
                actors.send(call(do_crash))
            case "reload":
                actors.supervisor.reload_all()
            case "job":
                actors.send(call(do_job_write, "job"))
        late = [write(6, "p"), write(7, "q")]
        actors.send(*late)
        await actors.settle()
        assert actors.store.value("a", "p") == (0, 2, 4, 6)
        assert actors.store.value("a", "q") == (1, 3, 5, 7)
        assert [c.answer for c in (*parked, *late)] == list(range(8))


async def test_a_part_that_arrives_for_an_earlier_incarnation_is_dropped() -> None:
    # Mutation: `arrived` without a look at the generation; the fetch below is then taken for
    # the new one, which is still on its way.
    async with running() as actors:
        await actors.ready()
        one = write(1, "p")
        actors.send(one)
        stale = actors.store.fetches.pop()
        actors.supervisor.reload_all()
        await wait_all_tasks_blocked()
        assert len(actors.store.fetches) == 1
        stale.arrived(AWAY)
        assert not one.answered
        await actors.settle()
        assert one.answer == 1


async def test_those_behind_one_whose_turn_crashes_keep_their_places() -> None:
    async with running() as actors:
        await actors.ready()
        crash = FakeCall(Request(do_crash, "p"))
        rest = [write(1, "p"), write(2, "p")]
        actors.send(crash, *rest)
        actors.store.arrive()
        actors.send(write(3, "p"))
        await actors.settle()
        assert isinstance(crash.answer, BugError)
        assert actors.store.value("a", "p") == (1, 2, 3)


async def test_what_a_crashing_turn_sent_comes_after_those_that_were_behind_it() -> None:
    # Mutation: put them at the end of the mailbox.
    async with running() as actors:
        await actors.ready()

        def act(actor: Recorder, request: Request) -> Turn:
            actors.send(write(2, "p"))
            raise BugError

        actors.send(FakeCall(Request(act, "p")), write(1, "p"))
        actors.store.arrive()
        await actors.settle()
        assert actors.store.value("a", "p") == (1, 2)


async def test_those_parked_by_a_drain_that_ends_in_a_crash_keep_their_places() -> None:
    # Mutation: put them at the end of the mailbox.
    async with running() as actors:
        actors.send(write(1, "p"), call(do_crash), write(2, "p"))
        await actors.settle()
        assert actors.store.value("a", "p") == (1, 2)


async def test_those_behind_one_whose_turn_quarantines_the_actor_are_told_at_once() -> None:
    # Mutation: put them back into the mailbox; nobody looks there for 30 s.
    async with running(actor=ActorLimits(intensity=0)) as actors:
        await actors.ready()
        rest = write(1, "p")
        actors.send(FakeCall(Request(do_crash, "p")), rest)
        actors.store.arrive()
        assert isinstance(rest.answer, UnavailableError)


async def test_a_message_sent_from_the_turn_of_a_parked_one_is_not_forgotten() -> None:
    # Mutation: `_unpark` leaves what was sent meanwhile in the mailbox of a sleeping actor.
    async with running() as actors:
        await actors.ready()
        second = read()

        def act(actor: Recorder, request: Request) -> Turn:
            actors.send(second)
            return do_read(actor, request)

        actors.send(FakeCall(Request(act, "p")))
        actors.store.arrive()
        await wait_all_tasks_blocked()
        assert second.answer == ()


async def test_a_part_that_left_again_is_fetched_again_in_order() -> None:
    async with running() as actors:
        await actors.ready()
        calls = [write(1, "p"), write(2, "p")]
        actors.send(*calls)
        stale = actors.store.fetches.pop()
        stale.arrived(None)  # without the part
        await actors.settle()
        assert actors.store.value("a", "p") == (1, 2)


class Impatient(Recorder):
    """Its fetches answer at once, or have no room."""

    def fetch(self, part: Hashable, arrived: Callable[[UnavailableError | None], None]) -> None:
        assert isinstance(part, str)
        if part == "full":
            raise OverloadedError("the read queue", limit=0, unit="reads")
        if part == "broken":
            raise BugError
        self.parts[part] = self.store.value(self.key, part)
        arrived(None if part == "there" else AWAY)


def make_impatient(store: FakeStore) -> Callable[[str, ActorCell], Impatient]:
    return lambda key, cell: Impatient(key, cell, store)


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        ("there", tuple),
        ("away", UnavailableError),
        ("full", OverloadedError),
        ("broken", BugError),
    ],
)
async def test_a_fetch_may_end_before_it_returns(part: str, answer: type) -> None:
    # Mutation: park the message after the fetch has been started.
    async with running() as actors:
        actors.supervisor._make = make_impatient(actors.store)
        await actors.ready()
        one, two = read(part), read()
        actors.send(one)
        assert isinstance(one.answer, answer)
        actors.send(two)
        await wait_all_tasks_blocked()
        assert two.answer == ()
        assert actors.cell().waiting == 0
        assert actors.cell().passivate()


# ------------------------------------------------------------------- jobs


async def test_a_job_has_the_actor_to_itself_and_settled_state() -> None:
    async with running() as actors:
        await actors.ready()
        one, job, two = write(1), call(do_job_write, "job"), write(2)
        actors.send(one, job, two)
        await wait_all_tasks_blocked()
        assert len(actors.store.queue) == 1
        actors.store.commit()
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.BUSY
        assert not two.answered
        await actors.settle()
        assert job.answer == "job"
        assert actors.store.value("a") == (1, ("job", "first"), ("job", "second"), 2)


async def test_a_job_whose_commit_is_refused_fails_and_the_actor_loads_again() -> None:
    async with running() as actors:
        await actors.ready()
        job, after = call(do_job_write, "job"), read()
        actors.send(job, after)
        await wait_all_tasks_blocked()
        actors.store.commit()
        await wait_all_tasks_blocked()
        actors.store.refuse()
        await actors.settle()
        assert job.answer is REFUSED
        assert after.answer == (("job", "first"),)


@pytest.mark.parametrize("ending", ["refusal", "crash"])
async def test_a_job_is_decided_again_when_a_turn_before_it_is_taken_back(ending: str) -> None:
    # Mutation: let a job that has not begun run on the state it was decided on.
    async with running() as actors:
        await actors.ready()
        decided_on: list[Any] = []

        def act(actor: Recorder, request: Request) -> Job:
            decided_on.append(actor.parts["main"])
            return do_job_write(actor, request)

        first = write(1) if ending == "refusal" else call(do_write_and_then(raise_bug), 1)
        job, after = call(act, "job"), write(2)
        actors.send(first, job, after)
        if ending == "refusal":
            actors.store.refuse()
        else:
            actors.store.commit()
        await actors.settle()
        there = () if ending == "refusal" else (1,)
        assert decided_on == [(1,), there]
        assert job.answer == "job"
        assert actors.store.value("a") == (*there, ("job", "first"), ("job", "second"), 2)


async def test_a_job_that_has_not_begun_is_told_of_a_quarantine() -> None:
    async with running(actor=ActorLimits(intensity=0)) as actors:
        await actors.ready()
        job = call(do_job_write, "job")
        actors.send(call(do_write_and_then(raise_bug), 1), job)
        actors.store.commit()
        assert isinstance(job.answer, UnavailableError)
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.QUARANTINED


async def test_a_job_may_have_its_message_come_again_before_all_others() -> None:
    async with running() as actors:
        await actors.ready()
        jobs = 0

        def act(actor: Recorder, request: Request) -> Turn | Job:
            nonlocal jobs
            if jobs:
                return do_write(actor, request)
            jobs += 1

            async def prepare(cell: ActorCell) -> Any:
                await trio.lowlevel.checkpoint()
                return AGAIN

            return Job(prepare)

        prepared, other = call(act, 1), write(2)
        actors.send(prepared, other)
        await actors.settle()
        assert (prepared.answer, other.answer) == (1, 2)
        assert actors.store.value("a") == (1, 2)


async def test_a_job_nobody_waits_for_any_more_does_not_begin() -> None:
    async with running() as actors:
        await actors.ready()
        job = call(do_job_write, "job")
        actors.send(write(1), job)
        job.answered = True
        await actors.settle()
        assert actors.store.value("a") == (1,)


@pytest.mark.parametrize(
    ("error", "kind"), [(BugError(), BugError), (RefusedError("no"), RefusedError), (AWAY, None)]
)
async def test_a_job_that_raises_fails_its_caller_alone(
    error: Exception, kind: type | None
) -> None:
    async with running() as actors:
        await actors.ready()

        async def run(cell: ActorCell) -> Any:
            raise error

        job, after = call(lambda *_: Job(run)), read()
        actors.send(job, after)
        await actors.settle()
        assert isinstance(job.answer, kind or UnavailableError)
        assert after.answer == ()


async def test_a_jobs_answer_that_cannot_be_sent_does_not_end_the_supervisor() -> None:
    # Mutation: reply outside of the `try`.
    class Unsendable(FakeCall):
        def reply(self, message: Any) -> None:
            raise BugError

    async with running() as actors:
        await actors.ready()
        job, after = Unsendable(Request(do_job_write, tag="job")), read()
        actors.send(job, after)
        await actors.settle()
        assert isinstance(job.answer, BugError)
        assert len(after.answer) == 2


async def test_a_reload_during_a_job_lets_it_finish_and_then_loads() -> None:
    async with running() as actors:
        await actors.ready()
        job, after = call(do_job_write, "job"), read()
        actors.send(job, after)
        await wait_all_tasks_blocked()
        actors.supervisor.reload_all()
        await actors.settle()
        assert job.answer == "job"
        assert len(after.answer) == 2


async def test_a_job_may_give_up_waiting_for_a_commit_that_happens_later() -> None:
    async with running() as actors:
        await actors.ready()
        job, after = call(do_job_write, "job"), read()
        actors.send(job, after)
        await wait_all_tasks_blocked()
        actors.store.queue[0].give_up(AWAY)
        await wait_all_tasks_blocked()
        assert job.answer is AWAY
        assert not after.answered
        actors.store.commit()
        await wait_all_tasks_blocked()
        assert after.answer == (("job", "first"),)


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


async def test_those_who_wait_are_told_when_the_actors_are_stopped() -> None:
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


async def test_a_cell_may_be_told_to_wake_any_number_of_times() -> None:
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

        async def run(cell: ActorCell) -> Any:
            actors.store.is_full = True
            await cell.commit(write_command("a", "main", (1,)))

        job = call(lambda *_: Job(run))
        actors.send(job)
        await wait_all_tasks_blocked()
        assert isinstance(job.answer, OverloadedError)
