"""Commands on lists."""

from __future__ import annotations

from typing import Any

from tests.simulation.redis.arguments import Arguments, integer, span
from tests.simulation.redis.database import Database, command
from tests.simulation.redis.replies import OK
from tests.simulation.redis.values import ValueList


def _push(db: Database, args: Arguments, *, left: bool) -> int:
    values = db.make(args[1], ValueList)
    if left:
        values[:0] = args[:1:-1]
    else:
        values += args[2:]
    db.touch(args[1])
    return len(values)


@command("LPUSH", -3, needs_memory=True)
def lpush(db: Database, args: Arguments) -> int:
    return _push(db, args, left=True)


@command("RPUSH", -3, needs_memory=True)
def rpush(db: Database, args: Arguments) -> int:
    return _push(db, args, left=False)


@command("LLEN", 2)
def llen(db: Database, args: Arguments) -> int:
    return len(db.get(args[1], ValueList) or [])


@command("LRANGE", 4)
def lrange(db: Database, args: Arguments) -> list[bytes]:
    start, stop = integer(args[2]), integer(args[3])
    values = db.get(args[1], ValueList) or []
    return list(values[span(start, stop, len(values))])


@command("LTRIM", 4, writes=True)
def ltrim(db: Database, args: Arguments) -> Any:
    start, stop = integer(args[2]), integer(args[3])
    values = db.get(args[1], ValueList)
    if values is not None:
        values[:] = values[span(start, stop, len(values))]
        db.touch(args[1])
        db.drop_if_empty(args[1])
    return OK


@command("LINDEX", 3)
def lindex(db: Database, args: Arguments) -> bytes | None:
    index = integer(args[2])
    values = db.get(args[1], ValueList) or []
    return values[index] if -len(values) <= index < len(values) else None
