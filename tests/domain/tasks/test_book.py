"""Scheduling, leasing and answering for a task: what is granted and what is refused."""

from __future__ import annotations

from itertools import product

import pytest

from dbos_actors.domain.tasks import deliveries, settling
from dbos_actors.domain.tasks.change import Change
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.record import LAST_ERROR_BYTES_MAX
from dbos_actors.domain.tasks.states import (
    TRANSITIONS,
    DeadTaskError,
    Event,
    StaleLeaseError,
    Status,
    UnknownTaskError,
    successor,
)
from dbos_actors.errors import (
    InvalidFieldError,
    InvalidTransitionError,
    MissingFieldError,
    OverloadedError,
)
from tests.domain.tasks.helpers import NOW_S, Driver, due_tasks


@pytest.mark.parametrize(("status", "event"), list(product(Status, Event)))
def test_a_transition_that_is_not_in_the_table_is_refused(status: Status, event: Event) -> None:
    following = TRANSITIONS.get((status, event))
    if following is not None:
        assert successor(status, event) is following
        return
    with pytest.raises(InvalidTransitionError, match=f"invalid transition {status.text} -> "):
        successor(status, event)


# ----------------------------------------------------------------- scheduling


def test_a_task_scheduled_at_0_is_due_now() -> None:
    driver = Driver()
    assert driver.schedule("t")
    assert driver.record("t").scheduled_at == NOW_S
    assert [record.task_id for record in driver.lease()] == ["t"]


def test_a_task_is_never_leased_before_its_second_has_come() -> None:
    driver = Driver()
    driver.schedule("t", scheduled_at=NOW_S + 10)
    driver.sleep(9.999)
    assert driver.lease() == []
    driver.sleep(0.001)
    assert len(driver.lease()) == 1


def test_the_same_task_again_changes_nothing_in_any_state() -> None:
    driver = Driver()
    assert driver.schedule("t", payload=b"p")
    assert not driver.schedule("t", payload=b"p")
    token = driver.lease()[0].lease_token
    assert not driver.schedule("t", payload=b"p")
    assert not driver.schedule("t", payload=b"p", scheduled_at=NOW_S)
    driver.ack("t", token)
    assert not driver.schedule("t", payload=b"p")
    assert len(driver.journal) == 3
    driver.schedule("dead", payload=b"p", max_attempts=1)
    driver.nack("dead")
    assert driver.record("dead").status is Status.DEAD
    assert not driver.schedule("dead", payload=b"p", max_attempts=1)
    assert driver.record("dead").status is Status.DEAD
    assert len(driver.journal) == 5
    assert driver.book.counters().scheduled == 2


def test_a_pending_task_may_be_changed() -> None:
    driver = Driver()
    driver.schedule("t", scheduled_at=NOW_S + 3600)
    assert driver.schedule("t", agent_id="a2", scheduled_at=NOW_S + 5, payload=b"new")
    driver.sleep(5)
    assert driver.lease(agent_id="a1") == []
    assert [record.task_id for record in driver.lease(agent_id="a2")] == ["t"]
    assert driver.book.counters().scheduled == 1


def test_scheduling_a_waiting_task_for_now_makes_it_due() -> None:
    driver = Driver()
    driver.schedule("t", scheduled_at=NOW_S + 3600)
    assert driver.schedule("t")
    assert len(driver.lease()) == 1


def test_an_inflight_or_completed_task_may_not_be_changed() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease()[0].lease_token
    with pytest.raises(InvalidTransitionError, match="inflight -> pending"):
        driver.schedule("t", payload=b"other")
    driver.ack("t", token)
    with pytest.raises(InvalidTransitionError, match="completed -> pending"):
        driver.schedule("t", scheduled_at=NOW_S + 1)


def test_a_dead_task_is_revived_with_its_attempts_reset_only_if_that_is_asked_for() -> None:
    driver = Driver()
    driver.schedule("t", max_attempts=1)
    driver.nack("t", driver.lease()[0].lease_token, reason="broken")
    with pytest.raises(DeadTaskError, match="task t is dead: set revive"):
        driver.schedule("t", payload=b"better", max_attempts=1)
    assert driver.record("t").status is Status.DEAD
    assert driver.schedule("t", max_attempts=1, revive=True)
    record = driver.record("t")
    assert (record.status, record.deliveries, record.last_error) == (Status.PENDING, 0, "")
    assert driver.lease()[0].retry_count == 0
    assert driver.book.counters().scheduled == 1


@pytest.mark.parametrize("scheduled_at", [-1, 1_700_000_000_000])
def test_a_time_that_is_no_second_is_refused(scheduled_at: int) -> None:
    with pytest.raises(InvalidFieldError, match=r"task\.scheduled_at"):
        Driver().schedule("t", scheduled_at=scheduled_at)


def test_a_full_book_refuses_new_tasks_but_not_changes() -> None:
    driver = Driver(TaskLimits(tasks_max=1))
    driver.schedule("t")
    with pytest.raises(OverloadedError, match="task book is full"):
        driver.schedule("u")
    assert driver.schedule("t", payload=b"changed")


# --------------------------------------------------------------------- leases


def test_each_delivery_has_its_own_token_and_counts_as_a_retry_after_the_first() -> None:
    driver = Driver()
    driver.schedule("t")
    first = driver.lease()[0]
    assert (first.retry_count, first.status) == (0, Status.INFLIGHT)
    assert first.visibility_time == NOW_S + 30
    driver.nack("t", first.lease_token)
    second = driver.lease()[0]
    assert second.retry_count == 1
    assert second.lease_token != first.lease_token


def test_tasks_leased_together_have_different_tokens() -> None:
    driver = Driver()
    for i in range(10):
        driver.schedule(f"t{i}")
    assert len({record.lease_token for record in driver.lease()}) == 10


def test_a_stale_token_is_refused_by_ack_nack_and_extend_and_says_why() -> None:
    driver = Driver()
    driver.schedule("t")
    stale = driver.lease()[0].lease_token
    driver.sleep(31)
    driver.expire()
    with pytest.raises(StaleLeaseError, match="the lease has expired, the task is pending"):
        driver.ack("t", stale)
    driver.lease()
    for call in (driver.ack, driver.nack):
        with pytest.raises(StaleLeaseError, match="not the token of the last delivery"):
            call("t", stale)
    with pytest.raises(StaleLeaseError):
        driver.extend("t", stale, 10)


def test_a_repeated_ack_with_the_right_token_gets_its_first_answer_again() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease()[0].lease_token
    driver.ack("t", token)
    entries = len(driver.journal)
    assert driver.ack("t", token).status is Status.COMPLETED
    assert len(driver.journal) == entries
    assert driver.book.counters().completed == 1


def test_a_repeated_nack_with_the_right_token_counts_once() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease()[0].lease_token
    driver.nack("t", token, reason="no route")
    assert driver.nack("t", token).last_error == "no route"
    assert driver.record("t").deliveries == 1


def test_after_a_task_is_scheduled_again_its_old_token_is_refused() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease()[0].lease_token
    driver.nack("t", token)
    driver.schedule("t", payload=b"changed")
    with pytest.raises(StaleLeaseError):
        driver.nack("t", token)


def test_an_empty_token_is_accepted_while_the_task_is_pending_or_inflight() -> None:
    driver = Driver()
    driver.schedule("p")
    assert driver.ack("p").status is Status.COMPLETED
    driver.schedule("i")
    driver.lease()
    assert driver.ack("i").status is Status.COMPLETED
    assert driver.ack("i").status is Status.COMPLETED  # sent again


def test_an_empty_token_does_not_settle_what_a_token_completed() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.ack("t", driver.lease()[0].lease_token)
    with pytest.raises(InvalidTransitionError, match="completed -> completed"):
        driver.ack("t")
    with pytest.raises(InvalidTransitionError, match="completed -> pending"):
        driver.nack("t")


def test_an_unknown_id_is_refused_and_adds_no_task() -> None:
    driver = Driver()
    for call in (driver.ack, driver.nack):
        with pytest.raises(UnknownTaskError, match="unknown task t"):
            call("t")
    assert driver.book.get("t") is None
    assert len(driver.book) == 0


def test_acknowledging_leaves_nothing_pending() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.ack("t")
    assert list(due_tasks(driver.book, until=NOW_S + 10**6)) == []
    assert driver.lease() == []


def test_a_lease_that_expires_returns_the_task_and_at_last_it_is_dead_with_its_error() -> None:
    driver = Driver()
    driver.schedule("t", max_attempts=2)
    for attempt in range(2):
        assert driver.lease()[0].retry_count == attempt
        driver.sleep(29.9)
        assert driver.expire() == []
        driver.sleep(0.2)
        assert len(driver.expire()) == 1
    record = driver.record("t")
    assert record.status is Status.DEAD
    assert record.last_error == "lease of w1 expired after 30 s"
    assert [dead.task_id for dead in driver.book.dead_tasks()] == ["t"]
    assert driver.last.outcomes[0].status is Status.DEAD


def test_revive_of_a_task_that_is_not_dead_schedules_it() -> None:
    driver = Driver()
    assert driver.schedule("t", revive=True)
    assert not driver.schedule("t", revive=True)
    driver.lease()
    assert not driver.schedule("t", revive=True)
    with pytest.raises(InvalidTransitionError, match="inflight -> pending"):
        driver.schedule("t", payload=b"other", revive=True)


def test_unfenced_nacks_of_a_due_task_use_up_attempts_too() -> None:
    driver = Driver()
    driver.schedule("t")
    for _ in range(5):
        driver.nack("t", reason="agent offline")
    assert driver.record("t").status is Status.DEAD
    assert driver.record("t").retry_count == 4
    entries = len(driver.journal)
    driver.nack("t", reason="agent offline")  # sent again
    assert len(driver.journal) == entries


@pytest.mark.parametrize("fenced_first", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_unfenced_nack_repeated_before_the_task_is_due_again_changes_nothing(
    fenced_first: bool, restarted: bool
) -> None:
    driver = Driver()
    driver.schedule("t", max_attempts=3)
    token = driver.lease()[0].lease_token if fenced_first else ""
    driver.nack("t", token, delay_s=60, reason="busy")
    if restarted:
        driver.restart()
    entries, row = len(driver.journal), driver.record("t").encode()
    for _ in range(10):
        driver.sleep(5)
        assert driver.nack("t", delay_s=60, reason="busy").status is Status.PENDING
    assert (len(driver.journal), driver.record("t").encode()) == (entries, row)
    driver.sleep(10)
    driver.nack("t", delay_s=60)
    assert driver.record("t").retry_count == 1


def test_an_unfenced_nack_of_a_task_of_the_future_counts_once_until_it_is_due() -> None:
    driver = Driver()
    driver.schedule("t", scheduled_at=NOW_S + 100)
    for _ in range(5):
        driver.nack("t")
    assert driver.record("t").deliveries == 1
    driver.sleep(100)
    driver.nack("t")
    assert driver.record("t").deliveries == 2


def test_unfenced_nacks_of_one_turn_count_once() -> None:
    driver = Driver()
    driver.schedule("t")

    def twice(change: Change) -> None:
        settling.nack(driver.book, change, "t", delay_s=9)
        settling.nack(driver.book, change, "t", delay_s=9)

    driver.turn(twice)
    assert driver.record("t").deliveries == 1


def test_a_nacked_task_comes_back_after_its_delay_and_not_before() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.nack("t", driver.lease()[0].lease_token, delay_s=60, reason="busy")
    assert driver.record("t").visibility_time == NOW_S + 60
    assert list(due_tasks(driver.book, until=NOW_S)) == []
    driver.sleep(59.9)
    assert driver.lease() == []
    driver.sleep(0.2)
    assert driver.lease()[0].last_error == "busy"


def test_an_extended_lease_ends_later() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease()[0].lease_token
    driver.sleep(20)
    driver.extend("t", token, 30)
    driver.sleep(20)
    assert driver.expire() == []
    driver.sleep(11)
    assert len(driver.expire()) == 1
    with pytest.raises(MissingFieldError, match="lease_token"):
        driver.extend("t", "", 30)


def test_a_vanished_workers_task_returns_at_once_and_its_token_is_stale() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease()[0].lease_token
    driver.turn(
        lambda change: deliveries.release(driver.book, change, "t", token, reason="worker is gone")
    )
    assert driver.lease()[0].last_error == "worker is gone"
    with pytest.raises(StaleLeaseError):
        driver.ack("t", token)
    assert not driver.turn(
        lambda change: deliveries.release(driver.book, change, "t", token, reason="again")
    )


def test_a_last_error_is_cut_between_characters() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.nack("t", reason="é" * LAST_ERROR_BYTES_MAX)
    assert driver.record("t").last_error == "é" * (LAST_ERROR_BYTES_MAX // 2)


def test_lateness_is_counted_from_the_due_time_to_the_first_delivery() -> None:
    driver = Driver()
    driver.schedule("ahead", scheduled_at=NOW_S + 10)
    driver.schedule("overdue", scheduled_at=NOW_S - 100)
    driver.sleep(10.25)
    assert {r.task_id: r.lateness_ms for r in driver.lease()} == {"ahead": 250, "overdue": 10250}
    driver.ack("ahead")
    assert driver.last.outcomes[0].lateness_ms == 250
