"""Looks for the tasks of a listing, a bounded number of rows at a time.

A scan is an iterator of `Slice`s. Each step looks at no more than about `SLICE_ROWS`
rows, and the book may change between two steps: a scan keeps no more than where it has
come to, an id or a second and an id. A task that fits throughout is found. One that
changes meanwhile is found as it is when it is looked at, or not at all, as if the
listing had come before or after the change.

Which rows a scan looks at is chosen when it begins, so that they are few:

| listing | looks at |
|---|---|
| by id, a status that few tasks have | the tasks of that status |
| by id, of an agent, or of a module of few agents | the flows' tasks, merged |
| by id, any other | all tasks in order, from the page's start |
| oldest first, a filter that few tasks pass | the tasks of the filter's flows |
| oldest first, any other | pending tasks in order of time |

Where the last two rows of the table look at tasks that do not fit, few of those looked at
have to: if a filter is passed by n of N tasks, w wanted ones are found among w x N / n if they
are spread evenly, and gathering the n is chosen where that is less. If they are not spread evenly
there are more slices, never larger ones; a page by id ends after `PAGE_ROWS_MAX`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heapreplace, nsmallest
from typing import NamedTuple

from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.fair_queue import Flow
from dbos_actors.domain.tasks.index import TaskIndex
from dbos_actors.domain.tasks.record import TaskRecord, row_flow, row_scheduled_at, row_status
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import TimerHeap

SLICE_ROWS = 200
"""Rows looked at in a step: 0.2 to 0.7 ms. A walk begins with as many as are wanted."""

_FIRST_ROWS = 16
"""The fewest rows of a step."""

PAGE_ROWS_MAX = 20_000
"""Rows looked at for one page by id: one that few tasks fit into is short, perhaps empty, and
names the next one. As many as of other listings, and 10 ms of work."""


_LANES_COUNTED_MAX = 2_000
"""Flows whose tasks are counted to choose a way, 0.1 ms. A filter of more flows is taken for one
that many tasks pass."""


class Slice(NamedTuple):
    """What one step of a scan has done."""

    rows: int
    """Rows, flows and ids looked at."""
    records: list[TaskRecord]
    """Tasks found, in the listing's order."""
    position: str
    """By id: no task up to and with this id is left to be found; oldest first: nothing."""


# ----------------------------------------------------------------------- by id


def tasks_by_id(
    book: TaskBook,
    *,
    status: Status | None = None,
    agent_id: str = "",
    module_name: str = "",
    after: str = "",
    wanted: int,
) -> Iterator[Slice]:
    """The tasks behind ``after`` that pass the filters, in order of their ids.

    An empty name stands for all; ``wanted`` is how many will be taken, about.
    """
    is_filtered = bool(agent_id or module_name)
    flows = book.flows_of(agent_id, module_name)
    if is_filtered and not flows:
        return iter(())
    if status is not None:
        count = _count(book.index, status)
        # Walking on instead would look at ``wanted * len(book) / count``.
        if count <= PAGE_ROWS_MAX and count * count <= max(SLICE_ROWS, wanted) * len(book):
            numbers = {flow.number for flow in flows} if agent_id else None
            return _gathered(book, status, numbers, module_name, after)
    if is_filtered and (agent_id or len(flows) <= 2 * wanted + SLICE_ROWS):
        return _merged(book, flows, status, after, wanted)
    return _walked(book, status, module_name, after, wanted)


def _count(index: TaskIndex, status: Status) -> int:
    match status:
        case Status.PENDING:
            return len(index.waiting) + len(index.delays) + len(index.due_order)
        case Status.INFLIGHT:
            return len(index.leases)
        case Status.COMPLETED:
            return len(index.retained)
        case Status.CANCELLED:
            return len(index.cancelled)
        case _:
            return len(index.dead)


def _ids(index: TaskIndex, status: Status) -> list[str]:
    match status:
        case Status.PENDING:
            return index.waiting.ids() + index.delays.ids() + index.due_order.ids()
        case Status.INFLIGHT:
            return index.leases.ids()
        case Status.COMPLETED:
            return index.retained.ids()
        case Status.CANCELLED:
            return index.cancelled.ids()
        case _:
            return index.dead.ids()


def _gathered(
    book: TaskBook, status: Status, flows: set[int] | None, module_name: str, after: str
) -> Iterator[Slice]:
    """All tasks of a status that few have, put in order; ``flows`` None: of any agent."""
    ids = _ids(book.index, status)
    found: list[str] = []
    for start in range(0, len(ids), SLICE_ROWS):
        part = ids[start : start + SLICE_ROWS]
        for task_id in part:
            if task_id <= after:
                continue
            row = book.row(task_id)
            if row is None or row_status(row) != status:
                continue
            number = row_flow(row)
            if flows is not None:
                fits = number in flows
            else:
                fits = not module_name or book.flows[number].module_name == module_name
            if fits:
                found.append(task_id)
        yield Slice(len(part), [], after)
    found.sort()
    for start in range(0, len(found), SLICE_ROWS):
        part = found[start : start + SLICE_ROWS]
        yield Slice(len(part), _decoded(book, part, status), part[-1])


def _merged(
    book: TaskBook, flows: Collection[Flow], status: Status | None, after: str, wanted: int
) -> Iterator[Slice]:
    """The tasks of some flows."""
    # The flows' next tasks, and from which flow each is.
    heads: list[tuple[str, int]] = []
    numbered = list(flows)
    for number, flow in enumerate(numbered):
        heads += [(task_id, number) for task_id in flow.ids.following(after, 1)]
        if number % SLICE_ROWS == SLICE_ROWS - 1:
            yield Slice(SLICE_ROWS, [], after)
    heapify(heads)
    rows = len(numbered) % SLICE_ROWS
    for size in _sizes(wanted):
        if not heads:
            return
        part: list[str] = []
        while heads and len(part) < size:
            task_id, number = heads[0]
            part.append(task_id)
            following = numbered[number].ids.following(task_id, 1)
            if following:
                heapreplace(heads, (following[0], number))
            else:
                heappop(heads)
        yield Slice(rows + len(part), _decoded(book, part, status), part[-1])
        rows = 0


def _walked(
    book: TaskBook, status: Status | None, module_name: str, after: str, wanted: int
) -> Iterator[Slice]:
    """All tasks from ``after`` on."""
    for size in _sizes(wanted):
        rows = book.rows_after(after, size)
        if not rows:
            return
        after = rows[-1][0]
        yield Slice(
            len(rows),
            [
                book.record(task_id, row)
                for task_id, row in rows
                if (status is None or row_status(row) == status)
                and (not module_name or book.flows[row_flow(row)].module_name == module_name)
            ],
            after,
        )


def _sizes(wanted: int) -> Iterator[int]:
    """How many rows to look at in one step after another."""
    size = max(_FIRST_ROWS, min(wanted, SLICE_ROWS))
    while True:
        yield size
        size = min(2 * size, SLICE_ROWS)


def _decoded(book: TaskBook, task_ids: list[str], status: Status | None) -> list[TaskRecord]:
    rows = [(task_id, book.row(task_id)) for task_id in task_ids]
    return [
        book.record(task_id, row)
        for task_id, row in rows
        if row is not None and (status is None or row_status(row) == status)
    ]


# ---------------------------------------------------------------- oldest first


def oldest_tasks(
    book: TaskBook, *, until: int, agent_id: str = "", module_name: str = "", wanted: int
) -> Iterator[Slice]:
    """Pending tasks scheduled at ``until`` (wall-clock seconds) or before, oldest first.

    Tasks waiting out a retry delay are not among them. An empty name stands for all. It ends when
    ``wanted`` tasks have been found; a slice may have found some more.
    """
    flows, _ = _oldest_plan(book, until, agent_id, module_name, wanted)
    if flows is None:
        return _oldest_walked(book, until, agent_id, module_name, wanted)
    ahead = _is_ahead(book.index, until)
    return _oldest_gathered(book, until, list(flows), ahead=ahead, wanted=wanted)


def oldest_rows_max(
    book: TaskBook, *, until: int, agent_id: str = "", module_name: str = "", wanted: int
) -> int:
    """How many rows `oldest_tasks` looks at, at most, for the same arguments."""
    return _oldest_plan(book, until, agent_id, module_name, wanted)[1]


def _is_ahead(index: TaskIndex, until: int) -> bool:
    """Whether tasks that wait are among those asked for, beside the due ones."""
    first = index.waiting.first_tick()
    return first is not None and first <= until


def _oldest_plan(
    book: TaskBook, until: int, agent_id: str, module_name: str, wanted: int
) -> tuple[Collection[Flow] | None, int]:
    """The flows to gather from, None to walk instead; and the rows looked at, at most."""
    index = book.index
    ahead = _is_ahead(index, until)
    everyone = len(index.due_order) + (len(index.waiting) if ahead else 0)
    if not agent_id and not module_name:
        return None, min(wanted, everyone)
    flows = (book.flows_of if ahead else index.due.flows)(agent_id, module_name)
    if len(flows) <= _LANES_COUNTED_MAX:
        count = sum(len(flow.ids if ahead else flow.due or ()) for flow in flows)
        # Walking by time would look at ``wanted * everyone / count``.
        if count <= SLICE_ROWS or count * count <= wanted * everyone:
            return flows, count
    return None, everyone


def _oldest_gathered(
    book: TaskBook, until: int, flows: list[Flow], *, ahead: bool, wanted: int
) -> Iterator[Slice]:
    """Of the tasks of some flows the oldest ``wanted``."""
    found: list[tuple[int, str]] = []
    rows = 0
    for flow in flows:
        if not ahead and flow.due is not None and len(flow.due) <= SLICE_ROWS:
            parts: Iterator[list[str]] = iter((list(flow.due),))
        else:
            parts = _ids_of(flow)
        for part in parts:
            for task_id in part:
                scheduled_at = _scheduled_at(book, task_id)
                if scheduled_at is not None and scheduled_at <= until:
                    found.append((scheduled_at, task_id))
            rows += len(part) + 1
            if rows >= SLICE_ROWS:
                yield Slice(rows, [], "")
                rows = 0
                if len(found) > 2 * wanted + SLICE_ROWS:
                    found = nsmallest(wanted, found)
    yield Slice(rows, [], "")
    found.sort()
    yield from _oldest_decoded(book, found[:wanted], until)


def _ids_of(flow: Flow) -> Iterator[list[str]]:
    last = ""
    while ids := flow.ids.following(last, SLICE_ROWS):
        yield ids
        last = ids[-1]


def _oldest_walked(
    book: TaskBook, until: int, agent_id: str, module_name: str, wanted: int
) -> Iterator[Slice]:
    """Pending tasks by time."""
    heaps = (book.index.due_order, book.index.waiting)
    fits: Callable[[int], bool] | None = None
    if agent_id or module_name:

        def fits(number: int) -> bool:
            flow = book.flows[number]
            return agent_id in ("", flow.agent_id) and module_name in ("", flow.module_name)

    last: tuple[int, str] = (-1, "")
    for size in _sizes(wanted):
        # A task that falls due meanwhile goes from one heap to the other and keeps its place.
        nearest = sorted(timer for heap in heaps for timer in _following(heap, last, until, size))
        del nearest[size:]
        if not nearest:
            return
        last = nearest[-1]
        records = _still_due(book, nearest, until, fits)
        yield Slice(len(nearest), records, "")
        wanted -= len(records)
        if wanted <= 0:
            return


def _following(
    heap: TimerHeap, last: tuple[int, str], until: int, limit: int
) -> list[tuple[int, str]]:
    first = heap.first_tick()
    if first is None or first > until:
        return []
    return [timer for timer in heap.following(*last, limit) if timer[0] <= until]


def _oldest_decoded(book: TaskBook, timers: list[tuple[int, str]], until: int) -> Iterator[Slice]:
    for start in range(0, len(timers), SLICE_ROWS):
        part = timers[start : start + SLICE_ROWS]
        yield Slice(len(part), _still_due(book, part, until), "")


def _still_due(
    book: TaskBook,
    timers: list[tuple[int, str]],
    until: int,
    fits: Callable[[int], bool] | None = None,
) -> list[TaskRecord]:
    """Those of the tasks that are due as before, and of a flow that ``fits``, decoded."""
    found = []
    deadlines = book.index.deadlines
    for _, task_id in timers:
        row = book.row(task_id)
        if (
            row is not None
            and (fits is None or fits(row_flow(row)))
            and row_status(row) == Status.PENDING
            and task_id not in deadlines
            and row_scheduled_at(row) <= until
        ):
            found.append(book.record(task_id, row))
    return found


def _scheduled_at(book: TaskBook, task_id: str) -> int | None:
    """When a task is or was due; None if it is not pending or waits out a delay."""
    row = book.row(task_id)
    if row is None or row_status(row) != Status.PENDING or task_id in book.index.deadlines:
        return None
    return row_scheduled_at(row)
