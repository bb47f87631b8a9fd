"""Journal and snapshot: what is read back is what was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.domain.tasks import retirement
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.journal import (
    JournalError,
    Ledger,
    decode_chunk,
    decode_entry,
    encode_entry,
)
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.recovery import Recovery
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.domain.tasks.states import Status
from tests.domain.tasks.helpers import Driver, due_tasks, durable_state, recovered

NAMES = st.text(max_size=12)


@given(
    st.integers(1, 2**63),
    st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), NAMES, NAMES), max_size=4),
    st.dictionaries(NAMES, st.binary(max_size=100), max_size=5),
)
def test_an_entry_comes_back_as_it_was(
    sequence: int,
    added: tuple[int, int, int],
    flows: list[tuple[int, str, str]],
    rows: dict[str, bytes],
) -> None:
    entry = decode_entry(encode_entry(sequence, Ledger(*added), (Flow(*x) for x in flows), rows))
    assert entry.sequence == sequence
    assert entry.added == Ledger(*added)
    assert [(x.number, x.agent_id, x.module_name) for x in entry.flows] == flows
    assert dict(entry.rows) == rows


def busy_driver() -> Driver:
    driver = Driver()
    for i in range(40):
        driver.schedule(f"t{i}", agent_id=f"a{i % 7}", max_attempts=1 + i % 3)
    for record in driver.lease(limit=20):
        if record.task_id in ("t3", "t5"):
            driver.nack(record.task_id, record.lease_token, delay_s=9, reason="later")
        elif int(record.task_id[1:]) % 2:
            driver.ack(record.task_id, record.lease_token)
    return driver


def test_every_cut_of_every_byte_string_is_noticed() -> None:
    driver = busy_driver()
    for data, decode in (
        (driver.journal[30], decode_entry),
        *((chunk, decode_chunk) for chunk in snapshot_chunks(driver.book)),
    ):
        for size in range(len(data)):
            with pytest.raises(JournalError):
                decode(data[:size])


def test_another_format_is_refused_by_number() -> None:
    driver = busy_driver()
    with pytest.raises(JournalError, match="format 9"):
        decode_entry(b"\x09" + driver.journal[0][1:])


def test_the_journal_alone_gives_the_live_state() -> None:
    driver = busy_driver()
    again = recovered([], driver.journal, driver.now)
    assert durable_state(again) == durable_state(driver.book)
    again.advance(driver.now, limit=1000)
    assert again.counters() == driver.book.counters()


def test_a_snapshot_cut_while_work_goes_on_and_the_journal_after_it_give_the_live_state() -> None:
    driver = busy_driver()
    kept = driver.book.sequence
    chunks = []
    for i, chunk in enumerate(snapshot_chunks(driver.book, rows_per_chunk=1)):
        chunks.append(chunk)
        driver.schedule(f"new{i}", agent_id=f"new{i}")
        if i % 3 == 0:
            driver.turn(
                lambda change, i=i: retirement.delete_agent(
                    driver.book, change, f"a{i % 7}", limit=10**6
                )  # type: ignore[misc]
            )
        if i % 2:
            driver.ack(f"new{i}")
    again = recovered(chunks, driver.journal[kept:], driver.now)
    assert durable_state(again) == durable_state(driver.book)
    again.advance(driver.now, limit=1000)
    assert again.counters() == driver.book.counters()
    again = recovered(chunks, driver.journal[kept - 10 :], driver.now)
    assert durable_state(again) == durable_state(driver.book)


def test_a_missing_journal_entry_is_noticed() -> None:
    driver = busy_driver()
    recovery = Recovery()
    recovery.replay(driver.journal[0])
    with pytest.raises(JournalError, match="journal entry 2 is missing, 3 is next"):
        recovery.replay(driver.journal[2])


def test_a_snapshot_without_its_end_or_with_a_chunk_missing_is_refused() -> None:
    chunks = list(snapshot_chunks(busy_driver().book, rows_per_chunk=10))
    recovery = Recovery()
    for chunk in chunks[:-1]:
        recovery.load_chunk(chunk)
    with pytest.raises(JournalError, match="no end"):
        next(recovery.build(Driver().now))
    recovery = Recovery()
    for chunk in [*chunks[:2], *chunks[3:-1]]:
        recovery.load_chunk(chunk)
    with pytest.raises(JournalError, match="were written"):
        recovery.load_chunk(chunks[-1])
    with pytest.raises(JournalError, match="outside"):
        Recovery().load_chunk(chunks[1])


def test_after_a_restart_a_lease_runs_its_full_length_again() -> None:
    driver = Driver()
    driver.schedule("t")
    token = driver.lease(lease_s=30)[0].lease_token
    driver.sleep(29)
    driver.restart()
    driver.sleep(29)
    assert driver.expire() == []
    driver.ack("t", token)
    assert driver.record("t").status is Status.COMPLETED


def test_after_a_restart_a_retry_delay_goes_on() -> None:
    driver = Driver()
    driver.schedule("t")
    driver.nack("t", delay_s=30)
    driver.sleep(20)
    driver.restart()
    driver.sleep(9.5)
    assert driver.lease() == []
    driver.sleep(0.5)
    assert len(driver.lease()) == 1


def test_a_clock_that_is_wrong_at_the_restart_delays_a_retry_by_its_own_length_at_most() -> None:
    driver = Driver()
    driver.schedule("t", scheduled_at=1)
    driver.nack("t", delay_s=30)
    driver.wall_s -= 3600
    driver.restart()
    driver.sleep(30)
    assert len(driver.lease()) == 1


def test_a_flow_that_emptied_and_came_back_is_one_flow_after_a_restart() -> None:
    driver = Driver(TaskLimits(completed_max=0))
    driver.schedule("t")
    driver.ack("t")
    driver.retire()
    driver.schedule("t")
    assert list(driver.book.flows) == [2]
    driver.restart()
    driver.schedule("u")
    assert list(driver.book.flows) == [2]
    assert len(driver.lease(agent_id="a1")) == 2


def test_late_tasks_fall_due_in_due_order_after_a_restart() -> None:
    driver = Driver()
    for second in (5, 3, 9, 1, 7):
        driver.schedule(f"t{second}", scheduled_at=int(driver.wall_s) + second)
    driver.wall_s += 100
    driver.restart()
    order = [record.task_id for record in due_tasks(driver.book, until=int(driver.wall_s))]
    assert order == ["t1", "t3", "t5", "t7", "t9"]
    assert [record.task_id for record in driver.lease()] == order
