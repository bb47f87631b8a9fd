"""A store as one version of the program left it, and what that program answered about it.

A file of JSON lines. The first one describes the file, each other one is a key or a call:

    {"layout": 1, "commit": "4387b10", "wall_s": 1795566000.0}
    {"key": "dbos:{p0}:agents", "type": "hash", "value": {"<base64>": "<base64>"}}
    {"call": "GetAgent", "request": {"agent_id": "probe-1"}, "response": {"found": true}}

Values are in base64. A call is a read that changes nothing; its request and response are in
the JSON form of protobuf.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

DIRECTORY: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Call:
    """A call and what was answered."""

    method: str
    request: dict[str, Any]
    response: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fixture:
    """The contents of one file."""

    layout: int
    commit: str
    """Of the program that wrote the store."""
    wall_s: float
    """When the calls were made."""
    keys: list[dict[str, Any]]
    calls: list[Call]

    @classmethod
    def read(cls, path: Path) -> Fixture:
        head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return cls(
            **head,
            keys=[line for line in lines if "key" in line],
            calls=[
                Call(line["call"], line["request"], line["response"])
                for line in lines
                if "call" in line
            ],
        )

    def write(self, path: Path) -> None:
        """Write the file, in an order that does not depend on Redis."""
        head = {"layout": self.layout, "commit": self.commit, "wall_s": self.wall_s}
        calls = [
            {"call": call.method, "request": call.request, "response": call.response}
            for call in self.calls
        ]
        keys = sorted(self.keys, key=lambda line: str(line["key"]))
        lines = [json.dumps(line) for line in [head, *keys, *calls]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def restore(self, client: redis.Redis) -> None:
        """Write every key into an empty Redis."""
        for line in self.keys:
            _RESTORE[line["type"]](client, line["key"], line["value"])


def dumped(client: Any) -> Iterator[dict[str, Any]]:
    """Every key of a Redis as a line of the file."""
    for name in client.scan_iter():
        kind = client.type(name).decode()
        text = name.decode(errors="surrogateescape")
        yield {"key": text, "type": kind, "value": _DUMP[kind](client, name)}


def _text(value: bytes) -> str:
    return b64encode(value).decode()


def _dump_stream(client: Any, name: bytes) -> dict[str, Any]:
    entries = [
        [entry_id.decode(), {_text(field): _text(value) for field, value in fields.items()}]
        for entry_id, fields in client.xrange(name)
    ]
    return {"last_id": client.xinfo_stream(name)["last-generated-id"].decode(), "entries": entries}


_DUMP: Final[dict[str, Callable[[Any, bytes], Any]]] = {
    "string": lambda client, name: _text(client.get(name)),
    "hash": lambda client, name: {
        _text(field): _text(value) for field, value in sorted(client.hgetall(name).items())
    },
    "set": lambda client, name: sorted(map(_text, client.smembers(name))),
    "zset": lambda client, name: [
        [_text(member), score] for member, score in client.zrange(name, 0, -1, withscores=True)
    ],
    "list": lambda client, name: list(map(_text, client.lrange(name, 0, -1))),
    "stream": _dump_stream,
}


def _restore_stream(client: Any, name: str, value: dict[str, Any]) -> None:
    for entry_id, fields in value["entries"]:
        decoded = {b64decode(field): b64decode(text) for field, text in fields.items()}
        client.xadd(name, decoded, id=entry_id)
    client.execute_command("XSETID", name, value["last_id"])


_RESTORE: Final[dict[str, Callable[[Any, str, Any], Any]]] = {
    "string": lambda client, name, value: client.set(name, b64decode(value)),
    "hash": lambda client, name, value: client.hset(
        name, mapping={b64decode(field): b64decode(text) for field, text in value.items()}
    ),
    "set": lambda client, name, value: client.sadd(name, *map(b64decode, value)),
    "zset": lambda client, name, value: client.zadd(
        name, {b64decode(member): score for member, score in value}
    ),
    "list": lambda client, name, value: client.rpush(name, *map(b64decode, value)),
    "stream": _restore_stream,
}
