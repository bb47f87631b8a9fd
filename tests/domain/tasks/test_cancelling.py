"""Cancelling and requeueing: what they fence, what they reset, and what a copy changes."""

from __future__ import annotations

import pytest

from dbos_actors.domain.tasks import retirement
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.states import (
    CancelledTaskError,
    StaleLeaseError,
    Status,
    UnknownTaskError,
)
from dbos_actors.errors import InvalidFieldError, InvalidTransitionError
from tests.domain.tasks.helpers import NOW_S, Driver, durable_state


def test_a_cancelled_task_is_leased_to_nobody_whether_it_was_due_waiting_or_delayed() -> None:
    driver = Driver()
    driver.schedule("due")
    driver.schedule("waiting", scheduled_at=NOW_S + 60)
    driver.schedule("delayed")
    driver.nack("delayed", delay_s=60)
    for name in ("due", "waiting", "delayed"):
        assert driver.cancel(name).status is Status.CANCELLED
        assert driver.last.outcomes[0].status is Status.CANCELLED
    driver.sleep(3600)
    assert driver.lease() == []
    counters = driver.book.counters()
    assert (counters.scheduled, counters.pending, counters.cancelled) == (3, 0, 3)
    assert counters.balanced
    state = durable_state(driver.book)
    driver.restart()
    assert durable_state(driver.book) == state
    assert driver.lease() == []


def test_cancelling_a_leased_task_fences_its_token() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease()[0].lease_token
    assert driver.cancel("t", "no longer wanted").last_error == "no longer wanted"
    told = "was cancelled, the task is cancelled"
    with pytest.raises(StaleLeaseError, match=told):
        driver.ack("t", token)
    with pytest.raises(StaleLeaseError, match=told):
        driver.nack("t", token)
    with pytest.raises(StaleLeaseError, match=told):
        driver.extend("t", token, 30)
    with pytest.raises(InvalidTransitionError, match="cancelled -> completed"):
        driver.ack("t")
    driver.sleep(100)
    assert driver.expire() == []


def test_a_copy_of_a_cancellation_changes_nothing() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.cancel("t", "first")
    entries = len(driver.journal)
    assert driver.cancel("t", "second").last_error == "first"
    assert len(driver.journal) == entries


def test_what_has_ended_cannot_be_cancelled() -> None:
    driver = Driver()
    driver.schedule("done")
    driver.ack("done")
    driver.schedule("dead", max_attempts=1)
    driver.nack("dead")
    with pytest.raises(InvalidTransitionError, match="completed -> cancelled"):
        driver.cancel("done")
    with pytest.raises(InvalidTransitionError, match="dead -> cancelled"):
        driver.cancel("dead")
    with pytest.raises(UnknownTaskError):
        driver.cancel("nobody")


def test_no_copy_of_a_schedule_brings_back_a_cancelled_task() -> None:
    driver = Driver()
    driver.schedule("t", payload=b"p")
    driver.cancel("t")
    assert not driver.schedule("t", payload=b"p")
    assert not driver.schedule("t", payload=b"p", revive=True)
    with pytest.raises(CancelledTaskError, match="task t is cancelled: RequeueTask"):
        driver.schedule("t", payload=b"other", revive=True)
    assert driver.record("t").status is Status.CANCELLED


@pytest.mark.parametrize("ended", ["dead", "cancelled"])
def test_a_requeued_task_is_pending_with_its_attempts_counted_anew(ended: str) -> None:
    driver = Driver()
    driver.schedule("t", max_attempts=1, payload=b"p")
    leased = driver.lease()[0]
    if ended == "dead":
        driver.nack("t", leased.lease_token, reason="broken")
    else:
        driver.cancel("t", "broken")
    driver.sleep(10)
    record = driver.requeue("t")
    assert (record.status, record.deliveries, record.last_error) == (Status.PENDING, 0, "")
    assert (record.scheduled_at, record.max_attempts) == (NOW_S + 10, 1)
    assert record.digest == leased.digest
    with pytest.raises(StaleLeaseError):
        driver.ack("t", leased.lease_token)
    assert [again.task_id for again in driver.lease()] == ["t"]
    assert driver.book.counters().balanced


def test_a_task_is_requeued_for_a_later_time() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.cancel("t")
    driver.requeue("t", NOW_S + 60)
    driver.sleep(59)
    assert driver.lease() == []
    driver.sleep(1)
    assert len(driver.lease()) == 1
    with pytest.raises(InvalidFieldError, match="scheduled_at must be Unix seconds"):
        driver.requeue("t", -1)


def test_a_copy_of_a_requeue_changes_nothing_while_the_task_waits_or_runs() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.cancel("t")
    driver.requeue("t", NOW_S + 5)
    entries = len(driver.journal)
    assert driver.requeue("t", NOW_S + 50).scheduled_at == NOW_S + 5
    driver.sleep(5)
    token = driver.lease()[0].lease_token
    assert driver.requeue("t").status is Status.INFLIGHT
    assert len(driver.journal) == entries + 1  # the lease
    driver.ack("t", token)
    with pytest.raises(InvalidTransitionError, match="completed -> pending"):
        driver.requeue("t")


def test_cancelled_tasks_age_out_with_the_completed_ones_and_leave_the_ledger_balanced() -> None:
    driver = Driver(TaskLimits(retention_s=3600, completed_max=2))
    for number in range(4):
        driver.schedule(f"t{number}")
        (driver.ack if number % 2 else driver.cancel)(f"t{number}")
        driver.sleep(1)
    assert driver.retire() == ["t1", "t0"]  # one of each, the oldest two
    driver.sleep(3598)
    assert driver.retire() == ["t2"]
    driver.sleep(1)
    assert driver.retire() == ["t3"]
    counters = driver.book.counters()
    assert (counters.scheduled, counters.completed, counters.cancelled) == (2, 2, 0)
    assert counters.deleted == 2
    assert counters.balanced


def test_a_cancelled_task_is_deleted_with_its_agent() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.cancel("t")
    driver.turn(lambda change: retirement.delete_agent(driver.book, change, "a1", limit=10))
    assert driver.book.get("t") is None
    assert driver.book.counters().balanced
