"""The auditor finds what is wrong and repairs what it can prove."""

from __future__ import annotations

from dbos_actors.domain.tasks.audit import Audit, Findings
from dbos_actors.domain.tasks.journal import Ledger
from tests.domain.tasks.helpers import Driver


def audited(driver: Driver) -> Findings:
    audit = Audit(driver.book)
    while audit.step(driver.now):
        pass
    return audit.findings


def busy_driver() -> Driver:
    driver = Driver()
    for i in range(5):
        for name in ("waiting", "due", "leased", "delayed", "done", "dead", "cancelled"):
            driver.schedule(
                f"{name}{i}",
                agent_id=name,
                scheduled_at=int(driver.wall_s) + 60 if name == "waiting" else 0,
                max_attempts=1 if name == "dead" else 5,
            )
        driver.nack(f"delayed{i}", delay_s=60)
        driver.ack(f"done{i}")
        driver.nack(f"dead{i}")
        driver.cancel(f"cancelled{i}")
    driver.lease(agent_id="leased")
    return driver


def test_a_sound_book_has_no_findings() -> None:
    findings = audited(busy_driver())
    assert findings.clean
    assert findings.records == 35


def test_records_missing_from_their_index_are_placed_again() -> None:
    driver = busy_driver()
    index = driver.book.index
    for task_id in ("waiting1", "due1", "leased1", "delayed1", "done1", "dead1", "cancelled1"):
        index.purge(driver.record(task_id))
    findings = audited(driver)
    assert findings.misplaced == 7
    assert "leased1: inflight, found in nowhere" in findings.examples
    assert audited(driver).clean
    assert driver.book.counters().balanced


def test_records_in_two_places_are_left_in_one() -> None:
    driver = busy_driver()
    index = driver.book.index
    for task_id in ("due1", "leased1", "done1", "dead1", "cancelled1"):
        index.waiting.add(driver.record(task_id).scheduled_at, task_id)
    assert audited(driver).misplaced == 5
    assert audited(driver).clean


def test_strangers_are_removed_from_every_index() -> None:
    driver = busy_driver()
    index = driver.book.index
    index.waiting.add(1, "ghost")
    index.delays.add(2, "ghost")
    index.leases.add(3, "ghost")
    index.retained.add(4, "ghost")
    index.due.add(driver.record("due1").flow, "ghost")
    index.due_order.add(5, "ghost")
    index.dead.add(6, "ghost")
    findings = audited(driver)
    assert (findings.misplaced, findings.strangers) == (0, 6)
    assert audited(driver).clean


def test_a_ledger_that_does_not_balance_is_reported() -> None:
    driver = busy_driver()
    driver.book.ledger = driver.book.ledger.plus(Ledger(scheduled=2))
    findings = audited(driver)
    assert findings.imbalance == 2
    assert not findings.clean
