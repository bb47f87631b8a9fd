"""A lease whose answer was lost is asked for again by its request's identity."""

from __future__ import annotations

from dbos_actors.domain.tasks import leasing
from dbos_actors.domain.tasks.claims import (
    CLAIMED_TASKS_MAX,
    CLAIMS_MAX,
    Claim,
    Claims,
    identity_of,
)
from dbos_actors.domain.tasks.journal import FORMAT, FORMAT_WITH_CLAIMS
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.domain.tasks.timers import Now
from tests.domain.tasks.helpers import Driver, recovered

KEY = identity_of("key", "worker", "", "")


def held(driver: Driver, identity: bytes = KEY) -> list[tuple[str, str]] | None:
    """What is still leased by the request of that identity, with the tokens."""
    records = leasing.leased_again(driver.book, identity, driver.now)
    return None if records is None else [(one.task_id, one.lease_token) for one in records]


def leasing_driver(tasks: int = 3, **fields: int) -> tuple[Driver, list[tuple[str, str]]]:
    """A driver whose tasks are leased under `KEY`, and their tokens."""
    driver = Driver()
    for i in range(tasks):
        driver.schedule(f"t{i}")
    leased = driver.lease(identity=KEY, **fields)
    return driver, [(record.task_id, record.lease_token) for record in leased]


def test_a_lease_asked_for_again_is_the_same_tasks_with_the_same_tokens() -> None:
    driver, leased = leasing_driver()
    assert len(leased) == 3
    assert held(driver) == leased
    assert held(driver, identity_of("another", "worker", "", "")) is None
    assert held(driver, identity_of("key", "another", "", "")) is None


def test_what_was_settled_has_expired_or_was_leased_again_is_left_out() -> None:
    driver, leased = leasing_driver(lease_s=30)
    driver.ack(*leased[0])
    assert held(driver) == leased[1:]
    driver.nack(*leased[1])
    again = driver.lease(identity=identity_of("another"))
    assert [record.task_id for record in again] == ["t1"]
    assert held(driver) == leased[2:]
    driver.ack(*leased[2])
    assert held(driver) == []


def test_a_key_is_remembered_as_long_as_its_lease_was_to_last() -> None:
    driver, leased = leasing_driver(lease_s=30)
    driver.sleep(29.9)
    assert held(driver) == leased
    driver.extend(*leased[0], 60)
    driver.sleep(0.2)
    assert held(driver) is None


def test_a_request_that_found_nothing_is_not_remembered() -> None:
    driver, leased = leasing_driver(tasks=0)
    assert leased == []
    assert held(driver) is None


def test_a_key_is_remembered_over_a_restart_from_the_journal() -> None:
    driver, leased = leasing_driver(lease_s=30)
    driver.ack(*leased[1])
    driver.sleep(29)
    driver.restart()
    assert held(driver) == [leased[0], leased[2]]
    driver.sleep(29)  # the lease began anew in full, and so did the key
    assert held(driver) == [leased[0], leased[2]]
    driver.sleep(2)
    assert held(driver) is None


def test_a_key_is_remembered_over_a_restart_from_a_snapshot() -> None:
    driver, leased = leasing_driver()
    driver.schedule("later")
    kept = len(driver.journal)
    chunks = list(snapshot_chunks(driver.book))
    second = driver.lease(identity=identity_of("second"))
    driver.book = recovered(chunks, driver.journal[kept:], driver.now)
    assert held(driver) == leased
    assert held(driver, identity_of("second")) == [("later", second[0].lease_token)]


def test_a_restart_forgets_a_key_none_of_whose_tasks_is_leased_any_more() -> None:
    driver, leased = leasing_driver(tasks=1)
    driver.ack(*leased[0])
    assert held(driver) == []
    driver.restart()
    assert held(driver) is None


def test_a_journal_entry_without_a_key_has_format_1() -> None:
    driver, leased = leasing_driver(tasks=1)
    driver.ack(*leased[0])
    assert [entry[0] for entry in driver.journal] == [FORMAT, FORMAT_WITH_CLAIMS, FORMAT]


def test_the_oldest_keys_are_forgotten_beyond_the_limits() -> None:
    claims, now = Claims(), Now(0.0, 0.0)
    for number in range(CLAIMS_MAX + 3):
        claims.remember(Claim(b"%d" % number, 1 + number, 1, 60), (f"t{number}",), 60.0)
    assert len(claims) == CLAIMS_MAX
    assert claims.find(b"2", now) is None
    assert claims.find(b"3", now) is not None
    many = tuple(map(str, range(CLAIMED_TASKS_MAX - 10)))
    claims.remember(Claim(b"many", 1, len(many), 60), many, 60.0)
    assert len(claims) == 11
    claims.remember(Claim(b"all", 1, 11, 60), many[:11], 60.0)
    assert [claim.identity for claim in claims.all()] == [b"all"]


def test_an_undone_lease_leaves_no_claim() -> None:
    driver = Driver()
    driver.schedule("t1")
    identity = identity_of("key")
    assert driver.lease(identity=identity)
    assert leasing.leased_again(driver.book, identity, driver.now)
    driver.undo(1)
    assert leasing.leased_again(driver.book, identity, driver.now) is None
    assert [record.task_id for record in driver.lease(identity=identity)] == ["t1"]
