"""The commands that scan a hash or a set page by page."""

from __future__ import annotations

import zlib
from typing import Any

from tests.simulation.redis.arguments import Arguments, integer
from tests.simulation.redis.database import Database, command
from tests.simulation.redis.replies import SYNTAX, CommandError
from tests.simulation.redis.values import HashMap, MemberSet


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
