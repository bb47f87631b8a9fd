"""Commands on sets."""

from __future__ import annotations

from tests.simulation.redis.arguments import Arguments, integer
from tests.simulation.redis.database import Database, command
from tests.simulation.redis.replies import CommandError
from tests.simulation.redis.values import MemberSet


@command("SADD", -3, needs_memory=True)
def sadd(db: Database, args: Arguments) -> int:
    members = db.make(args[1], MemberSet)
    before = len(members)
    members.update(dict.fromkeys(args[2:]))
    if len(members) != before:
        db.touch(args[1])
    return len(members) - before


@command("SREM", -3, writes=True)
def srem(db: Database, args: Arguments) -> int:
    members = db.get(args[1], MemberSet)
    if members is None:
        return 0
    before = len(members)
    for member in args[2:]:
        members.pop(member, None)
    count = before - len(members)
    if count:
        db.touch(args[1])
        db.drop_if_empty(args[1])
    return count


@command("SMEMBERS", 2)
def smembers(db: Database, args: Arguments) -> list[bytes]:
    return list(db.get(args[1], MemberSet) or {})


@command("SISMEMBER", 3)
def sismember(db: Database, args: Arguments) -> int:
    return int(args[2] in (db.get(args[1], MemberSet) or {}))


@command("SRANDMEMBER", 3)
def srandmember(db: Database, args: Arguments) -> list[bytes]:
    count = integer(args[2])
    if count < 0:
        raise CommandError("ERR the simulation knows SRANDMEMBER with distinct members only")
    return list(db.get(args[1], MemberSet) or {})[:count]


@command("SCARD", 2)
def scard(db: Database, args: Arguments) -> int:
    return len(db.get(args[1], MemberSet) or {})
