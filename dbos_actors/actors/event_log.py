"""The event log's writing end."""

from __future__ import annotations

from dbos_actors.store import Store, pack_argument, pack_head


class EventLog:
    """Makes the commands that append to the log, which Redis trims to about ``events_max``."""

    __slots__ = ("_head", "_store")

    def __init__(self, store: Store, *, events_max: int) -> None:
        self._store = store
        self._head = pack_head(8, "XADD", store.keys.events, "MAXLEN", "~", str(events_max))

    def appended(self, event: bytes) -> bytes:
        """The command that appends ``event``; to be part of the very next submission."""
        return b"%b%b$1\r\ne\r\n%b" % (
            self._head,
            pack_argument(self._store.next_event_id()),
            pack_argument(event),
        )
