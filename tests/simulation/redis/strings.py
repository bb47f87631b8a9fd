"""Commands on strings."""

from __future__ import annotations

from typing import Any

from tests.simulation.redis.arguments import Arguments, integer
from tests.simulation.redis.database import Database, command
from tests.simulation.redis.replies import OK, SYNTAX, CommandError


@command("GET", 2)
def get(db: Database, args: Arguments) -> bytes | None:
    value: bytes | None = db.get(args[1], bytes)
    return value


@command("SET", -3, needs_memory=True)
def set_(db: Database, args: Arguments) -> Any:
    key, value = args[1], args[2]
    only_new = only_old = keep = returns = False
    expires_ms = None
    options = iter(args[3:])
    for option in options:
        match option.upper():
            case b"NX":
                only_new = True
            case b"XX":
                only_old = True
            case b"GET":
                returns = True
            case b"KEEPTTL":
                keep = True
            case (b"PX" | b"EX" | b"PXAT") as unit:
                amount = next(options, None)
                if amount is None or expires_ms is not None:
                    raise CommandError(SYNTAX)
                scaled = integer(amount) * (1000 if unit == b"EX" else 1)
                if scaled <= 0:
                    raise CommandError("ERR invalid expire time in 'set' command")
                expires_ms = scaled if unit == b"PXAT" else db.now_ms + scaled
            case _:
                raise CommandError(SYNTAX)
    if (only_new and only_old) or (keep and expires_ms is not None):
        raise CommandError(SYNTAX)
    old = db.get(key, bytes) if returns else db.peek(key)
    if (only_new and old is not None) or (only_old and old is None):
        return old if returns else None
    db.values[key] = value
    if not keep:
        db.expires_ms.pop(key, None)
    if expires_ms is not None:
        db.expires_ms[key] = expires_ms
    db.touch(key)
    return old if returns else OK


@command("MSET", -3, needs_memory=True)
def mset(db: Database, args: Arguments) -> Any:
    if len(args) % 2 == 0:
        raise CommandError("ERR wrong number of arguments for 'mset' command")
    for key, value in zip(args[1::2], args[2::2], strict=True):
        db.values[key] = value
        db.expires_ms.pop(key, None)
        db.touch(key)
    return OK


@command("MGET", -2)
def mget(db: Database, args: Arguments) -> list[bytes | None]:
    values = [db.peek(key) for key in args[1:]]
    return [value if type(value) is bytes else None for value in values]


@command("INCRBY", 3, needs_memory=True)
def incrby(db: Database, args: Arguments) -> int:
    amount = integer(args[2])
    value = integer(db.get(args[1], bytes) or b"0") + amount
    if not -(2**63) <= value < 2**63:
        raise CommandError("ERR increment or decrement would overflow")
    db.values[args[1]] = b"%d" % value
    db.touch(args[1])
    return value


@command("INCR", 2, needs_memory=True)
def incr(db: Database, args: Arguments) -> int:
    value: int = incrby(db, [b"INCRBY", args[1], b"1"])
    return value


@command("STRLEN", 2)
def strlen(db: Database, args: Arguments) -> int:
    return len(db.get(args[1], bytes) or b"")


@command("APPEND", 3, needs_memory=True)
def append(db: Database, args: Arguments) -> int:
    value = (db.get(args[1], bytes) or b"") + args[2]
    db.values[args[1]] = value
    db.touch(args[1])
    return len(value)
