"""A family of actors: who is in memory, who leaves, and what that costs the others.

The comments name the change to the runtime that only that test notices.
"""

from __future__ import annotations

import gc
import weakref

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.clock import SystemClock
from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.runtime import Supervisor, SupervisorLimits
from tests.runtime.fakes import Actors, FakeStore, read, running, write


def keys(count: int) -> list[str]:
    return [f"k{number}" for number in range(count)]


async def pass_time(clock: MockClock, seconds: float) -> None:
    """Second by second, as the sweeper sees it."""
    for _ in range(int(seconds)):
        clock.jump(1)
        await wait_all_tasks_blocked()


async def test_actors_are_in_memory_from_their_first_message() -> None:
    async with running() as actors:
        assert actors.supervisor.get("a") is None
        await actors.ready("a", "b")
        actors.send(read())
        statistics = actors.supervisor.statistics()
        assert (statistics.resident, statistics.activations, statistics.passivations) == (2, 2, 0)


async def test_statistics_count_what_waits_in_mailboxes_and_behind_parts() -> None:
    async with running() as actors:
        await actors.ready()
        actors.send(read("p"), read("p"))
        actors.send(read(), to="b")
        statistics = actors.supervisor.statistics()
        assert statistics.mailbox_messages == 3
        assert statistics.mailbox_messages_max == 2


async def test_all_mailboxes_together_hold_a_bounded_number_of_bytes() -> None:
    # Mutation: count a message in, and out only when it is refused.
    async with running(mailbox_bytes=3) as actors:
        await actors.ready("ready")
        waiting = [read() for _ in range(3)]
        for number, one in enumerate(waiting):
            actors.send(one, to=f"k{number}")
        assert actors.supervisor.statistics().mailbox_bytes == 3
        late, parked, turned = read(), read("p"), read()
        actors.send(late, to="k3")
        actors.send(parked, turned, to="ready")
        assert isinstance(late.answer, OverloadedError)
        assert "the budget of all mailboxes" in str(late.answer)
        assert isinstance(parked.answer, OverloadedError)
        assert turned.answer == ()
        await wait_all_tasks_blocked()
        assert [one.answer for one in waiting] == [(), (), ()]
        assert actors.supervisor.statistics().mailbox_bytes == 0


async def test_messages_sent_before_the_start_or_after_the_stop_of_the_actors_fail() -> None:
    supervisor = Supervisor(
        make=Actors(FakeStore(), SupervisorLimits())._make,
        log=FakeStore(),
        clock=SystemClock(),
        limits=SupervisorLimits(),
    )
    one = read()
    supervisor.deliver("a", one)
    assert isinstance(one.answer, UnavailableError)


async def test_a_lone_actor_stays_for_all_of_the_idle_time(mock_clock: MockClock) -> None:
    # Mutation: passivate at the hand's second visit; it visits few actors every second.
    async with running(idle_s=300) as actors:
        await actors.ready()
        await pass_time(mock_clock, 290)
        assert actors.supervisor.get("a") is not None
        await pass_time(mock_clock, 15)
        assert actors.supervisor.get("a") is None
        assert actors.supervisor.statistics().passivations == 1


async def test_an_actor_with_messages_stays(mock_clock: MockClock) -> None:
    async with running(idle_s=20) as actors:
        for _ in range(10):
            await actors.ready()
            await pass_time(mock_clock, 15)
        assert actors.supervisor.statistics().activations == 1


@pytest.mark.parametrize("count", [1, 7, 400])
async def test_all_idle_actors_leave_within_three_times_the_idle_time(
    count: int, mock_clock: MockClock
) -> None:
    # Mutation: a slice is a share of those still there; with 400 the lap then slows down.
    async with running(idle_s=20) as actors:
        await actors.ready(*keys(count))
        await pass_time(mock_clock, 61)
        assert actors.supervisor.statistics().resident == 0
        one = write(1)
        actors.send(one, to="k0")
        await actors.settle()
        assert one.answer == 1


async def test_an_idle_actor_with_a_write_that_is_not_committed_stays(
    mock_clock: MockClock,
) -> None:
    async with running(idle_s=20) as actors:
        await actors.ready()
        one = write(1)
        actors.send(one)
        await pass_time(mock_clock, 100)
        assert actors.supervisor.get("a") is not None
        actors.store.commit()
        assert one.answer == 1
        await pass_time(mock_clock, 25)
        assert actors.supervisor.get("a") is None


async def test_memory_holds_no_more_actors_than_allowed_and_the_idle_ones_leave() -> None:
    async with running(max_resident=10) as actors:
        await actors.ready(*keys(10))
        for number in range(50):
            await actors.ready("busy")
            await actors.ready(f"new{number}")
            assert actors.supervisor.statistics().resident <= 10
        # It was asked between any two others: the second chance keeps it, mostly.
        made = [actor for actor in actors.made if actor.key == "busy"]
        assert len(made) <= 5


async def test_an_actor_too_many_is_refused_while_all_others_are_busy() -> None:
    async with running(max_resident=3) as actors:
        await actors.ready(*keys(3))
        for key in keys(3):
            actors.send(write(1), to=key)
        one = read()
        actors.send(one, to="another")
        assert isinstance(one.answer, OverloadedError)
        actors.store.commit()
        two = read()
        actors.send(two, to="another")
        await wait_all_tasks_blocked()
        assert two.answer == ()
        assert actors.supervisor.statistics().resident == 3


async def test_a_burst_of_new_actors_in_one_step_stays_within_the_bound() -> None:
    async with running(max_resident=20) as actors:
        await actors.ready(*keys(20))
        calls = [read() for _ in range(100)]
        for number, call in enumerate(calls):
            actors.send(call, to=f"new{number}")
            assert actors.supervisor.statistics().resident <= 20
        await wait_all_tasks_blocked()
        served = [call for call in calls if call.answer == ()]
        assert len(served) == 20
        assert all(isinstance(c.answer, OverloadedError) for c in calls if c not in served)


async def test_actors_that_left_by_themselves_do_not_hide_the_idle_ones_from_eviction() -> None:
    # Mutation: count passive cells of the lap as looked at.
    async with running(max_resident=601) as actors:
        await actors.ready(*keys(600))
        actors.supervisor._next_cell()  # a lap begins
        actors.supervisor.reload_all()
        await wait_all_tasks_blocked()
        assert actors.supervisor.statistics().resident == 0
        await actors.ready(*(f"new{number}" for number in range(601)))
        one = read()
        actors.send(one, to="another")
        await wait_all_tasks_blocked()
        assert one.answer == ()


async def test_evicted_actors_are_freed_before_the_hand_has_gone_round() -> None:
    # Mutation: iterate over a lap that stays whole.
    async with running(max_resident=100) as actors:
        await actors.ready(*keys(100))
        cells = [weakref.ref(actor) for actor in actors.made]
        actors.made.clear()
        await actors.ready(*(f"new{number}" for number in range(50)))
        actors.made.clear()
        gc.collect()
        assert sum(cell() is not None for cell in cells) == 50


async def test_reload_all_reaches_every_actor() -> None:
    async with running() as actors:
        await actors.ready("a", "b")
        for key in "ab":
            actors.store.data[key, "main"] = ("older",)
        actors.supervisor.reload_all()
        calls = [read(), read()]
        for key, call in zip("ab", calls, strict=True):
            actors.send(call, to=key)
        await wait_all_tasks_blocked()
        assert [call.answer for call in calls] == [("older",), ("older",)]


async def test_an_actors_trio_task_is_named_after_its_key() -> None:
    async with running() as actors:
        await actors.ready("agent-1")
        assert actors.supervisor._nursery is not None
        names = [task.name for task in actors.supervisor._nursery.child_tasks]
        assert names == ["agent-1"]
