"""Commands on sorted sets."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.redis.arguments import Arguments, integer, number, shown, span
from tests.simulation.redis.database import Database, command
from tests.simulation.redis.replies import SYNTAX, CommandError
from tests.simulation.redis.values import SortedSet


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
    chosen = ordered[span(integer(args[2]), integer(args[3]), len(ordered))]
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
        found = (ordered[::-1] if reverse else ordered)[span(start, stop, len(ordered))]
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
