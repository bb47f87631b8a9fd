"""Reads that go past the actors, to what is committed: lists, results, events.

A client whose write was answered finds it here, because an answer follows its
commit. What is not committed cannot be seen here. Every listing reads in bounded
steps and keeps at most one response in memory.

Records are copied into the response as they are stored; only a filter on their
content decodes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from dbos_actors.actors.agents.agent_filter import AgentFilter
from dbos_actors.actors.agents.context import readable
from dbos_actors.actors.agents.index import Entry, Index
from dbos_actors.actors.agents.known_agents import KnownAgents
from dbos_actors.actors.answers import found
from dbos_actors.actors.listings import Room, reads, record_sizes
from dbos_actors.actors.pages import STEP, Page
from dbos_actors.api.messages import (
    GetEventsRequest,
    GetResultRequest,
    GetResultResponse,
    ListAgentsRequest,
    ListModuleStatesRequest,
    ListResultsRequest,
    MeasurementResult,
    ModuleState,
)
from dbos_actors.api.wire import encode_submessage
from dbos_actors.domain import paging
from dbos_actors.errors import UnavailableError
from dbos_actors.store import Store, pack
from dbos_actors.store.keys import escaped

_FIRST_STEP = 16
"""Entries of the first step if a filter may drop them; each further one has four times as many.
So a small page of what is frequent reads little, and one of what is rare takes few round trips."""

_SCANNED_MAX: Final = 20_000
"""Entries looked at for one page: a filter that few pass gives short pages, not stalls."""

_SCANNED_BYTES_MAX: Final = 64 << 20
"""Likewise in bytes: 0.1 s of reading."""

_EVENTS_BYTES: Final = 4 << 20
"""Events of one step together, by the largest that the limits of ids allow."""


class Queries:
    """The reading half of the service."""

    def __init__(
        self, store: Store, known: KnownAgents, *, limit_bytes: int, id_bytes: int
    ) -> None:
        """``limit_bytes`` bounds a response, ``id_bytes`` an id or a name."""
        self._store = store
        self._known = known
        self._limit_bytes = limit_bytes
        # Of a state's name in the index: a letter, then the id.
        self._id_bytes = id_bytes + 1
        # An event has three ids or names, each twice, and JSON may take six bytes for one.
        self._events_step = max(1, min(STEP, _EVENTS_BYTES // (36 * id_bytes + 4096)))

    def get_result(
        self,
        request: GetResultRequest,
        answer: Callable[[Any], None],
        *,
        deadline_s: float | None,
    ) -> None:
        """Read one result; ``answer`` gets the response or the error, later.

        Raises `OverloadedError`.
        """

        def on_replies(replies: Sequence[Any] | UnavailableError) -> None:
            if isinstance(replies, UnavailableError):
                answer(replies)
            elif replies[0] is None:
                problem = f"no result {request.request_id!r} of agent {request.agent_id!r}"
                answer(GetResultResponse(error=problem))
            else:
                answer(found(replies[0]))

        results = self._store.keys.results + escaped(request.agent_id)
        self._store.submit_read(
            [pack("HGET", results, request.request_id)],
            on_replies,
            reply_bytes=None,
            deadline_s=deadline_s,
        )

    def last_changed_agent(
        self,
        request_id: str,
        answer: Callable[[Any], None],
        *,
        deadline_s: float | None,
    ) -> None:
        """Find whose run last changed under a request id: an agent id, None or the error.

        Raises `OverloadedError`.
        """

        def on_replies(replies: Sequence[Any] | UnavailableError) -> None:
            if isinstance(replies, UnavailableError):
                answer(replies)
            else:
                answer(replies[0][0].decode() if replies[0] else None)

        key = self._store.keys.request + escaped(request_id)
        self._store.submit_read([pack("ZRANGE", key, -1, -1)], on_replies, deadline_s=deadline_s)

    # -------------------------------------------------------------- listings
    #
    # Each raises `RefusedError` for what the request says wrong,
    # `ResponseTooLargeError`, `UnavailableError` or `OverloadedError`.

    async def list_agents(self, request: ListAgentsRequest, room: Room) -> bytes:
        """Agents by id: the registered ones, or all that have anything stored."""
        wanted = AgentFilter.of(request, id_bytes=self._id_bytes - 1)
        if request.include_unregistered:
            return await self._list_known_agents(request, room)
        listing = paging.Listing("ListAgents", *wanted.fingerprint)
        after = listing.position(request.page_token)
        page = self._page(request.page_size)
        keys = self._store.keys
        last = None if after is None else after.id.encode()
        scanned = 0
        while True:
            low, high = wanted.bounds(last)
            count = page.wanted if wanted.accepts is None else STEP
            (members,) = await self._store.read(
                pack("ZRANGE", keys.agents_index, low, high, "BYLEX", "LIMIT", 0, count)
            )
            if not members:
                return page.response()
            room.looked_at(len(members))
            sizes = await record_sizes(self._store, keys.agents, members)
            for first, behind, size_bytes in reads(sizes):
                part = members[first:behind]
                taken = await self._take(
                    page, room, keys.agents, part, size_bytes=size_bytes, is_wanted=wanted.accepts
                )
                if taken:
                    last = part[taken - 1]
                scanned += taken
                if taken < len(part) or (page.is_bounded and scanned >= _SCANNED_MAX):
                    return page.response(listing.token(0, (last or b"").decode()))
            if len(members) < count:
                return page.response()

    async def _list_known_agents(self, request: ListAgentsRequest, room: Room) -> bytes:
        listing = paging.Listing("ListAgents known")
        after = listing.position(request.page_token)
        page = self._page(request.page_size)
        last = "" if after is None else after.id
        keys = self._store.keys
        while names := await self._known.following(last, page.wanted):
            room.looked_at(len(names))
            sizes = await record_sizes(self._store, keys.agents, [name.encode() for name in names])
            for first, behind, size_bytes in reads(sizes):
                part = names[first:behind]
                await room.reserve(size_bytes)
                records, known = await self._store.read(
                    pack("HMGET", keys.agents, *part), pack("SMISMEMBER", keys.agents_known, *part)
                )
                for name, record, is_known in zip(part, records, known, strict=True):
                    # An agent without a record is shown by its id alone.
                    shown = encode_submessage(1, name.encode()) if record is None else record
                    if (record is not None or is_known) and not page.add(shown):
                        return page.response(listing.token(0, last))
                    last = name
        return page.response()

    async def list_states(self, request: ListModuleStatesRequest, room: Room) -> bytes:
        """States of an agent by time of last change, oldest first: one that changes
        while the list is paged through comes (again) at its end and is never missed.
        """
        agent_id, module_name = request.agent_id, request.module_name
        states = frozenset(request.states)
        keys = self._store.keys
        name = escaped(agent_id)
        index = keys.states_at + name
        if module_name:
            index = f"{keys.states_of}{name}:{escaped(module_name)}"

        def is_wanted(record: bytes) -> bool:
            state = readable(ModuleState, record)
            return state is not None and state.state in states

        return await self._list(
            request,
            room,
            listing=paging.Listing("ListModuleStates us", agent_id, module_name, sorted(states)),
            index=Index(self._store, index),
            records=keys.states + name,
            is_wanted=is_wanted if states else None,
            unit=1_000,
        )

    async def list_results(self, request: ListResultsRequest, room: Room) -> bytes:
        """Results of an agent by time received, oldest first unless asked otherwise."""
        agent_id, module_name = request.agent_id, request.module_name
        since, until, newest_first = request.since, request.until, request.newest_first
        keys = self._store.keys
        name = escaped(agent_id)

        def is_wanted(record: bytes) -> bool:
            result = readable(MeasurementResult, record)
            return result is not None and result.module_name == module_name

        return await self._list(
            request,
            room,
            listing=paging.Listing(
                "ListResults", agent_id, module_name, since, until, newest_first
            ),
            index=Index(
                self._store,
                keys.results_at + name,
                low=str(since) if since else "-inf",
                high=f"({until}" if until else "+inf",
                reverse=newest_first,
            ),
            records=keys.results + name,
            is_wanted=is_wanted if module_name else None,
        )

    async def list_events(self, request: GetEventsRequest, room: Room) -> bytes:
        """Events, newest first."""
        types = frozenset(request.types)
        listing = paging.Listing("GetEvents", sorted(types), request.agent_id)
        after = listing.position(request.page_token)
        page = Page(page_size=paging.event_count(request.limit), limit_bytes=self._limit_bytes)
        last = None if after is None else after.id.encode()
        is_filtered = bool(types or request.agent_id)
        scanned = 0
        while True:
            newest = b"+" if last is None else b"(" + last
            count = self._events_step if is_filtered else min(page.wanted, self._events_step)
            (entries,) = await self._store.read(
                pack("XREVRANGE", self._store.keys.events, newest, "-", "COUNT", count)
            )
            if not entries:
                return page.response()
            room.looked_at(len(entries))
            for entry_id, fields in entries:
                event = fields[1]
                if not is_filtered or _is_wanted_event(event, types, request.agent_id):
                    if not page.add(event):
                        return page.response(listing.token(0, (last or b"").decode()))
                    await room.reserve(len(event))
                last = entry_id
            scanned += len(entries)
            if scanned >= _SCANNED_MAX:
                return page.response(listing.token(0, (last or b"").decode()))

    def _page(self, page_size: int) -> Page:
        return Page(
            page_size=paging.page_size(page_size),
            limit_bytes=self._limit_bytes,
            id_bytes=self._id_bytes,
        )

    async def _list(
        self,
        request: ListModuleStatesRequest | ListResultsRequest,
        room: Room,
        *,
        listing: paging.Listing,
        index: Index,
        records: str,
        is_wanted: Callable[[bytes], bool] | None,
        unit: int = 1,
    ) -> bytes:
        """``unit`` is what a score is multiplied by to be a whole number, in a page token."""
        after = listing.position(request.page_token)
        last = None if after is None else (after.score / unit, after.id.encode())
        page = self._page(request.page_size)
        step = _FIRST_STEP
        scanned = scanned_bytes = 0
        while True:
            count = page.wanted
            if is_wanted is not None:
                count = min(max(count, step), STEP)
                step *= 4
            entries = await index.entries_after(last, count)
            if not entries:
                return page.response()
            room.looked_at(len(entries))
            members = entries.members
            sizes = await record_sizes(self._store, records, members)
            for first, behind, size_bytes in reads(sizes):
                part = members[first:behind]
                taken = await self._take(
                    page, room, records, part, size_bytes=size_bytes, is_wanted=is_wanted
                )
                if taken:
                    last = entries[first + taken - 1]
                scanned += taken
                scanned_bytes += size_bytes
                is_long = scanned >= _SCANNED_MAX or scanned_bytes >= _SCANNED_BYTES_MAX
                if taken < len(part) or (page.is_bounded and is_long):
                    return page.response(_token(listing, last, unit))
            if entries.are_last:
                return page.response()

    async def _take(
        self,
        page: Page,
        room: Room,
        records: str,
        members: Sequence[bytes],
        *,
        size_bytes: int,
        is_wanted: Callable[[bytes], bool] | None = None,
    ) -> int:
        """Read these records and add what is wanted to the page; how many of them it covers."""
        await room.reserve(size_bytes)
        (values,) = await self._store.read(pack("HMGET", records, *members))
        if is_wanted is None and None not in values:
            # The page may hold one less than was read, which tells that there is more.
            fitting = values[: page.vacant]
            if page.add_all(fitting):
                return len(fitting)
        for number, value in enumerate(values):
            wanted = value is not None and (is_wanted is None or is_wanted(value))
            if wanted and not page.add(value):
                return number
            if value is not None and not wanted:
                room.release(len(value))
        return len(members)


def _token(listing: paging.Listing, last: Entry | None, unit: int) -> str:
    score, member = last or (0.0, b"")
    return listing.token(round(score * unit), member.decode())


def _is_wanted_event(event: bytes, types: frozenset[str], agent_id: str) -> bool:
    if not types and not agent_id:
        return True
    content = json.loads(event)
    if types and content["type"] not in types:
        return False
    return not agent_id or content["metadata"].get("agent_id") == agent_id
