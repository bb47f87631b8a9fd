"""Whether the Redis at hand keeps what it acknowledges."""

from __future__ import annotations

from typing import Literal

from dbos_actors.errors import UnsafeStoreError
from dbos_actors.store.connection import Connection
from dbos_actors.store.resp import ReplyError, pack
from dbos_actors.store.settings import StoreWarning

_DIRECTIVES = ("appendonly", "appendfsync", "maxmemory-policy")


async def check_safety(
    connection: Connection, *, durability: Literal["replay", "fsync"], require_safe: bool
) -> tuple[StoreWarning, ...]:
    """What makes acknowledged writes unsafe, each by name; empty if nothing does.

    Reads the configuration, or what ``INFO`` shows of it when ``CONFIG`` is forbidden.

    Raises:
        UnsafeStoreError: ``require_safe`` and something does; or ``durability`` is fsync and
            ``appendfsync`` is known not to be ``always``.
        ConnectionLostError: could not ask.
    """
    found = await _configuration(connection)
    warnings = judge(found)
    if durability == "fsync" and found.get("appendfsync", "always") != "always":
        raise UnsafeStoreError(
            f"durability fsync needs appendfsync always, Redis has {found['appendfsync']}"
        )
    if durability == "fsync" and found.get("appendonly", "yes") != "yes":
        raise UnsafeStoreError("durability fsync needs appendonly yes")
    if require_safe and warnings:
        raise UnsafeStoreError("; ".join(warning.text for warning in warnings))
    return warnings


def judge(found: dict[str, str]) -> tuple[StoreWarning, ...]:
    """The warnings a configuration deserves; directives that could not be read are missing."""
    warnings: list[StoreWarning] = []
    unknown = [name for name in _DIRECTIVES if name not in found]
    if unknown:
        text = f"cannot read {', '.join(unknown)}: CONFIG is forbidden to this user"
        warnings.append(StoreWarning("config-unreadable", text))
    if found.get("appendonly", "yes") != "yes":
        text = "appendonly is off: a restart of Redis loses acknowledged writes"
        warnings.append(StoreWarning("appendonly", text))
    elif found.get("appendfsync", "everysec") == "no":
        text = "appendfsync is no: a crash of Redis's machine may lose more than can be sent again"
        warnings.append(StoreWarning("appendfsync", text))
    policy = found.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        text = f"maxmemory-policy is {policy}: Redis may drop data when memory is short"
        warnings.append(StoreWarning("maxmemory-policy", text))
    return tuple(warnings)


async def _configuration(connection: Connection) -> dict[str, str]:
    commands = [pack("CONFIG", "GET", name) for name in _DIRECTIVES]
    commands += [pack("INFO", "persistence"), pack("INFO", "memory")]
    *values, persistence, memory = await connection.call(b"".join(commands), len(commands))
    found: dict[str, str] = {}
    info = _info(persistence) | _info(memory)
    if "aof_enabled" in info:
        found["appendonly"] = "yes" if info["aof_enabled"] == "1" else "no"
    if "maxmemory_policy" in info:
        found["maxmemory-policy"] = info["maxmemory_policy"]
    for name, value in zip(_DIRECTIVES, values, strict=True):
        if isinstance(value, list) and len(value) == 2:
            found[name] = value[1].decode()
    return found


def _info(reply: object) -> dict[str, str]:
    if isinstance(reply, ReplyError) or not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}
