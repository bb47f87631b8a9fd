"""What a key's name says: its kind, the type it must have, and the ids inside."""

from __future__ import annotations

from typing import Final, NamedTuple

from dbos_actors.store import Keys, escaped

_ONE_OF_A_KIND: Final = {
    "layout": b"string",
    "commit": b"string",
    "owner": b"string",
    "agents": b"hash",
    "agents:index": b"zset",
    "agents:known": b"set",
    "agents:deleting": b"set",
    "changes": b"string",
    "tasks": b"hash",
    "tasks:journal": b"stream",
    "tasks:snapshot": b"hash",
    "to-check": b"hash",
    "events": b"stream",
}

# How many ids follow the kind.
_WITH_IDS: Final = {
    "states": (b"hash", 1),
    "states-at": (b"zset", 1),
    "states-of": (b"zset", 2),
    "modules": (b"set", 1),
    "unfinished": (b"set", 1),
    "request": (b"zset", 1),
    "results": (b"hash", 1),
    "results-at": (b"zset", 1),
}

_ESCAPED: Final = {"%3A": ":", "%7B": "{", "%7D": "}", "%25": "%"}


class Name(NamedTuple):
    """A key's name, taken apart."""

    kind: str
    type: bytes
    """As Redis's TYPE tells it."""
    ids: tuple[str, ...] = ()


def parsed(key: bytes, keys: Keys) -> Name | None:
    """What ``key`` is; None if it is none of the service's.

    Raises `ValueError` if it is of a kind with ids, but no id is written so.
    """
    rest = key.removeprefix(keys.prefix.encode())
    try:
        text = rest.decode()
    except UnicodeDecodeError:
        text = rest.decode(errors="replace")
        if text.partition(":")[0] in _WITH_IDS:
            raise ValueError("its name is no UTF-8") from None
        return None
    if text in _ONE_OF_A_KIND:
        return Name(text, _ONE_OF_A_KIND[text])
    generation = text.removeprefix("tasks:snapshot:")
    if generation != text:
        if not (generation.isascii() and generation.isdigit()):
            raise ValueError("its name ends in no number")
        return Name("tasks:snapshot:", b"list", (generation,))
    kind, *parts = text.split(":")
    if kind not in _WITH_IDS:
        return None
    type_, count = _WITH_IDS[kind]
    ids = tuple(map(_unescaped, parts))
    if len(parts) != count or "" in ids or [escaped(one) for one in ids] != parts:
        raise ValueError("its name holds no ids as the service writes them")
    return Name(kind, type_, ids)


def _unescaped(text: str) -> str:
    for escape, character in _ESCAPED.items():
        text = text.replace(escape, character)
    return text
