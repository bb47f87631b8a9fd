"""The event log's writing end."""

from __future__ import annotations

from dbos_actors.store import Store, pack


def appended(store: Store, event: bytes, *, events_max: int) -> bytes:
    """The command that appends ``event``; to be part of the very next submission.

    Redis trims the stream to about ``events_max`` entries.
    """
    return pack(
        "XADD",
        store.keys.events,
        "MAXLEN",
        "~",
        events_max,
        store.next_event_id(),
        "e",
        event,
    )
