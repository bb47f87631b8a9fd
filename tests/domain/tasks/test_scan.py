"""What a listing of tasks finds, and how many rows it looks at, up to a million tasks."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.domain.tasks import leasing
from dbos_actors.domain.tasks import scan as task_scan
from dbos_actors.domain.tasks.book import WITHDRAWN_AT_ONCE, TaskBook
from dbos_actors.domain.tasks.claims import ClaimRecovery
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.id_table import BLOCK_MAX, IdTable
from dbos_actors.domain.tasks.journal import Ledger
from dbos_actors.domain.tasks.limits import LEASE_LIMIT_MAX, TaskLimits
from dbos_actors.domain.tasks.record import TaskRecord, payload_digest
from dbos_actors.domain.tasks.scan import (
    SLICE_ROWS,
    Slice,
    oldest_tasks,
    tasks_by_id,
)
from dbos_actors.domain.tasks.states import Status
from tests.domain.tasks.helpers import WALL_S, Driver, all_rows, due_tasks

NOW_S = int(WALL_S)

# ------------------------------------------------------- found is what is there


@pytest.fixture(params=["small slices", "large slices"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a few tasks take several steps and the other ways are chosen too."""
    if request.param == "small slices":
        monkeypatch.setattr(task_scan, "SLICE_ROWS", 3)
        monkeypatch.setattr(task_scan, "_FIRST_ROWS", 1)


def mixed_driver(seed: int, count: int = 60) -> Driver:
    """Tasks of every status, of 3 agents and 2 modules, some of the future, some delayed."""
    random = Random(seed)
    driver = Driver()
    for number in range(count):
        driver.schedule(
            f"t{random.randrange(1000):03}-{number}",
            agent_id=f"a{random.randrange(3)}",
            module_name=random.choice(("ping", "dns")),
            scheduled_at=NOW_S + random.randrange(-20, 6),
            max_attempts=1 if random.random() < 0.2 else 5,
        )
    for record in driver.lease(limit=count // 2):
        match random.randrange(4):
            case 0:
                driver.ack(record.task_id, record.lease_token)
            case 1:
                driver.nack(record.task_id, record.lease_token, delay_s=30)
            case 2:
                driver.nack(record.task_id, record.lease_token)
    return driver


def listed(steps: Iterator[Slice]) -> list[str]:
    return [record.task_id for step in steps for record in step.records]


def fits(record: TaskRecord, agent_id: str = "", module_name: str = "") -> bool:
    return agent_id in ("", record.agent_id) and module_name in ("", record.module_name)


FILTERS: list[dict[str, str]] = [
    {},
    {"agent_id": "a1"},
    {"module_name": "dns"},
    {"agent_id": "a1", "module_name": "dns"},
    {"agent_id": "nobody"},
    {"module_name": "none"},
]


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("status", [None, *(one for one in Status if one is not Status.GONE)])
def test_a_listing_by_id_finds_every_task_that_passes_its_filters_in_order(
    filters: dict[str, str], status: Status | None
) -> None:
    book = mixed_driver(1).book
    records = [book.record(task_id, row) for task_id, row in all_rows(book)]
    for after, wanted in itertools.product(["", "t3", "t999-"], [1, 5, 1000]):
        expected = [
            record.task_id
            for record in records
            if record.task_id > after
            and status in (None, record.status)
            and fits(record, **filters)
        ]
        steps = list(tasks_by_id(book, status=status, after=after, wanted=wanted, **filters))
        assert listed(iter(steps)) == expected
        for step in steps:
            assert all(record.task_id <= step.position for record in step.records)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("ahead_s", [-10, 0, 5])
def test_a_listing_of_the_oldest_finds_them_in_order_of_time_then_id(
    filters: dict[str, str], ahead_s: int
) -> None:
    book = mixed_driver(2).book
    pending = sorted(
        (record.scheduled_at, record.task_id)
        for record in (book.record(task_id, row) for task_id, row in all_rows(book))
        if record.status is Status.PENDING
        and not record.visibility_time
        and record.scheduled_at <= NOW_S + ahead_s
        and fits(record, **filters)
    )
    for wanted in (1, 4, LEASE_LIMIT_MAX):
        steps = oldest_tasks(book, until=NOW_S + ahead_s, wanted=wanted, **filters)
        expected = [task_id for _, task_id in pending]
        assert listed(steps)[:wanted] == expected[:wanted]


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("filters", FILTERS)
@given(seed=st.integers(0, 1000), wanted=st.sampled_from([1, 10, 1000]))
def test_entries_that_do_not_change_during_a_listing_are_always_listed(
    filters: dict[str, Any], seed: int, wanted: int
) -> None:
    driver = mixed_driver(seed)
    random = Random(seed)
    book = driver.book
    before = dict(all_rows(book))
    due = {record.task_id for record in due_tasks(book, until=NOW_S + 9, **filters)}
    scans = {
        "by id": tasks_by_id(book, wanted=wanted, **filters),
        "dead": tasks_by_id(book, status=Status.DEAD, wanted=wanted, **filters),
        "oldest": oldest_tasks(book, until=NOW_S + 9, wanted=1000, **filters),
    }
    found: dict[str, list[str]] = {name: [] for name in scans}
    numbers = itertools.count()
    running = dict(scans)
    while running:
        for name, scan in list(running.items()):
            step = next(scan, None)
            if step is None:
                del running[name]
            else:
                found[name] += [record.task_id for record in step.records]
        match random.randrange(4):
            case 0:
                driver.schedule(f"t{random.randrange(1000):03}-new{next(numbers)}", agent_id="a1")
            case 1:
                for record in driver.lease(limit=2):
                    driver.ack(record.task_id, record.lease_token)
            case 2:
                driver.sleep(1)  # so that tasks fall due
            case 3:
                driver.wall_s -= 1
    after = dict(all_rows(book))
    stayed = {task_id for task_id, row in before.items() if after.get(task_id) == row}
    passing = {one for one in stayed if fits(book.record(one, after[one]), **filters)}
    assert passing <= set(found["by id"])
    dead = {one for one in passing if book.record(one, after[one]).status is Status.DEAD}
    assert dead <= set(found["dead"])
    assert due & passing <= set(found["oldest"])
    for name in ("by id", "dead"):
        assert found[name] == sorted(set(found[name]))
    assert len(set(found["oldest"])) == len(found["oldest"])


# ------------------------------------------------------- a million of them

TASKS = 1_000_000
AGENTS = 13_000
MODULES = ("ping", "dns", "trace")
DUE = 500_000
DEAD, INFLIGHT = 20, 980
LATE_AGENT, RARE_MODULE = "agent-late", "rare"
STEP_ROWS_MAX = max(2 * SLICE_ROWS, BLOCK_MAX)


def million() -> TaskBook:
    """Half of them due, by the age of a day, the rest completed but a few; ids in any order.

    All tasks of one agent are among the newest, and one module has a dozen tasks.
    """
    random = Random(3)
    flows: dict[tuple[str, str], Flow] = {}
    rows: IdTable[bytes] = IdTable()
    claims = ClaimRecovery([])
    digest = payload_digest(b"p")
    for number in range(TASKS):
        task_id = f"{number * 7_919 % TASKS:07}"
        agent, module = f"agent-{number % AGENTS:05}", MODULES[number % 3]
        record = TaskRecord(task_id, None)  # type: ignore[arg-type]
        record.digest, record.max_attempts = digest, 5
        record.scheduled_at = NOW_S - 86_400 + random.randrange(86_000)
        if number < DUE:
            record.status = Status.PENDING
            if number >= DUE - 30_000:
                agent, record.scheduled_at = LATE_AGENT, NOW_S - 100 + number % 90
        elif number < DUE + DEAD:
            record.status, record.moment = Status.DEAD, NOW_S - 5
        elif number < DUE + DEAD + INFLIGHT:
            record.status, record.span_s = Status.INFLIGHT, 60
        else:
            record.status, record.moment = Status.COMPLETED, NOW_S - number % 80_000
        if number % (TASKS // 12) == 1:
            module = RARE_MODULE
        flow = flows.get((agent, module))
        if flow is None:
            flow = flows[agent, module] = Flow(len(flows) + 1, agent, module)
        record.flow = flow
        rows.put(task_id, record.encode())
    book = TaskBook(TaskLimits(retention_s=10**9))
    numbered = {flow.number: flow for flow in flows.values()}
    now = Driver().now
    book.restore(1, Ledger(TASKS, TASKS - DUE - DEAD - INFLIGHT, 0), numbered, 10**6, rows)
    for _ in book.restore_indexes(now, claims):
        pass
    while book.advance(now, limit=10_000):
        pass
    return book


class Cost:
    """Rows that a book was asked for, step by step; what a `Slice` says must not be less."""

    def __init__(self, book: TaskBook, monkeypatch: pytest.MonkeyPatch) -> None:
        self.book = book
        self.asked = 0
        for name in ("row", "record", "get"):
            original = getattr(TaskBook, name)

            def counting(*arguments: Any, original: Any = original) -> Any:
                self.asked += 1
                return original(*arguments)

            monkeypatch.setattr(TaskBook, name, counting)

    def of(self, steps: Iterator[Slice], wanted: int = 10**9) -> tuple[int, int]:
        """Tasks found, up to ``wanted``, and rows looked at for them."""
        found = rows = 0
        while found < wanted:
            asked = self.asked
            step = next(steps, None)
            if step is None:
                break
            assert step.rows <= STEP_ROWS_MAX
            # A row is looked at, and decoded if it fits: twice at most, and a record besides.
            assert self.asked - asked <= 3 * step.rows
            rows += step.rows
            found += len(step.records)
        return min(found, wanted), rows


@pytest.fixture(scope="module")
def book() -> TaskBook:
    return million()


@pytest.fixture
def cost(book: TaskBook, monkeypatch: pytest.MonkeyPatch) -> Cost:
    return Cost(book, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize(
    ("filters", "ahead_s", "wanted", "found", "rows_max"),
    [
        ({}, 0, 1, 1, 16),
        ({}, 0, 10_000, 10_000, 10_000),
        ({}, 10**6, 1, 1, 16),
        ({"agent_id": "agent-00077"}, 0, 1, 1, 200),
        ({"agent_id": "agent-00077"}, 10**6, 1, 1, 200),
        ({"agent_id": "nobody"}, 0, 1, 0, 0),
        ({"module_name": "ping"}, 0, 1, 1, 2 * SLICE_ROWS),
        ({"module_name": "ping"}, 10**6, 100, 100, 3 * SLICE_ROWS),
        ({"module_name": RARE_MODULE}, 0, 100, 7, 100),
        ({"module_name": "none"}, 0, 100, 0, 0),
        # 30,000 tasks, all of them younger than the 470,000 others: in slices, whatever it takes.
        ({"agent_id": LATE_AGENT}, 0, 1, 1, 500_000),
    ],
)
def test_the_oldest_of_a_million_are_found_among_few_rows(
    cost: Cost,
    *,
    filters: dict[str, str],
    ahead_s: int,
    wanted: int,
    found: int,
    rows_max: int,
) -> None:
    steps = oldest_tasks(cost.book, until=NOW_S + ahead_s, wanted=wanted, **filters)
    counted, rows = cost.of(steps)
    assert min(counted, wanted) == found
    assert rows <= rows_max


@pytest.mark.long
@pytest.mark.parametrize(
    ("filters", "wanted", "found", "rows_max"),
    [
        ({}, 100, 100, 100),
        ({"after": "0700000"}, 1_000, 1_000, 2_000),
        ({"agent_id": "agent-00077"}, 1_000, 75, 100),
        ({"agent_id": "agent-00077", "module_name": "dns"}, 10, 10, 30),
        ({"agent_id": "agent-00077", "status": Status.DEAD}, 10, 0, 100),
        ({"agent_id": LATE_AGENT}, 100, 100, 200),
        ({"agent_id": "nobody"}, 10, 0, 0),
        ({"module_name": RARE_MODULE}, 100, 13, 100),
        ({"module_name": "dns"}, 100, 100, 1_000),
        ({"status": Status.DEAD}, 100, DEAD, 2 * DEAD),
        ({"status": Status.INFLIGHT}, 100, 100, 2 * INFLIGHT),
        ({"status": Status.INFLIGHT, "module_name": "dns"}, 10_000, 327, 2 * INFLIGHT),
        ({"status": Status.PENDING}, 100, 100, 1_000),
        ({"status": Status.COMPLETED, "module_name": "ping"}, 100, 100, 2_000),
    ],
)
def test_a_page_of_a_million_costs_its_own_size(
    cost: Cost, filters: dict[str, Any], wanted: int, found: int, rows_max: int
) -> None:
    counted, rows = cost.of(tasks_by_id(cost.book, wanted=wanted, **filters), wanted)
    assert counted == found
    assert rows <= rows_max


@pytest.mark.long
def test_all_pages_of_a_million_together_look_at_each_task_once(cost: Cost) -> None:
    seen = rows = 0
    after = ""
    while True:
        steps = tasks_by_id(cost.book, after=after, wanted=10_000)
        page: list[TaskRecord] = []
        while len(page) < 10_000:
            step = next(steps, None)
            if step is None:
                break
            rows += step.rows
            page += step.records
        seen += len(page)
        if not page:
            break
        after = page[-1].task_id
    assert seen == TASKS
    assert rows == TASKS


@pytest.mark.long
def test_a_clock_that_steps_back_costs_each_turn_little_and_hands_nothing_out_early(
    book: TaskBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = Cost(book, monkeypatch)
    driver = Driver()
    driver.book = book
    driver.wall_s = NOW_S - 40_000.0  # before about half of them
    now = driver.now
    due = len(book.index.due)
    asked: Counter[str] = Counter()
    leased = 0
    while book.index.may_be_early(now):
        before = cost.asked
        change = book.begin(now)
        records = leasing.lease(book, change, limit=10, lease_s=60, worker_id="w", token=1)
        asked["most in a turn"] = max(asked["most in a turn"], cost.asked - before)
        leased += len(records)
        assert all(record.scheduled_at <= now.wall_s for record in records)
        # The change is dropped: nothing was leased, and what was early has been withdrawn.
    assert leased
    early = due - len(book.index.due)
    assert asked["most in a turn"] <= 3 * WITHDRAWN_AT_ONCE
    assert len(book.index.waiting) == early > 100 * WITHDRAWN_AT_ONCE
    driver.wall_s = WALL_S
    while book.advance(driver.now, limit=500):
        pass
    assert len(book.index.due) == due
