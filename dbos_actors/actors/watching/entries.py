"""An event of the log as a watch sees it, and the cursor that names its place.

A cursor is the id of the event's entry in Redis: milliseconds, a dash, a number. The server assigns
these ids, and they rise with each event (`store/event_ids.py`). Clients take a cursor as it is.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from dbos_actors.api.messages import Event
from dbos_actors.api.wire import encode_submessage
from dbos_actors.errors import InvalidFieldError

CURSOR_CHARS_MAX: Final = 41
"""Two numbers of 64 bits, and the dash between them."""

_NUMBER_MAX: Final = 2**64 - 1


class Cursor(NamedTuple):
    """A place in the log: behind the event of that id."""

    ms: int
    number: int

    @property
    def text(self) -> str:
        """As it stands on the wire, and in Redis."""
        return f"{self.ms}-{self.number}"


OLDEST: Final = Cursor(0, 0)
"""Before every event."""


def cursor_of(text: str) -> Cursor:
    """The cursor that a client sends. Raises `InvalidFieldError` if it is none."""
    ms, dash, number = text.partition("-")
    if len(text) <= CURSOR_CHARS_MAX and ms.isdecimal() and ms.isascii():
        if not dash:
            number = "0"
        if number.isdecimal() and number.isascii():
            cursor = Cursor(int(ms), int(number))
            if max(cursor) <= _NUMBER_MAX:
                return cursor
    raise InvalidFieldError(
        "cursor", "is not one that this server has given out, nor 0 for the oldest event kept"
    )


class Entry(NamedTuple):
    """One event."""

    cursor: Cursor
    kind: str
    agent_id: str
    module_name: str
    request_id: str
    encoded: bytes
    """As field 1 of a response."""


def entry_of(entry_id: bytes, event: bytes) -> Entry:
    """The entry of an event as the log keeps it: JSON, by `domain.events`.

    Raises `ValueError` or `KeyError` if the event is damaged.
    """
    ms, _, number = entry_id.partition(b"-")
    cursor = Cursor(int(ms), int(number))
    content = json.loads(event)
    kind, metadata = content["type"], content["metadata"]
    message = Event(
        cursor=cursor.text,
        type=kind,
        message=content["message"],
        metadata=metadata,
        timestamp=content["timestamp"],
    )
    return Entry(
        cursor,
        kind,
        metadata.get("agent_id", ""),
        metadata.get("module_name", ""),
        metadata.get("request_id", ""),
        encode_submessage(1, message.SerializeToString()),
    )
