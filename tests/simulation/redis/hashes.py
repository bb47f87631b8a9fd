"""Commands on hashes."""

from __future__ import annotations

from tests.simulation.redis.arguments import Arguments, integer
from tests.simulation.redis.database import Database, command
from tests.simulation.redis.replies import CommandError
from tests.simulation.redis.values import HashMap


@command("HSET", -4, needs_memory=True)
def hset(db: Database, args: Arguments) -> int:
    if len(args) % 2:
        raise CommandError("ERR wrong number of arguments for 'hset' command")
    fields = db.make(args[1], HashMap)
    before = len(fields)
    fields.update(zip(args[2::2], args[3::2], strict=True))
    db.touch(args[1])
    return len(fields) - before


@command("HSETNX", 4, needs_memory=True)
def hsetnx(db: Database, args: Arguments) -> int:
    fields = db.make(args[1], HashMap)
    if args[2] in fields:
        return 0
    fields[args[2]] = args[3]
    db.touch(args[1])
    return 1


@command("HGET", 3)
def hget(db: Database, args: Arguments) -> bytes | None:
    value: bytes | None = (db.get(args[1], HashMap) or {}).get(args[2])
    return value


@command("HMGET", -3)
def hmget(db: Database, args: Arguments) -> list[bytes | None]:
    fields = db.get(args[1], HashMap) or {}
    return [fields.get(field) for field in args[2:]]


@command("HGETALL", 2)
def hgetall(db: Database, args: Arguments) -> list[bytes]:
    fields = db.get(args[1], HashMap) or {}
    return [part for pair in fields.items() for part in pair]


@command("HKEYS", 2)
def hkeys(db: Database, args: Arguments) -> list[bytes]:
    return list(db.get(args[1], HashMap) or {})


@command("HEXISTS", 3)
def hexists(db: Database, args: Arguments) -> int:
    return int(args[2] in (db.get(args[1], HashMap) or {}))


@command("HSTRLEN", 3)
def hstrlen(db: Database, args: Arguments) -> int:
    return len((db.get(args[1], HashMap) or {}).get(args[2], b""))


@command("HLEN", 2)
def hlen(db: Database, args: Arguments) -> int:
    return len(db.get(args[1], HashMap) or {})


@command("HDEL", -3, writes=True)
def hdel(db: Database, args: Arguments) -> int:
    fields = db.get(args[1], HashMap)
    if fields is None:
        return 0
    count = sum(fields.pop(field, None) is not None for field in args[2:])
    if count:
        db.touch(args[1])
        db.drop_if_empty(args[1])
    return count


@command("HINCRBY", 4, needs_memory=True)
def hincrby(db: Database, args: Arguments) -> int:
    amount = integer(args[3])
    fields = db.get(args[1], HashMap) or {}
    try:
        value = integer(fields.get(args[2], b"0")) + amount
    except CommandError:
        raise CommandError("ERR hash value is not an integer") from None
    db.make(args[1], HashMap)[args[2]] = b"%d" % value
    db.touch(args[1])
    return value
