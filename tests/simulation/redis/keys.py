"""Commands on keys of any kind, and on their times to live."""

from __future__ import annotations

from typing import Any, Final

from tests.simulation.redis.arguments import Arguments, integer
from tests.simulation.redis.database import COMMANDS, Database, command
from tests.simulation.redis.replies import OK, CommandError, Simple
from tests.simulation.redis.values import EventStream, HashMap, MemberSet, SortedSet, ValueList


@command("DEL", -2, writes=True)
def delete(db: Database, args: Arguments) -> int:
    return sum([db.peek(key) is not None and db.delete(key) for key in args[1:]])


COMMANDS[b"UNLINK"] = COMMANDS[b"DEL"]


@command("EXISTS", -2)
def exists(db: Database, args: Arguments) -> int:
    return sum(db.peek(key) is not None for key in args[1:])


@command("TYPE", 2)
def type_(db: Database, args: Arguments) -> Simple:
    value = db.peek(args[1])
    return Simple(_TYPE_NAMES[type(value)])


_TYPE_NAMES: Final = {
    type(None): "none",
    bytes: "string",
    HashMap: "hash",
    MemberSet: "set",
    ValueList: "list",
    SortedSet: "zset",
    EventStream: "stream",
}


@command("MEMORY", -3)
def memory(db: Database, args: Arguments) -> int | None:
    """About what a real server says: enough to tell large from small."""
    value = db.peek(args[2])
    if value is None:
        return None
    parts = value.items() if type(value) is HashMap else [(b"", str(value).encode())]
    return sum(64 + len(name) + len(text) for name, text in parts)


@command("KEYS", 2)
def keys(db: Database, args: Arguments) -> list[bytes]:
    if args[1] != b"*":
        raise CommandError("ERR the simulation knows KEYS * only")
    return [key for key in list(db.values) if db.peek(key) is not None]


@command("DBSIZE", 1)
def dbsize(db: Database, args: Arguments) -> int:
    return len(keys(db, [b"KEYS", b"*"]))


@command("FLUSHALL", -1, writes=True)
def flushall(db: Database, args: Arguments) -> Any:
    for key in list(db.values):
        db.delete(key)
    return OK


def _expire_at(db: Database, key: bytes, at_ms: int) -> int:
    if db.peek(key) is None:
        return 0
    if at_ms <= db.now_ms:
        db.delete(key)
    else:
        db.expires_ms[key] = at_ms
        db.touch(key)
    return 1


@command("EXPIRE", 3, writes=True)
def expire(db: Database, args: Arguments) -> int:
    return _expire_at(db, args[1], db.now_ms + integer(args[2]) * 1000)


@command("PEXPIRE", 3, writes=True)
def pexpire(db: Database, args: Arguments) -> int:
    return _expire_at(db, args[1], db.now_ms + integer(args[2]))


@command("PEXPIREAT", 3, writes=True)
def pexpireat(db: Database, args: Arguments) -> int:
    return _expire_at(db, args[1], integer(args[2]))


@command("PERSIST", 2, writes=True)
def persist(db: Database, args: Arguments) -> int:
    if db.peek(args[1]) is None or db.expires_ms.pop(args[1], None) is None:
        return 0
    db.touch(args[1])
    return 1


@command("PTTL", 2)
def pttl(db: Database, args: Arguments) -> int:
    if db.peek(args[1]) is None:
        return -2
    expires_ms = db.expires_ms.get(args[1])
    return -1 if expires_ms is None else expires_ms - db.now_ms


@command("TTL", 2)
def ttl(db: Database, args: Arguments) -> int:
    left_ms: int = pttl(db, args)
    return left_ms if left_ms < 0 else (left_ms + 500) // 1000
