"""Messages that wait for a part of the state: their order, and what a crash makes of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import pytest
from trio.testing import wait_all_tasks_blocked

from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.runtime import ActorCell, ActorLimits, Turn
from tests.runtime.fakes import (
    AWAY,
    BugError,
    FakeCall,
    FakeStore,
    Recorder,
    Request,
    call,
    do_crash,
    do_job_write,
    do_read,
    read,
    running,
    write,
)

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


async def test_messages_parked_behind_one_that_quarantines_the_actor_fail_at_once() -> None:
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
