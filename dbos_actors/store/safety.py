"""Whether the Redis at hand keeps what it acknowledges, and takes what is sent to it.

This can change while the server runs: somebody sets an option, or Redis restarts with another
configuration. So it is looked at on every commit connection before anything is committed there,
and every `StoreSettings.inspection_s` after that. What was acknowledged between a change and the
next look was not protected as the settings say; nothing can tell the moment of the change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dbos_actors.store.connection import Connection
from dbos_actors.store.resp import ReplyError, pack
from dbos_actors.store.settings import StoreWarning

_DIRECTIVES = ("appendonly", "appendfsync", "maxmemory-policy")

# The longest argument that Redis reads of a command; beyond it, it closes the connection.
_ARGUMENT_LIMIT = "proto-max-bulk-len"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the settings demand of Redis."""

    durability: Literal["replay", "fsync"] = "replay"
    require_safe: bool = False
    # The longest argument that may be sent. 0: any Redis will do.
    argument_bytes: int = 0
    # The setting that it follows from, with its value, for messages.
    argument_setting: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one look at a Redis found."""

    warnings: tuple[StoreWarning, ...] = ()
    """What makes acknowledged writes unsafe, each by name."""
    violation: str | None = None
    """Why nothing may be written to it under the settings; names the setting."""
    memory_bytes: int = 0
    memory_max_bytes: int = 0
    """What it uses and what it may use; 0: no limit, or not told."""


async def inspect(connection: Connection, requirements: Requirements) -> Findings:
    """Look at the configuration, or what ``INFO`` shows of it when ``CONFIG`` is forbidden.

    Raises `ConnectionLostError`.
    """
    found = await _configuration(connection)
    return replace(
        judge(found, requirements),
        memory_bytes=_number(found.get("used_memory")),
        memory_max_bytes=_number(found.get("maxmemory")),
    )


def judge(found: dict[str, str], requirements: Requirements) -> Findings:
    """What a configuration deserves; directives that could not be read are missing."""
    warnings = _warnings(found)
    return Findings(warnings, _violation(found, warnings, requirements))


def _violation(
    found: dict[str, str], warnings: tuple[StoreWarning, ...], requirements: Requirements
) -> str | None:
    if requirements.durability == "fsync":
        for name, needed in (("appendonly", "yes"), ("appendfsync", "always")):
            if found.get(name, needed) != needed:
                return f"DBOS_DURABILITY=fsync needs {name} {needed}, Redis has {found[name]}"
    if requirements.require_safe and warnings:
        texts = "; ".join(warning.text for warning in warnings)
        return f"DBOS_REQUIRE_SAFE_REDIS is set, and {texts}"
    limit = found.get(_ARGUMENT_LIMIT, "")
    if limit.isdigit() and int(limit) < requirements.argument_bytes:
        return (
            f"Redis has {_ARGUMENT_LIMIT} {limit}, but {requirements.argument_setting} needs "
            f"{requirements.argument_bytes}"
        )
    return None


def _warnings(found: dict[str, str]) -> tuple[StoreWarning, ...]:
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
    names = (*_DIRECTIVES, _ARGUMENT_LIMIT)
    commands = [pack("CONFIG", "GET", name) for name in names]
    commands += [pack("INFO", "persistence"), pack("INFO", "memory")]
    *values, persistence, memory = await connection.call(b"".join(commands), len(commands))
    found: dict[str, str] = {}
    info = _info(persistence) | _info(memory)
    if "aof_enabled" in info:
        found["appendonly"] = "yes" if info["aof_enabled"] == "1" else "no"
    if "maxmemory_policy" in info:
        found["maxmemory-policy"] = info["maxmemory_policy"]
    for name in ("used_memory", "maxmemory"):
        if name in info:
            found[name] = info[name]
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list) and len(value) == 2:
            found[name] = value[1].decode()
    return found


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _info(reply: object) -> dict[str, str]:
    if isinstance(reply, ReplyError) or not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}
