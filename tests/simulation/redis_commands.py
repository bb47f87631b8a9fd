"""Redis commands over a dict: what each does to the data, and what it answers.

Pure and deterministic: time is an argument, nothing is random, and what real
servers leave unspecified (the order of a set, how much a scan returns) has one
answer here. `test_redis_commands.py` compares it with a real server, command by
command. Only what the service and its tests use is here; anything else is an
unknown command, loudly.

A command that changes data calls `Database.touch`, which is what WATCH and the
append-only log go by.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.simulation.redis_values import (
    STREAM_ID_MAX,
    EventStream,
    SortedSet,
    StreamId,
    shown_id,
)

Arguments = list[bytes]


class CommandError(Exception):
    """An error reply; the text begins with its code."""


class Simple(str):
    """A simple string reply, such as OK."""

    __slots__ = ()


class NullArray:
    """The reply of an EXEC whose watched keys were touched."""


OK: Final = Simple("OK")
NULL_ARRAY: Final = NullArray()
WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
SYNTAX: Final = "ERR syntax error"
NOT_INTEGER: Final = "ERR value is not an integer or out of range"
NOT_FLOAT: Final = "ERR value is not a valid float"
BAD_STREAM_ID: Final = "ERR Invalid stream ID specified as stream command argument"

# Of an approximately trimmed stream: real servers drop whole nodes of so many entries.
STREAM_NODE_ENTRIES = 100


@dataclass(frozen=True, slots=True)
class Command:
    """How a command is called and what a refusing server thinks of it."""

    run: Callable[[Database, Arguments], Any]
    arity: int
    """Arguments with the name; negative: at least so many."""
    writes: bool = False
    needs_memory: bool = False


COMMANDS: dict[bytes, Command] = {}


def command(
    name: str, arity: int, *, writes: bool = False, needs_memory: bool = False
) -> Callable[[Callable[[Database, Arguments], Any]], Callable[[Database, Arguments], Any]]:
    """Register a command."""

    def register(run: Callable[[Database, Arguments], Any]) -> Callable[[Database, Arguments], Any]:
        COMMANDS[name.encode()] = Command(run, arity, writes or needs_memory, needs_memory)
        return run

    return register


def lookup(arguments: Arguments) -> Command:
    """The command, its arity checked. Raises `CommandError`."""
    name = arguments[0].upper()
    found = COMMANDS.get(name)
    if found is None:
        shown = arguments[0].decode(errors="replace")
        raise CommandError(f"ERR unknown command '{shown}', with args beginning with: ")
    check_arity(name, arguments, found.arity)
    return found


def check_arity(name: bytes, arguments: Arguments, arity: int) -> None:
    """Raises `CommandError` if the number of arguments is wrong."""
    if len(arguments) != arity if arity > 0 else len(arguments) < -arity:
        raise CommandError(f"ERR wrong number of arguments for '{name.decode().lower()}' command")


class Database:
    """The data of one server."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.values: dict[bytes, Any] = {}
        self.expires_ms: dict[bytes, int] = {}
        self.changes: dict[bytes, int] = {}
        """How often a key was changed; what WATCH compares."""
        self.dirty = 0

    def execute(self, arguments: Arguments, now_ms: int) -> Any:
        """Run one command and return its reply; an error reply is a `CommandError`, returned."""
        self.now_ms = now_ms
        try:
            return lookup(arguments).run(self, arguments)
        except CommandError as error:
            return error

    # ------------------------------------------------------------ for commands

    def touch(self, key: bytes) -> None:
        """The key's value has changed."""
        self.changes[key] = self.changes.get(key, 0) + 1
        self.dirty += 1

    def get(self, key: bytes, kind: type) -> Any:
        """The key's value, which must be of this kind; None if there is none."""
        value = self.peek(key)
        if value is not None and type(value) is not kind:
            raise CommandError(WRONG_TYPE)
        return value

    def make(self, key: bytes, kind: type) -> Any:
        """The key's value, made if there is none."""
        value = self.get(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def peek(self, key: bytes) -> Any:
        """The key's value of any kind, unless it has expired."""
        expires_ms = self.expires_ms.get(key)
        if expires_ms is not None and expires_ms <= self.now_ms:
            self.delete(key)
        return self.values.get(key)

    def delete(self, key: bytes) -> bool:
        """Whether there was something."""
        self.expires_ms.pop(key, None)
        if self.values.pop(key, None) is None:
            return False
        self.touch(key)
        return True

    def drop_if_empty(self, key: bytes) -> None:
        if not self.values[key]:
            del self.values[key]
            self.expires_ms.pop(key, None)


def integer(text: bytes) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    plain = digits.isdigit() and (digits == b"0" or digits[:1] != b"0") and text != b"-0"
    if not plain or not -(2**63) <= int(text) < 2**63:
        raise CommandError(NOT_INTEGER)
    return int(text)


def number(text: bytes, problem: str = NOT_FLOAT) -> float:
    try:
        value = float(text)
    except ValueError:
        raise CommandError(problem) from None
    if math.isnan(value) or text != text.strip() or b"_" in text:
        raise CommandError(problem)
    return value


def shown(value: float) -> bytes:
    """A double as Redis writes it."""
    if math.isinf(value):
        return b"inf" if value > 0 else b"-inf"
    if value == int(value) and abs(value) < 1e17:
        return b"%d" % int(value)
    return repr(value).encode()


# ------------------------------------------------------------------- strings


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


# ---------------------------------------------------------------------- keys


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


class HashMap(dict[bytes, bytes]):
    """A hash."""


class MemberSet(dict[bytes, None]):
    """A set; ordered by insertion."""


class ValueList(list[bytes]):
    """A list."""


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


# -------------------------------------------------------------------- hashes


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


@command("HSCAN", -3)
def hscan(db: Database, args: Arguments) -> list[Any]:
    cursor, flat = _scan(db.get(args[1], HashMap) or {}, args[2], args[3:])
    fields = db.get(args[1], HashMap) or {}
    return [cursor, [part for field in flat for part in (field, fields[field])]]


@command("SSCAN", -3)
def sscan(db: Database, args: Arguments) -> list[Any]:
    return list(_scan(db.get(args[1], MemberSet) or {}, args[2], args[3:]))


def _scan(names: dict[bytes, Any], cursor: bytes, options: Arguments) -> tuple[bytes, list[bytes]]:
    """Names by their checksum, so that what stays is met once whatever comes and goes."""
    try:
        start = int(cursor)
    except ValueError:
        raise CommandError("ERR invalid cursor") from None
    count = 10
    if options:
        if len(options) != 2 or options[0].upper() != b"COUNT":
            raise CommandError(SYNTAX)
        count = integer(options[1])
        if count < 1:
            raise CommandError(SYNTAX)
    ordered = sorted((zlib.crc32(name), name) for name in names)
    rest = [pair for pair in ordered if pair[0] >= start]
    page = rest[:count]
    while page and len(page) < len(rest) and rest[len(page)][0] == page[-1][0]:
        page.append(rest[len(page)])
    following = b"%d" % (page[-1][0] + 1) if len(page) < len(rest) else b"0"
    return following, [name for _, name in page]


# ---------------------------------------------------------------------- sets


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


# --------------------------------------------------------------------- lists


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


def _span(start: int, stop: int, size: int) -> slice:
    """A range given by two inclusive indexes, negative ones from the end."""
    start = max(start + size if start < 0 else start, 0)
    stop = stop + size if stop < 0 else stop
    return slice(start, max(stop + 1, start))


@command("LRANGE", 4)
def lrange(db: Database, args: Arguments) -> list[bytes]:
    start, stop = integer(args[2]), integer(args[3])
    values = db.get(args[1], ValueList) or []
    return list(values[_span(start, stop, len(values))])


@command("LTRIM", 4, writes=True)
def ltrim(db: Database, args: Arguments) -> Any:
    start, stop = integer(args[2]), integer(args[3])
    values = db.get(args[1], ValueList)
    if values is not None:
        values[:] = values[_span(start, stop, len(values))]
        db.touch(args[1])
        db.drop_if_empty(args[1])
    return OK


@command("LINDEX", 3)
def lindex(db: Database, args: Arguments) -> bytes | None:
    index = integer(args[2])
    values = db.get(args[1], ValueList) or []
    return values[index] if -len(values) <= index < len(values) else None


# --------------------------------------------------------------- sorted sets


@command("ZADD", -4, needs_memory=True)
def zadd(db: Database, args: Arguments) -> int:
    only_new = only_old = changed_too = greater = less = False
    at = 2
    while at < len(args):
        match args[at].upper():
            case b"NX":
                only_new = True
            case b"XX":
                only_old = True
            case b"CH":
                changed_too = True
            case b"GT":
                greater = True
            case b"LT":
                less = True
            case _:
                break
        at += 1
    pairs = args[at:]
    if not pairs or len(pairs) % 2:
        raise CommandError(SYNTAX)
    if only_new and only_old:
        raise CommandError("ERR XX and NX options at the same time are not compatible")
    if (only_new and (greater or less)) or (greater and less):
        raise CommandError("ERR GT, LT, and/or NX options at the same time are not compatible")
    scores = [number(text) for text in pairs[::2]]
    members: SortedSet | None = db.get(args[1], SortedSet)
    if members is None:
        if only_old:
            return 0
        members = db.make(args[1], SortedSet)
    added = changed = 0
    for score, member in zip(scores, pairs[1::2], strict=True):
        old = members.scores.get(member)
        if old is None:
            if not only_old:
                members.put(member, score)
                added += 1
        elif (
            not only_new
            and old != score
            and not (greater and score < old)
            and not (less and score > old)
        ):
            members.put(member, score)
            changed += 1
    if added or changed:
        db.touch(args[1])
    return added + changed if changed_too else added


@command("ZREM", -3, writes=True)
def zrem(db: Database, args: Arguments) -> int:
    members: SortedSet | None = db.get(args[1], SortedSet)
    if members is None:
        return 0
    count = sum(members.remove(member) for member in args[2:])
    if count:
        db.touch(args[1])
        db.drop_if_empty(args[1])
    return count


@command("ZCARD", 2)
def zcard(db: Database, args: Arguments) -> int:
    return len(db.get(args[1], SortedSet) or ())


@command("ZSCORE", 3)
def zscore(db: Database, args: Arguments) -> bytes | None:
    score = _sorted_set(db, args[1]).scores.get(args[2])
    return None if score is None else shown(score)


@command("ZRANK", 3)
def zrank(db: Database, args: Arguments) -> int | None:
    return _sorted_set(db, args[1]).rank(args[2])


@command("ZREVRANK", 3)
def zrevrank(db: Database, args: Arguments) -> int | None:
    members = _sorted_set(db, args[1])
    rank = members.rank(args[2])
    return None if rank is None else len(members) - 1 - rank


@command("ZCOUNT", 4)
def zcount(db: Database, args: Arguments) -> int:
    within = _score_bounds(args[2], args[3])
    return sum(within(score) for score, _ in _sorted_set(db, args[1]).ordered)


@command("ZRANGEBYSCORE", -4)
def zrangebyscore(db: Database, args: Arguments) -> list[bytes]:
    members: list[bytes] = zrange(db, [*args[:4], b"BYSCORE", *args[4:]])
    return members


def _remove(db: Database, key: bytes, members: list[bytes]) -> int:
    count: int = zrem(db, [b"ZREM", key, *members]) if members else 0
    return count


@command("ZREMRANGEBYSCORE", 4, writes=True)
def zremrangebyscore(db: Database, args: Arguments) -> int:
    within = _score_bounds(args[2], args[3])
    found = [member for score, member in _sorted_set(db, args[1]).ordered if within(score)]
    return _remove(db, args[1], found)


@command("ZREMRANGEBYRANK", 4, writes=True)
def zremrangebyrank(db: Database, args: Arguments) -> int:
    ordered = _sorted_set(db, args[1]).ordered
    chosen = ordered[_span(integer(args[2]), integer(args[3]), len(ordered))]
    found = [member for _, member in chosen]
    return _remove(db, args[1], found)


@command("ZRANGE", -4)
def zrange(db: Database, args: Arguments) -> list[bytes]:
    key, first, last = args[1:4]
    by = b""
    reverse = with_scores = False
    limit: tuple[int, int] | None = None
    options = iter(args[4:])
    for option in options:
        match option.upper():
            case (b"BYSCORE" | b"BYLEX") as kind:
                by = kind
            case b"REV":
                reverse = True
            case b"WITHSCORES":
                with_scores = True
            case b"LIMIT":
                offset, count = next(options, None), next(options, None)
                if offset is None or count is None:
                    raise CommandError(SYNTAX)
                limit = integer(offset), integer(count)
            case _:
                raise CommandError(SYNTAX)
    if limit is not None and not by:
        raise CommandError(
            "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX"
        )
    if with_scores and by == b"BYLEX":
        raise CommandError("ERR syntax error, WITHSCORES not supported in combination with BYLEX")
    low, high = (last, first) if reverse and by else (first, last)
    if by == b"BYSCORE":
        within = _score_bounds(low, high)
        found = [pair for pair in _sorted_set(db, key).ordered if within(pair[0])]
    elif by == b"BYLEX":
        between = _lex_bounds(low, high)
        found = [pair for pair in _sorted_set(db, key).ordered if between(pair[1])]
    else:
        start, stop = integer(first), integer(last)
        ordered = _sorted_set(db, key).ordered
        found = (ordered[::-1] if reverse else ordered)[_span(start, stop, len(ordered))]
    if by and reverse:
        found = found[::-1]
    if limit is not None:
        offset_, count_ = limit
        if offset_ < 0:
            found = []
        found = found[offset_:] if count_ < 0 else found[offset_ : offset_ + count_]
    if with_scores:
        return [part for score, member in found for part in (member, shown(score))]
    return [member for _, member in found]


def _sorted_set(db: Database, key: bytes) -> SortedSet:
    members: SortedSet | None = db.get(key, SortedSet)
    return SortedSet() if members is None else members


def _score_bounds(low: bytes, high: bytes) -> Callable[[float], bool]:
    problem = "ERR min or max is not a float"
    low_open, high_open = low[:1] == b"(", high[:1] == b"("
    from_ = number(low[1:] if low_open else low, problem)
    to = number(high[1:] if high_open else high, problem)

    def within(score: float) -> bool:
        return (score > from_ if low_open else score >= from_) and (
            score < to if high_open else score <= to
        )

    return within


def _lex_bounds(low: bytes, high: bytes) -> Callable[[bytes], bool]:
    for bound in (low, high):
        if bound not in (b"-", b"+") and bound[:1] not in (b"(", b"["):
            raise CommandError("ERR min or max not valid string range item")

    def above(member: bytes) -> bool:
        if low in (b"-", b"+"):
            return low == b"-"
        return member > low[1:] if low[:1] == b"(" else member >= low[1:]

    def below(member: bytes) -> bool:
        if high in (b"-", b"+"):
            return high == b"+"
        return member < high[1:] if high[:1] == b"(" else member <= high[1:]

    return lambda member: above(member) and below(member)


# ------------------------------------------------------------------- streams


def _stream_id(text: bytes, default_number: int = 0) -> StreamId:
    ms, dash, sequence = text.partition(b"-")
    if not ms.isdigit() or (dash and not sequence.isdigit()):
        raise CommandError(BAD_STREAM_ID)
    parsed = int(ms), int(sequence) if dash else default_number
    if max(parsed) >= 2**64:
        raise CommandError(BAD_STREAM_ID)
    return parsed


@command("XADD", -5, needs_memory=True)
def xadd(db: Database, args: Arguments) -> bytes:
    at = 2
    length_max: int | None = None
    roughly = False
    if args[at].upper() == b"MAXLEN":
        at += 1
        if args[at] in (b"~", b"="):
            roughly = args[at] == b"~"
            at += 1
        length_max = integer(args[at])
        at += 1
    stream_id = _stream_id(args[at])
    fields = args[at + 1 :]
    if not fields or len(fields) % 2:
        raise CommandError("ERR wrong number of arguments for 'xadd' command")
    if stream_id == (0, 0):
        raise CommandError("ERR The ID specified in XADD must be greater than 0-0")
    stream: EventStream | None = db.get(args[1], EventStream)
    if stream is not None and stream_id <= stream.last_id:
        raise CommandError(
            "ERR The ID specified in XADD is equal or smaller than the target stream top item"
        )
    stream = db.make(args[1], EventStream)
    stream.entries.append((stream_id, fields))
    stream.last_id = stream_id
    stream.added += 1
    if length_max is not None:
        _trim(stream, length_max, roughly=roughly)
    db.touch(args[1])
    return shown_id(stream_id)


def _trim(stream: EventStream, length_max: int, *, roughly: bool) -> int:
    excess = max(len(stream) - length_max, 0)
    if roughly:
        excess -= excess % STREAM_NODE_ENTRIES
    del stream.entries[:excess]
    return excess


@command("XTRIM", -4, writes=True)
def xtrim(db: Database, args: Arguments) -> int:
    roughly = args[3] == b"~"
    stream = db.get(args[1], EventStream)
    if stream is None:
        return 0
    match args[2].upper():
        case b"MAXLEN":
            removed = _trim(stream, integer(args[-1]), roughly=roughly)
        case b"MINID":
            removed = _forget_below(stream, _stream_id(args[-1]))
        case _:
            raise CommandError(SYNTAX)
    if removed:
        db.touch(args[1])
    return removed


def _forget_below(stream: EventStream, stream_id: StreamId) -> int:
    kept = stream.between(stream_id, STREAM_ID_MAX)
    removed = len(stream) - len(kept)
    stream.entries = kept
    return removed


@command("XLEN", 2)
def xlen(db: Database, args: Arguments) -> int:
    return len(db.get(args[1], EventStream) or ())


@command("XRANGE", -4)
def xrange(db: Database, args: Arguments) -> list[Any]:
    return _entries(db, args, low=args[2], high=args[3], reverse=False)


@command("XREVRANGE", -4)
def xrevrange(db: Database, args: Arguments) -> list[Any]:
    return _entries(db, args, low=args[3], high=args[2], reverse=True)


def _entries(db: Database, args: Arguments, *, low: bytes, high: bytes, reverse: bool) -> list[Any]:
    from_, to = _low_id(low), _high_id(high)
    count: int | None = None
    if len(args) > 4:
        if len(args) != 6 or args[4].upper() != b"COUNT":
            raise CommandError(SYNTAX)
        count = max(integer(args[5]), 0)
    stream = db.get(args[1], EventStream)
    if stream is None:
        return []
    found = stream.between(from_, to)
    if reverse:
        found = found[::-1]
    return [[shown_id(stream_id), list(fields)] for stream_id, fields in found[:count]]


def _low_id(text: bytes) -> StreamId:
    if text == b"-":
        return 0, 0
    if text == b"+":
        return STREAM_ID_MAX
    if text[:1] != b"(":
        return _stream_id(text)
    ms, sequence = _stream_id(text[1:])
    return (ms, sequence + 1) if sequence < 2**64 - 1 else (ms + 1, 0)


def _high_id(text: bytes) -> StreamId:
    if text == b"+":
        return STREAM_ID_MAX
    if text == b"-":
        return 0, 0
    if text[:1] != b"(":
        return _stream_id(text, 2**64 - 1)
    ms, sequence = _stream_id(text[1:], 2**64 - 1)
    return (ms, sequence - 1) if sequence else (ms - 1, 2**64 - 1)


@command("XINFO", -2)
def xinfo(db: Database, args: Arguments) -> list[Any]:
    if len(args) != 3 or args[1].upper() != b"STREAM":
        raise CommandError("ERR the simulation knows XINFO STREAM key only")
    stream = db.get(args[2], EventStream)
    if stream is None:
        raise CommandError("ERR no such key")
    return [
        b"length",
        len(stream),
        b"last-generated-id",
        shown_id(stream.last_id),
        b"entries-added",
        stream.added,
    ]
