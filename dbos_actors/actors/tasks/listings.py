"""ListTasks and ListDueTasks: tasks looked for in the book, their payloads read from Redis.

How large a payload is the book knows, so it is read within the budget of all listings
(`listings.py`) without asking Redis first.

The book is looked through a slice at a time (`domain/tasks/scan.py`), and all listings together
take turns: one slice, or a hundred tasks put into a response, then every other task of the server
that can run, then the next. So the work of others is delayed by one slice, however many listings
run.

A listing sees the book at several moments, and ahead of what is committed. Before it answers
it waits until everything it has seen is (a `Barrier` through the actor), so that it shows nothing
that a crash could undo. A book that was replaced meanwhile, because the store refused a
commit, ends the listing as unavailable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import trio

from dbos_actors.actors.listings import SMALL_BYTES, Room, reads
from dbos_actors.actors.pages import Page
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.messages import Barrier, LeaseListed
from dbos_actors.actors.tasks.responses import (
    described,
    due_limit,
    fitting_tasks,
    is_readable,
    listed,
    overlaid,
    room_for_tasks,
)
from dbos_actors.api.messages import ListDueTasksRequest, ListTasksRequest
from dbos_actors.domain import paging
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.limits import LEASE_LIMIT_MAX
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.scan import (
    PAGE_ROWS_MAX,
    SLICE_ROWS,
    Slice,
    oldest_rows_max,
    oldest_tasks,
    tasks_by_id,
)
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.errors import InvalidFieldError
from dbos_actors.runtime import Call, Waiter
from dbos_actors.store import Store

_BRIEF_ROWS = 100
"""A ListDueTasks that looks at no more rows, and holds no more than a small listing may, is one
turn of the actor, of 0.1 ms: starting a task for it would cost as much."""

_BUILT_AT_ONCE = 100
"""Tasks put into a response in one turn of a listing: 0.4 ms."""

_UNPAGED = 1_000
"""How many a listing without pages is taken to want: it is looked for in large slices."""

_STATUSES: Final = {status.text: status for status in Status if status is not Status.GONE}


class TaskListings:
    """Answers listings of tasks."""

    def __init__(
        self,
        *,
        store: Store,
        commands: TaskCommands,
        deliver: Callable[[Call], None],
        damaged: Callable[[list[TaskRecord]], None],
        loaded_book: Callable[[], Awaitable[TaskBook]],
        now: Callable[[], Now],
        message_bytes_max: int,
        leases: bool,
    ) -> None:
        """``deliver`` hands the actor a message; ``loaded_book`` waits for the actor's book.

        ``damaged`` is told of due tasks that cannot be read.
        ``leases``: ListDueTasks leases what it lists.
        """
        self._store = store
        self._commands = commands
        self._deliver = deliver
        self._damaged = damaged
        self._loaded_book = loaded_book
        self._now = now
        self._message_bytes_max = message_bytes_max
        self._leases = leases
        self._turns = trio.Lock()

    async def list_tasks(self, request: ListTasksRequest, room: Room) -> bytes:
        """Tasks by id: of a status, an agent, a module.

        Raises `RefusedError` for what the request says wrong, `ResponseTooLargeError`,
        `UnavailableError` or `OverloadedError`.
        """
        listing = paging.Listing("ListTasks", request.status, request.agent_id, request.module_name)
        after = listing.position(request.page_token)
        page_size = paging.page_size(request.page_size)
        status = None
        if request.status:
            status = _STATUSES.get(request.status)
            if status is None:
                raise InvalidFieldError("status", f"must be one of {', '.join(_STATUSES)}")
        page = Page(page_size=page_size, limit_bytes=self._message_bytes_max)
        book = await self._loaded_book()
        first = last = "" if after is None else after.id
        scan = tasks_by_id(
            book,
            status=status,
            agent_id=request.agent_id,
            module_name=request.module_name,
            after=first,
            wanted=page_size + 1 if page_size else _UNPAGED,
        )
        rows = 0
        found: list[TaskRecord] = []
        while step := await self._next(scan, room):
            rows += step.rows
            found += step.records
            # A scan that gathers before it orders has not come anywhere yet.
            is_long = page_size > 0 and rows >= PAGE_ROWS_MAX and step.position > first
            if len(found) < page.wanted and not is_long:
                continue
            last, is_full = await self._add(page, room, book, found, last)
            if is_full:
                return page.response(listing.token(0, last))
            found = []
            last = step.position
            if is_long:
                return page.response(listing.token(0, last))
        last, is_full = await self._add(page, room, book, found, last)
        return page.response(listing.token(0, last) if is_full else "")

    async def _add(
        self, page: Page, room: Room, book: TaskBook, found: list[TaskRecord], last: str
    ) -> tuple[str, bool]:
        """Add tasks to a page; the last id that it covers, and whether it is full."""
        await self._wait_committed(book)
        for first, behind, size_bytes in _reads(found):
            records = found[first:behind]
            await room.reserve(size_bytes)
            (kept,) = await self._store.read(self._commands.fetch(records))
            for start in range(0, len(records), _BUILT_AT_ONCE):
                part = slice(start, start + _BUILT_AT_ONCE)
                async with self._turns:
                    for record, task in zip(records[part], kept[part], strict=True):
                        if task is not None:
                            shown = task if is_readable(task) else described(record)
                            if not page.add(overlaid(shown, record)):
                                return last, True
                        last = record.task_id
        return last, False

    def is_brief(self, request: ListDueTasksRequest, book: TaskBook) -> bool:
        """Whether a ListDueTasks is to be one turn of the actor, without a task of its own."""
        until = request.timestamp or int(self._now().wall_s)
        wanted = request.limit if request.limit > 0 else LEASE_LIMIT_MAX
        filters = {"agent_id": request.agent_id, "module_name": request.module_name}
        if oldest_rows_max(book, until=until, wanted=wanted, **filters) > _BRIEF_ROWS:
            return False
        size_bytes = 0
        for step in oldest_tasks(book, until=until, wanted=wanted, **filters):
            size_bytes += sum(record.size_bytes_max for record in step.records)
        return size_bytes <= SMALL_BYTES

    async def list_due_tasks(self, request: ListDueTasksRequest, room: Room) -> bytes:
        """Pending tasks scheduled at a time or before, oldest first; leased, if so configured.

        Raises what `list_tasks` raises, except for its size: it ends where a message does.
        """
        limit = due_limit(request)
        now_s = int(self._now().wall_s)
        until = request.timestamp or now_s
        if self._leases:
            until = min(until, now_s)
        book = await self._loaded_book()
        scan = oldest_tasks(
            book,
            until=until,
            agent_id=request.agent_id,
            module_name=request.module_name,
            wanted=limit,
        )
        found: list[TaskRecord] = []
        room_bytes = room_for_tasks(self._message_bytes_max)
        while len(found) < limit and (step := await self._next(scan, room)):
            records = step.records[: limit - len(found)]
            fitting, room_bytes = fitting_tasks(records, room_bytes, has_any=bool(found))
            found += fitting
            if len(fitting) < len(records):
                break
        if self._leases:
            waiter = Waiter(LeaseListed([record.task_id for record in found]))
            self._deliver(waiter)
            response: bytes = await waiter.wait()
            return response
        await self._wait_committed(book)
        parts: list[bytes] = []
        for first, behind, size_bytes in _reads(found):
            batch = found[first:behind]
            await room.reserve(size_bytes)
            (kept,) = await self._store.read(self._commands.fetch(batch))
            for start in range(0, len(batch), _BUILT_AT_ONCE):
                part = slice(start, start + _BUILT_AT_ONCE)
                async with self._turns:
                    entries, damaged = listed(batch[part], kept[part])
                parts.append(entries)
                if damaged:
                    self._damaged(damaged)
        return b"".join(parts)

    async def _next(self, scan: Iterator[Slice], room: Room) -> Slice | None:
        """The next slice, when it is this listing's turn; None at the end."""
        async with self._turns:
            step = next(scan, None)
        if step is not None:
            room.looked_at(step.rows)
        return step

    async def _wait_committed(self, book: TaskBook) -> None:
        """Wait until all that the book has shown is committed.

        Raises `UnavailableError`: it never will be.
        """
        waiter = Waiter(Barrier(book))
        self._deliver(waiter)
        await waiter.wait()


def _reads(records: Sequence[TaskRecord]) -> Iterator[tuple[int, int, int]]:
    """Cut records into reads, by what the book knows of their sizes: see `listings.reads`."""
    for start in range(0, len(records), SLICE_ROWS):
        sizes = [record.size_bytes_max for record in records[start : start + SLICE_ROWS]]
        for first, behind, size_bytes in reads(sizes):
            yield start + first, start + behind, size_bytes
