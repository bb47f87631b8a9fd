"""Keys that refuse commands inside a commit: finding them, and listing them for ``check``.

Redis executes the rest of a transaction when a command in it fails, and does not roll back. A
command of the server fails only if its key holds something else than it should, because another
program or a person has written to it. The replies show that. If they were lost with the connection,
the types of the keys show it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from dbos_actors.clock import Clock
from dbos_actors.errors import DbosError, UnavailableError
from dbos_actors.loggers import get_logger
from dbos_actors.store.batch import Batch
from dbos_actors.store.connection import Connection, ConnectionLostError
from dbos_actors.store.effects import Damage
from dbos_actors.store.resp import ReplyError, key_of, pack
from dbos_actors.store.submission import Submission

logger = get_logger(__name__)

MARKS_MAX = 10_000
"""Keys that wait to be listed; so many differ only if everything is damaged. 3 MB."""

# By the beginning of the command's name; what is not here works on a key of any type.
_TYPES: Final = {
    b"H": b"hash",
    b"Z": b"zset",
    b"X": b"stream",
    b"SADD": b"set",
    b"SREM": b"set",
    b"SMEMBERS": b"set",
    b"GET": b"string",
    b"L": b"list",
    b"RPUSH": b"list",
    # The only script among our commands appends to the event log.
    b"EVAL": b"stream",
}


async def failures(connection: Connection, batch: Batch) -> list[tuple[int, str]]:
    """Which commands of an executed batch, by index, cannot have succeeded, and why.

    Raises `ConnectionLostError`.
    """
    needed = [(i, key_of(command), _type(command[0])) for i, command in enumerate(batch.commands())]
    keys = list({key for _, key, kind in needed if kind is not None})
    if not keys:
        return []
    replies = await connection.call(b"".join([pack("TYPE", key) for key in keys]), len(keys))
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise ConnectionLostError(f"Redis does not show its state: {reply!r}")
    found = dict(zip(keys, replies, strict=True))
    return [
        (i, f"it is a {found[key].decode()}, not a {kind.decode()}")
        for i, key, kind in needed
        if kind is not None and found[key] not in (kind, b"none")
    ]


def _type(name: bytes) -> bytes | None:
    return _TYPES.get(name) or _TYPES.get(name[:1])


class Marks:
    """Lists damaged keys in the store, in the hash ``to-check``, for ``check`` to read."""

    def __init__(self, key: str, *, clock: Clock, submit: Callable[[Submission], None]) -> None:
        """``key`` names the hash; ``submit`` is the store's."""
        self._key = key
        self._clock = clock
        self._submit = submit
        # By the damaged key; those that are not known to be listed.
        self._pending: dict[str, bytes] = {}
        self._under_way = False

    def add(self, damage: Sequence[Damage]) -> None:
        """List these too, in one of the next commits."""
        for found in damage:
            error = found.error
            logger.error("key_damaged", owner=found.owner, reason=str(error))
            if error.key == self._key or len(self._pending) >= MARKS_MAX:
                continue
            fields = {
                "owner": found.owner,
                "command": error.command,
                "error": error.reason,
                "at_ms": int(self._clock.wall_s() * 1000),
            }
            self._pending[error.key] = json.dumps(fields, separators=(",", ":")).encode()
        self.flush()

    def flush(self) -> None:
        """Submit what waits, unless that is under way."""
        if not self._pending or self._under_way:
            return
        try:
            self._submit(_Marking(self, self._key, dict(self._pending)))
        except DbosError:
            return  # again with the next flush
        self._under_way = True

    def marked(self, keys: Sequence[str], *, done: bool) -> None:
        """These are listed, or (not ``done``) are to be tried again with the next flush."""
        self._under_way = False
        if done:
            for key in keys:
                self._pending.pop(key, None)


class _Marking:
    """A commit of `Marks`; nobody's memory mirrors it. A `Submission`, and its own owner."""

    __slots__ = ("_keys", "_marks", "commands", "deadline_s", "frees_memory", "key", "size_bytes")

    def __init__(self, marks: Marks, key: str, pending: dict[str, bytes]) -> None:
        self.key = "the list of damaged keys"
        fields = [part for item in pending.items() for part in item]
        self.commands: Sequence[bytes] = [pack("HSET", key, *fields)]
        self.size_bytes = len(self.commands[0])
        self.deadline_s: float | None = None
        self.frees_memory = False
        self._marks = marks
        self._keys = list(pending)

    @property
    def owner(self) -> _Marking:
        return self

    def committed(self, replies: Sequence[object] | None) -> None:  # noqa: ARG002
        self._marks.marked(self._keys, done=True)

    def refused(self, error: UnavailableError) -> None:  # noqa: ARG002
        self._marks.marked(self._keys, done=False)

    def give_up(self, error: UnavailableError) -> None:
        """Wait on: what becomes of it has to be known."""

    def store_refused(self, error: UnavailableError) -> None:
        """As an owner: there is nothing to reload."""
