"""Commands on streams."""

from __future__ import annotations

from typing import Any

from tests.simulation.redis.arguments import Arguments, integer
from tests.simulation.redis.database import Database, command
from tests.simulation.redis.replies import BAD_STREAM_ID, SYNTAX, CommandError
from tests.simulation.redis.values import STREAM_ID_MAX, EventStream, StreamId, shown_id

# Of an approximately trimmed stream: real servers drop whole nodes of so many entries.
STREAM_NODE_ENTRIES = 100


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
