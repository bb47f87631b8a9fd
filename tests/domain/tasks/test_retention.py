"""How long tasks that ended are kept, and what goes first."""

from __future__ import annotations

import pytest

from dbos_actors.domain.tasks import retirement
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.states import (
    UnknownTaskError,
)
from tests.domain.tasks.helpers import NOW_S, Driver, durable_state

# ------------------------------------------------------------ ledger, the end


def died(driver: Driver, *task_ids: str) -> None:
    for task_id in task_ids:
        driver.schedule(task_id, max_attempts=1)
        driver.nack(task_id)


def test_a_dead_task_is_dropped_after_its_retention_and_leaves_the_ledger_balanced() -> None:
    driver = Driver(TaskLimits(dead_retention_s=3600))
    died(driver, "t")
    driver.wall_s += 10 * 3600  # a jump makes nothing old
    driver.sleep(3599)
    assert driver.retire() == []
    assert driver.book.wake_after_s(driver.now) == 60.0
    driver.sleep(1)
    assert driver.retire() == ["t"]
    counters = driver.book.counters()
    assert (counters.scheduled, counters.dead, counters.deleted) == (0, 0, 1)
    assert counters.balanced
    assert driver.schedule("t", max_attempts=1)


def test_dead_tasks_beyond_their_maximum_are_dropped_in_the_order_in_which_they_died() -> None:
    driver = Driver(TaskLimits(dead_max=2))
    for i in (3, 1, 4, 2):
        died(driver, f"t{i}")
        driver.sleep(1)
    driver.restart()
    assert retirement.is_retirement_due(driver.book, driver.now)
    assert driver.retire(limit=1) == ["t3"]
    assert driver.retire() == ["t1"]
    assert not retirement.is_retirement_due(driver.book, driver.now)
    assert [record.task_id for record in driver.book.dead_tasks()] == ["t4", "t2"]


def test_what_ended_makes_room_for_new_tasks_before_a_full_book_refuses_them() -> None:
    driver = Driver(TaskLimits(tasks_max=6, completed_max=2, dead_max=2))
    for i in range(50):
        died(driver, f"dead{i}")
        driver.schedule(f"done{i}")
        driver.ack(f"done{i}")
        driver.retire()
    assert len(driver.book) == 4
    assert driver.book.counters().balanced


def test_tasks_dropped_before_their_retention_has_passed_are_counted() -> None:
    driver = Driver(TaskLimits(completed_max=2, retention_s=10, dead_max=1))
    for i in range(4):
        driver.schedule(f"t{i}")
        driver.ack(f"t{i}")
        driver.sleep(4)
    died(driver, "d0", "d1")
    retired = driver.turn(lambda change: retirement.retire(driver.book, change, limit=100))
    # t0 and t1 are 16 and 12 seconds old.
    assert (retired.completed, retired.dead, retired.early) == (["t0", "t1"], ["d0"], 1)


def test_a_completed_task_is_dropped_after_its_retention_and_stays_counted() -> None:
    driver = Driver(TaskLimits(retention_s=3600))
    driver.schedule("t")
    driver.ack("t")
    driver.sleep(3599)
    assert driver.retire() == []
    driver.sleep(1)
    assert driver.retire() == ["t"]
    counters = driver.book.counters()
    assert (counters.scheduled, counters.completed, counters.completed_kept) == (1, 1, 0)
    assert counters.balanced
    assert driver.book.flows == {}
    with pytest.raises(UnknownTaskError):
        driver.ack("t")


def test_a_jump_of_the_wall_clock_makes_no_completed_task_old() -> None:
    driver = Driver(TaskLimits(retention_s=3600))
    driver.schedule("t", scheduled_at=NOW_S)
    driver.ack("t")
    driver.wall_s += 10 * 3600
    assert driver.retire() == []
    assert not driver.schedule("t", scheduled_at=NOW_S)  # a late copy
    driver.sleep(3599)
    assert driver.retire() == []
    assert driver.book.wake_after_s(driver.now) == 60.0
    driver.wall_s -= 10 * 3600  # it is right again
    driver.sleep(1)
    assert driver.retire() == ["t"]


def test_a_wall_clock_that_is_behind_keeps_completed_tasks_longer() -> None:
    driver = Driver(TaskLimits(retention_s=3600))
    driver.schedule("t")
    driver.ack("t")
    driver.wall_s -= 1800
    driver.sleep(5399)
    assert driver.retire() == []
    driver.sleep(1)
    assert driver.retire() == ["t"]


def test_a_task_completed_while_the_wall_clock_is_behind_is_not_old_when_it_is_right_again() -> (
    None
):
    driver = Driver(TaskLimits(retention_s=3600))
    driver.schedule("t", scheduled_at=1)
    driver.wall_s -= 7200
    driver.ack("t")
    driver.wall_s += 7200
    driver.sleep(3599)
    assert driver.retire() == []
    driver.sleep(1)
    assert driver.retire() == ["t"]


def test_completed_tasks_beyond_their_maximum_are_dropped_oldest_first() -> None:
    driver = Driver(TaskLimits(completed_max=2))
    for i in range(5):
        driver.schedule(f"t{i}")
        driver.ack(f"t{i}")
        driver.sleep(1)
    assert driver.retire(limit=2) == ["t0", "t1"]
    assert driver.retire() == ["t2"]
    assert driver.retire() == []


def test_deleting_an_agent_deletes_what_is_not_completed_and_the_ledger_balances() -> None:
    driver = Driver()
    for i in range(50):
        driver.schedule(f"t{i}", max_attempts=1)
        driver.schedule(f"other{i}", agent_id="a2")
    driver.lease(limit=10, agent_id="a1")
    driver.nack("t0")
    driver.ack("t1")
    cursor: tuple[int, str] | None = (0, "")
    while cursor is not None:
        at = cursor
        cursor = driver.turn(
            lambda change, at=at: retirement.delete_agent(
                driver.book, change, "a1", cursor=at, limit=7
            )  # type: ignore[misc]
        )
    counters = driver.book.counters()
    assert (counters.scheduled, counters.deleted, counters.completed) == (51, 49, 1)
    assert counters.balanced
    assert len(driver.lease(limit=100)) == 50
    restarted = Driver()
    restarted.journal = driver.journal
    restarted.restart()
    assert durable_state(restarted.book) == durable_state(driver.book)
