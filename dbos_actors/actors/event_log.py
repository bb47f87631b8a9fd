"""The event log's writing end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from dbos_actors.store import Store, pack_argument, pack_head, unpacked

APPEND_IF_NEW_SCRIPT: Final = """
if redis.pcall('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], ARGV[3], 'e', ARGV[4])
  return 1
end
return 0"""
"""KEYS: the log, a hash. ARGV: a field of the hash, and what is appended if there is none: the
length of the log, the id, the event. Returns whether it was appended. A hash of a wrong type is
left to the command that writes to it, which names it when it fails."""


class AppendedEvents:
    """Finds the events that commands have appended, for who follows commits."""

    __slots__ = ("_head", "_script_head")

    def __init__(self, events_key: str) -> None:
        self._head = pack_head(8, "XADD", events_key)
        self._script_head = pack_head(9, "EVAL", APPEND_IF_NEW_SCRIPT, "2", events_key)

    def find(
        self, commands: Sequence[bytes], replies: Sequence[object] | None
    ) -> Iterator[tuple[bytes, bytes] | None]:
        """The id and the event of each; None for one that may be in the log or not.

        ``replies`` are those to the commands; None: they were lost.
        """
        for number, command in enumerate(commands):
            if command.startswith(self._head):
                *_, entry_id, _, event = unpacked(command)
                yield entry_id, event
            elif command.startswith(self._script_head):
                if replies is None:
                    yield None
                elif replies[number] == 1:
                    *_, entry_id, event = unpacked(command)
                    yield entry_id, event


class EventLog:
    """Makes the commands that append to the log, which Redis trims to about ``events_max``."""

    __slots__ = ("_events_max", "_head", "_script_head", "_store")

    def __init__(self, store: Store, *, events_max: int) -> None:
        self._store = store
        self._events_max = pack_argument(b"%d" % events_max)
        self._head = pack_head(8, "XADD", store.keys.events, "MAXLEN", "~", str(events_max))
        self._script_head = pack_head(9, "EVAL", APPEND_IF_NEW_SCRIPT, "2", store.keys.events)

    def appended(self, event: bytes) -> bytes:
        """The command that appends ``event``; to be part of the very next submission."""
        return b"%b%b$1\r\ne\r\n%b" % (
            self._head,
            pack_argument(self._store.next_event_id()),
            pack_argument(event),
        )

    def appended_if_new(self, event: bytes, key: str, field: bytes) -> bytes:
        """As `appended`, if the hash ``key`` has no such field yet.

        To be before the command that may write the field, in the same submission.
        """
        return b"%b%b%b%b%b%b" % (
            self._script_head,
            pack_argument(key.encode()),
            pack_argument(field),
            self._events_max,
            pack_argument(self._store.next_event_id()),
            pack_argument(event),
        )
