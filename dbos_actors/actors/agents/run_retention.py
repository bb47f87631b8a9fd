"""Retention of runs: what an agent's actor does to delete its old finished ones.

`actors.agents.retention` finds which agents have any. The actor deletes them, because it may have
them in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dbos_actors.actors.agents.context import RUN, AgentContext, readable
from dbos_actors.api.messages import ModuleState
from dbos_actors.loggers import get_logger
from dbos_actors.runtime import JobCell
from dbos_actors.store import escaped, pack

logger = get_logger(__name__)

_STEP = 1_000
"""Runs deleted in one commit; takes Redis about a millisecond."""


class ForgetRuns:
    """A message to an agent's actor: delete finished runs that last changed before a moment.

    The oldest ones first, and at most ``limit``.
    """

    __slots__ = ("before_ms", "limit")

    def __init__(self, before_ms: int, limit: int = sys.maxsize) -> None:
        self.before_ms = before_ms
        self.limit = limit


async def forget_runs(
    cell: JobCell, context: AgentContext, agent_id: str, request: ForgetRuns
) -> int:
    """Delete old finished runs, from within a job of the agent's actor; returns how many.

    The module's own states stay. Raises `UnavailableError` or `OverloadedError`; then some are
    deleted and some are not.
    """
    store = context.store
    keys = store.keys
    name = escaped(agent_id)
    deleted = looked_at = 0
    before_ms = request.before_ms
    while deleted < request.limit:
        parts, unfinished = await store.read(
            pack(
                *("ZRANGE", keys.states_at + name, "-inf", f"({before_ms}", "BYSCORE"),
                *("LIMIT", looked_at, _STEP),
            ),
            pack("SMEMBERS", keys.unfinished + name),
        )
        if not parts:
            return deleted
        kept = {RUN.encode() + request_id for request_id in unfinished}
        old = [part for part in parts if part[:1] == RUN.encode() and part not in kept]
        looked_at += len(parts) - len(old)
        old = old[: request.limit - deleted]
        if old:
            await _delete_runs(cell, context, agent_id, old)
            deleted += len(old)
    return deleted


async def _delete_runs(
    cell: JobCell, context: AgentContext, agent_id: str, parts: Sequence[bytes]
) -> None:
    keys = context.store.keys
    name = escaped(agent_id)
    (values,) = await context.store.read(pack("HMGET", keys.states + name, *parts))
    of_module: dict[str, list[bytes]] = {}
    unreadable: list[bytes] = []
    for part, value in zip(parts, values, strict=True):
        state = readable(ModuleState, value)
        if state is None:
            unreadable.append(part)
        else:
            of_module.setdefault(state.module_name, []).append(part)
    if unreadable:
        # Nobody knows any more which module they are of.
        logger.warning("unreadable_runs_deleted", agent=agent_id, runs=len(unreadable))
        (modules,) = await context.store.read(pack("SMEMBERS", keys.modules + name))
        for module in modules:
            of_module.setdefault(module.decode(), []).extend(unreadable)
    commands = [
        pack("HDEL", keys.states + name, *parts),
        pack("ZREM", keys.states_at + name, *parts),
    ]
    for module, members in of_module.items():
        commands.append(pack("ZREM", f"{keys.states_of}{name}:{escaped(module)}", *members))
    for part in parts:
        request_key = keys.request + escaped(part[1:].decode())
        commands.append(pack("ZREM", request_key, agent_id))
    await cell.commit(*commands, frees_memory=True)
    for part in parts:
        context.directory.forget_run(part[1:].decode(), agent_id)
