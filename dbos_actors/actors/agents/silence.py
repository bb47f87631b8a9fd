"""What an agent's actor does about an agent that has not been heard from for too long."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final

from dbos_actors.actors.agents.context import RUN, AgentContext, readable
from dbos_actors.api.messages import Agent, ModuleState
from dbos_actors.domain import agents, runs
from dbos_actors.runtime import JobCell
from dbos_actors.store import pack

RUNS_FAILED_AT_ONCE: Final = 200  # in one turn; six commands each

Written = tuple[list[bytes], list[tuple[Hashable, Any]]]
"""Commands, and the changes of the actor's state that they make."""


class Lapse:
    """A message to an agent's actor: the agent has not been heard from for too long."""

    __slots__ = ()


def marked_silent(
    context: AgentContext, agent_id: str, record: bytes | None
) -> tuple[list[bytes], bytes | None]:
    """What to write about an agent that fell silent, and its new record; None: it stays as it is.

    ``record`` is the agent's; None if it is not registered.
    """
    current = readable(Agent, record)
    if current is None:
        return [], None
    update = agents.lapse(current, now_s=context.now_s())
    if update.event is None:
        return [], None
    silent = update.record.SerializeToString()
    written = pack("HSET", context.store.keys.agents, agent_id, silent)
    return [written, context.log_event(update.event)], silent


async def lapse_in_steps(
    cell: JobCell,
    context: AgentContext,
    name: str,
    *,
    failed: Callable[[Iterable[tuple[str, ModuleState]]], Written],
    marked: Callable[[], Written],
) -> None:
    """Fail the unfinished runs of an agent that has very many, then mark the agent itself.

    ``name`` is its id as it stands inside keys. ``failed`` says what to write about runs, and
    ``marked`` what to write about the agent.

    Raises `UnavailableError` or `OverloadedError`. If it raises or is cancelled, some runs may
    have failed already; a second attempt fails the others.
    """
    store = context.store
    keys = store.keys
    (members,) = await store.read(pack("SMEMBERS", keys.unfinished + name))
    parts = [RUN + request_id.decode() for request_id in members]
    for start in range(0, len(parts), RUNS_FAILED_AT_ONCE):
        step = parts[start : start + RUNS_FAILED_AT_ONCE]
        (values,) = await store.read(pack("HMGET", keys.states + name, *step))
        states = [
            (part, state)
            for part, value in zip(step, values, strict=True)
            if (state := readable(ModuleState, value)) is not None and not runs.is_finished(state)
        ]
        commands, _ = failed(states)
        await cell.commit(*commands)
        for part, _ in states:
            context.directory.changed(part[1:], cell.key)
    commands, _ = marked()
    await cell.commit(*commands)
    if commands:
        context.known.registered(cell.key, alive=False)
