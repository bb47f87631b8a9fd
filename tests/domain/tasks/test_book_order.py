"""Which due task is leased next, what a change takes back, and clocks that jump."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dbos_actors.domain.tasks import leasing, settling
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import (
    StaleLeaseError,
    Status,
)
from tests.domain.tasks.helpers import NOW_S, Driver, due_tasks, durable_state

# ---------------------------------------------------------------------- turns


def test_a_change_that_is_dropped_never_happened() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.schedule("u", agent_id="a2")
    before = durable_state(driver.book)
    change = driver.book.begin(driver.now)
    first = leasing.lease(driver.book, change, limit=1, lease_s=5, worker_id="w", token=1)
    settling.ack(driver.book, change, first[0].task_id, first[0].lease_token)
    driver.book.seal(change)
    assert durable_state(driver.book) == before
    assert [record.task_id for record in driver.lease()] == ["t", "u"]


def test_a_refused_operation_leaves_the_rest_of_its_change_alone() -> None:
    driver = Driver()
    for task_id in "tu":
        driver.schedule(task_id)
    tokens = {record.task_id: record.lease_token for record in driver.lease()}

    def acks(change: Change) -> None:
        settling.ack(driver.book, change, "t", tokens["t"])
        with pytest.raises(StaleLeaseError):
            settling.ack(driver.book, change, "u", tokens["t"])
        settling.ack(driver.book, change, "u", tokens["u"])
        assert settling.ack(driver.book, change, "u", tokens["u"]).status is Status.COMPLETED

    driver.turn(acks)
    assert driver.book.counters().completed == 2
    assert len(driver.journal) == 4


def test_one_change_leases_no_task_twice() -> None:
    driver = Driver()
    for task_id in "tuv":
        driver.schedule(task_id)

    def leases(change: Change) -> list[TaskRecord]:
        return [
            record
            for token in (1, 9)
            for record in leasing.lease(
                driver.book, change, limit=2, lease_s=5, worker_id="w", token=token
            )
        ]

    assert [record.task_id for record in driver.turn(leases)] == ["t", "u", "v"]


# ------------------------------------------------------------------- fairness


def names(records: list[TaskRecord]) -> list[str]:
    return [record.agent_id for record in records]


def test_many_tasks_of_one_agent_do_not_delay_the_task_of_another() -> None:
    driver = Driver()
    for i in range(1000):
        driver.schedule(f"hog{i}", agent_id="hog")
    for i in range(3):
        driver.schedule(f"small{i}", agent_id=f"small{i}")
    assert Counter(names(driver.lease(limit=4))) == {
        "hog": 1,
        "small0": 1,
        "small1": 1,
        "small2": 1,
    }


def test_turns_go_on_where_the_last_lease_ended() -> None:
    driver = Driver()
    for i in range(4):
        for agent in "abc":
            driver.schedule(f"{agent}{i}", agent_id=agent)
    served = [names(driver.lease(limit=2)) for _ in range(6)]
    assert served == [["a", "b"], ["c", "a"], ["b", "c"]] * 2


def test_filters_find_the_tasks_of_their_agent_and_module_only_and_share_turns() -> None:
    driver = Driver()
    for i in range(3):
        for agent in "ab":
            for module in ("ping", "dns"):
                driver.schedule(f"{agent}{module}{i}", agent_id=agent, module_name=module)
    book = driver.book
    assert book.has_due(agent_id="a", module_name="dns")
    assert not book.has_due(agent_id="a", module_name="trace")
    found = driver.lease(limit=2, module_name="dns")
    assert [(r.agent_id, r.module_name) for r in found] == [("a", "dns"), ("b", "dns")]
    found = driver.lease(agent_id="a")
    assert Counter(r.module_name for r in found) == {"ping": 3, "dns": 2}
    assert not book.has_due(agent_id="a")
    assert names(driver.lease(agent_id="b", module_name="ping")) == ["b"] * 3


def test_listing_is_oldest_first_changes_nothing_and_may_look_ahead() -> None:
    driver = Driver()
    driver.schedule("late", scheduled_at=NOW_S + 60)
    driver.schedule("new", scheduled_at=NOW_S - 1)
    driver.schedule("old", scheduled_at=NOW_S - 5, agent_id="a2", module_name="dns")
    entries = len(driver.journal)

    def listed(**arguments: Any) -> list[str]:
        return [record.task_id for record in due_tasks(driver.book, **arguments)]

    assert listed(until=NOW_S) == ["old", "new"]
    assert listed(until=NOW_S + 60) == ["old", "new", "late"]
    assert listed(until=NOW_S, agent_id="a2") == ["old"]
    assert listed(until=NOW_S, module_name="ping") == ["new"]
    assert len(driver.journal) == entries


# ----------------------------------------------------------------- two clocks


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_wall_clock_jump_moves_no_lease_and_no_delay(jump_s: int) -> None:
    driver = Driver()
    driver.schedule("leased", scheduled_at=NOW_S - 7200)
    driver.schedule("delayed", scheduled_at=NOW_S - 7200)
    driver.nack("delayed", delay_s=30)
    driver.lease()
    driver.wall_s += jump_s
    driver.sleep(29.9)
    assert driver.expire() == []
    assert driver.lease() == []
    driver.sleep(0.1)
    assert [record.task_id for record in driver.expire()] == ["leased"]
    assert {record.task_id for record in driver.lease()} == {"leased", "delayed"}


def test_when_the_wall_clock_jumps_back_nothing_is_early_and_nothing_is_skipped() -> None:
    driver = Driver()
    for i in range(10):
        driver.schedule(f"t{i}", scheduled_at=NOW_S + i * 600)
    driver.sleep(3600)
    assert len(list(due_tasks(driver.book, until=int(driver.wall_s)))) == 7
    driver.wall_s -= 3600
    assert [record.task_id for record in driver.lease()] == ["t0"]
    leased = []
    for _ in range(9):
        assert driver.lease() == []
        driver.sleep(600)
        leased += [record.task_id for record in driver.lease()]
    assert leased == [f"t{i}" for i in range(1, 10)]


def test_when_the_wall_clock_jumps_ahead_what_it_passed_is_due_in_order() -> None:
    driver = Driver()
    for i in (3, 1, 2):
        driver.schedule(f"t{i}", scheduled_at=NOW_S + i * 600)
    driver.wall_s += 3600
    assert [record.task_id for record in driver.lease()] == ["t1", "t2", "t3"]


def test_falling_due_is_limited_per_step_and_loses_nothing() -> None:
    driver = Driver()
    for i in range(10):
        driver.schedule(f"t{i}", scheduled_at=NOW_S + 1)
    driver.wall_s += 1
    assert [driver.book.advance(driver.now, limit=4) for _ in range(4)] == [4, 4, 2, 0]


def test_the_scheduler_sleeps_until_the_next_timer_but_checks_the_wall_clock_meanwhile() -> None:
    driver = Driver()
    assert driver.book.wake_after_s(driver.now) is None
    driver.schedule("t", scheduled_at=NOW_S + 100)
    assert driver.book.wake_after_s(driver.now) == 1.0
    driver.sleep(99.75)
    assert driver.book.wake_after_s(driver.now) == 0.25
    driver.sleep(0.25)
    driver.lease(lease_s=7)
    assert driver.book.wake_after_s(driver.now) == 7.0
    driver.ack("t")
    assert driver.book.wake_after_s(driver.now) == 60.0


def test_flows_in_which_tasks_fell_due_are_reported_once() -> None:
    driver = Driver()
    driver.schedule("t", scheduled_at=NOW_S + 1)
    assert driver.book.take_fresh() == []
    driver.sleep(1)
    assert [flow.agent_id for flow in driver.book.take_fresh()] == ["a1"]
    assert driver.book.take_fresh() == []
