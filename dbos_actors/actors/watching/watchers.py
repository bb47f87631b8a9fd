"""All watches: who is told of what a commit has brought, and who has to catch up.

While there is a watch, the store tells of every commit (`Store.follow`). The events in it become
entries of the ring, and each is noted for the watches that want it, by its number. A watch is
*live* while it is told so. It takes what was noted from the ring at its own pace. When too much is
noted, or the ring has dropped what was noted, the watch has *fallen behind*: it is told nothing
more, looks through the ring itself from its cursor on, or, if the ring no longer reaches so far,
through Redis; and when it has come to the end it is live again. A new watch begins in the same way.

So a slow client costs a few hundred numbers, and no event is left out: either it is delivered, or
the watch ends with `CursorError` because Redis no longer has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import trio

from dbos_actors.actors.event_log import AppendedEvents
from dbos_actors.actors.watching.entries import Cursor, entry_of
from dbos_actors.actors.watching.filters import Filter, Groups
from dbos_actors.actors.watching.log_reader import LogReader
from dbos_actors.actors.watching.ring import EventRing
from dbos_actors.actors.watching.statistics import WatchStatistics
from dbos_actors.errors import OverloadedError
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.store import Store, Submission

logger = get_logger(__name__)

WATCHES_MAX: Final = 20_000
"""As many as connections: each costs 12 KB with its stream."""

RING_BYTES: Final = 16 << 20
"""Some 20,000 events: a minute of a busy network."""

_NOTED_MAX: Final = 256
"""Events that a live watch has not yet taken; the numbers take 2 KB."""

_BATCH_BYTES: Final = 64 << 10
"""Of one response, and one event more."""

_LOOKED_THROUGH: Final = 500
"""Entries of the ring that a watch looks through before other tasks run: 0.2 ms."""


class Batch:
    """What a watch is to be sent."""

    __slots__ = ("cursor", "events", "fell_behind")

    def __init__(self, events: list[bytes], cursor: Cursor, *, fell_behind: bool) -> None:
        self.events = events
        """Encoded; none: the cursor has moved on, and that is all."""
        self.cursor = cursor
        """Where to go on."""
        self.fell_behind = fell_behind
        """The first of the batches for which the log had to be looked through again."""


class Watcher:
    """One watch; made by `Watchers.join`."""

    def __init__(self, watchers: Watchers, wanted: Filter, cursor: Cursor) -> None:
        self.wanted = wanted
        self.cursor = cursor
        """All events up to there have been taken, or are not wanted."""
        self._watchers = watchers
        self._noted: deque[int] = deque()
        self._is_live = False
        self._fell_behind = False
        self._wake = trio.Event()

    def note(self, number: int) -> None:
        """An event that is wanted is in the ring, under that number."""
        if not self._is_live:
            return
        if len(self._noted) >= _NOTED_MAX:
            self.fall_behind()
        else:
            self._noted.append(number)
        self._wake.set()

    def fall_behind(self) -> None:
        """Have the watch look for its events itself."""
        if self._is_live:
            self._is_live = False
            self._fell_behind = True
            self._watchers.fallen_behind += 1
        self._noted.clear()
        self._wake.set()

    async def next(self, progress_s: float) -> Batch:
        """Wait for events; after ``progress_s`` without any, just tell how far the log has come.

        Raises `CursorError`, `UnavailableError` or `OverloadedError`. If cancelled, some events
        may have been taken: the watch is of no use any more.
        """
        with trio.move_on_after(progress_s):
            while True:
                if self._noted:
                    events = self._noted_events()
                    if events:
                        return self._batch(events)
                if not self._is_live:
                    events = await self._catch_up()
                    if events or (self._is_live and self._fell_behind):
                        return self._batch(events)
                    continue
                self._wake = trio.Event()
                await self._wake.wait()
        if self._is_live and not self._noted:
            self.cursor = max(self.cursor, self._watchers.ring.end or self.cursor)
        return self._batch([])

    def _batch(self, events: list[bytes]) -> Batch:
        fell_behind, self._fell_behind = self._fell_behind, False
        self._watchers.delivered += len(events)
        return Batch(events, self.cursor, fell_behind=fell_behind)

    def _noted_events(self) -> list[bytes]:
        """What was noted, as much as fits into a batch."""
        ring, noted = self._watchers.ring, self._noted
        events: list[bytes] = []
        size_bytes = 0
        while noted and size_bytes < _BATCH_BYTES:
            entry = ring.get(noted[0])
            if entry is None:
                self.fall_behind()
                break
            noted.popleft()
            if entry.cursor > self.cursor:
                self.cursor = entry.cursor
                events.append(entry.encoded)
                size_bytes += len(entry.encoded)
        return events

    async def _catch_up(self) -> list[bytes]:
        """One step towards the end of the log; what it has brought. Live again at the end."""
        ring = self._watchers.ring
        if not ring.covers(self.cursor):
            return await self._read()
        await trio.lowlevel.checkpoint()
        if not ring.covers(self.cursor):
            return []
        events: list[bytes] = []
        size_bytes = looked_through = 0
        for entry in ring.behind(self.cursor, _LOOKED_THROUGH):
            looked_through += 1
            self.cursor = entry.cursor
            if self.wanted.wants(entry):
                events.append(entry.encoded)
                size_bytes += len(entry.encoded)
                if size_bytes >= _BATCH_BYTES:
                    return events
        self._is_live = looked_through < _LOOKED_THROUGH
        return events

    async def _read(self) -> list[bytes]:
        watchers = self._watchers
        feeding = watchers.feeding
        entries, end = await watchers.reader.behind(self.cursor)
        if end is not None and feeding == watchers.feeding:
            # Whatever is committed after this read began is put into the ring.
            watchers.ring.read_to_the_end(end)
        events: list[bytes] = []
        size_bytes = 0
        for entry in entries:
            self.cursor = entry.cursor
            if self.wanted.wants(entry):
                events.append(entry.encoded)
                size_bytes += len(entry.encoded)
                if size_bytes >= _BATCH_BYTES:
                    return events
        self.cursor = end or self.cursor
        return events


class Watchers:
    """All watches of a server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._appended = AppendedEvents(store.keys.events)
        self._groups: Groups[Watcher] = Groups()
        self._watchers: dict[Watcher, None] = {}
        self.ring = EventRing(RING_BYTES)
        self.reader = LogReader(store)
        self.feeding = 0
        """Rises whenever the ring begins to be fed, or to be fed anew."""
        self.fallen_behind = 0
        self.delivered = 0
        self._published = 0
        store.on_reload(self._feed_anew)

    def statistics(self) -> WatchStatistics:
        """Figures since the start, and what is held now."""
        return WatchStatistics(
            watches=len(self._watchers),
            events=self._published,
            delivered=self.delivered,
            fallen_behind=self.fallen_behind,
            ring_events=len(self.ring),
            ring_bytes=self.ring.size_bytes,
            events_read=self.reader.entries_read,
            groups_looked_up=self._groups.looked_up,
        )

    async def join(self, wanted: Filter, cursor: Cursor | None) -> Watcher:
        """A new watch, of events behind ``cursor``; None: of those committed from now on.

        Call `leave` in the end. Raises `OverloadedError` if there are too many, and
        `UnavailableError`.
        """
        if len(self._watchers) >= WATCHES_MAX:
            raise OverloadedError("the list of watches", limit=WATCHES_MAX, unit="watches")
        watcher = Watcher(self, wanted, cursor or Cursor(0, 0))
        if not self._watchers:
            self._feed_anew()
            self._store.follow(self._committed)
        self._watchers[watcher] = None
        self._groups.add(wanted, watcher)
        if cursor is None:
            try:
                watcher.cursor = self.ring.end or await self.reader.end()
            except BaseException:
                self.leave(watcher)
                raise
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """The watch has ended."""
        if watcher not in self._watchers:
            return
        del self._watchers[watcher]
        self._groups.remove(watcher.wanted, watcher)
        if not self._watchers:
            self._store.follow(None)
            self.ring.clear()

    def _feed_anew(self) -> None:
        """Nothing is known of what was committed until now: everybody has to look again."""
        self.feeding += 1
        self.ring.clear()
        for watcher in self._watchers:
            watcher.fall_behind()

    def _committed(
        self,
        submissions: Iterable[tuple[Submission, float]],
        replies: Sequence[object] | None,
        is_whole: bool,
    ) -> None:
        """These have been committed, in this order; not ``is_whole``: perhaps more of them."""
        commands = [command for submission, _ in submissions for command in submission.commands]
        for found in self._appended.find(commands, replies):
            if found is None:
                is_whole = False
            else:
                self._publish(*found)
        if not is_whole:
            self._feed_anew()

    def _publish(self, entry_id: bytes, event: bytes) -> None:
        try:
            entry = entry_of(entry_id, event)
        except (ValueError, KeyError) as error:
            log_limited(logger.error, "unreadable_event", id=entry_id.decode(), error=str(error))
            return
        end = self.ring.end
        if end is not None and entry.cursor <= end:
            # Told to the readers of the log before it was told here.
            if len(self.ring):
                self._feed_anew()
            return
        self._published += 1
        number = self.ring.append(entry)
        for watcher in self._groups.who_want(entry):
            watcher.note(number)
