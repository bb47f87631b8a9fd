"""Deletion of agents: what DeleteAgent does, and who finishes a deletion that was interrupted.

A deletion takes several commits. The first one enters the agent in ``agents:deleting``; the last
one removes everything that is left, that entry included. When it is interrupted in between (Redis
away or refusing, the server stopped), the caller is told UNAVAILABLE and the entry stays. Then:

- The agent's actor finds the entry when it loads, and finishes the deletion before it takes any
  message. So nothing that was acknowledged after the interruption is deleted.
- `Deletions` makes it happen although nobody sends the agent a message: at a start before the
  server serves, later a second after the interruption, again until it succeeds.

Whether an agent is in ``agents:deleting`` is asked by its own actor alone: by the time that a
message of ours reaches it, the deletion may be finished and the agent may have registered again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import trio

from dbos_actors.actors.agents.context import RUN, AgentContext
from dbos_actors.backoff import BackoffPolicy
from dbos_actors.domain import agents
from dbos_actors.loggers import get_logger
from dbos_actors.runtime import JobCell, Supervisor, Waiter, until_available
from dbos_actors.store import Store, escaped, pack

logger = get_logger(__name__)

_DELETION_STEP = 1_000
"""Request ids unlinked in one commit; takes Redis about a millisecond."""

_RETRIES = BackoffPolicy(first_s=1.0, factor=2.0, max_s=60.0)
"""Pauses before an interrupted deletion is tried again, without jitter. An agent that can never be
deleted costs a log line a minute."""

_AT_ONCE = 100
"""Deletions under way at the same time."""


class FinishDeletion:
    """A message to an agent's actor: finish the deletion of the agent if one has begun."""

    __slots__ = ()


async def forget_agent(
    cell: JobCell, context: AgentContext, agent_id: str, *, was_known: bool
) -> None:
    """Delete everything of an agent, from within a job of its actor.

    All that is the agent's goes in the last commit. Before it, since there may be any number of
    runs, the request ids let go of the agent step by step. ``was_known``: the agent had anything
    stored, so that its deletion is an event.

    Raises `UnavailableError` or `OverloadedError`. If it raises or is cancelled, the deletion may
    have begun: see this module's head.
    """
    store = context.store
    keys = store.keys
    name = escaped(agent_id)
    # A few bytes, but of a deletion: it has to get through when Redis has no memory left.
    await cell.commit(pack("SADD", keys.agents_deleting, agent_id), frees_memory=True)
    start = 0
    while True:
        (parts,) = await store.read(
            pack("ZRANGE", keys.states_at + name, start, start + _DELETION_STEP - 1)
        )
        request_ids = [part[1:].decode() for part in parts if part[:1] == RUN.encode()]
        if request_ids:
            await cell.commit(
                *(pack("ZREM", keys.request + escaped(r), agent_id) for r in request_ids),
                frees_memory=True,
            )
        if len(parts) < _DELETION_STEP:
            break
        start += _DELETION_STEP
    if context.forget_tasks is not None:
        await context.forget_tasks(agent_id)
    (modules,) = await store.read(pack("SMEMBERS", keys.modules + name))
    indexes = [f"{keys.states_of}{name}:{escaped(module.decode())}" for module in modules]
    prefixes = (
        keys.states,
        keys.states_at,
        keys.modules,
        keys.unfinished,
        keys.results,
        keys.results_at,
    )
    commands = [
        pack("UNLINK", *(prefix + name for prefix in prefixes)),
        *(
            pack("UNLINK", *indexes[start : start + _DELETION_STEP])
            for start in range(0, len(indexes), _DELETION_STEP)
        ),
        pack("HDEL", keys.agents, agent_id),
        pack("ZREM", keys.agents_index, agent_id),
        pack("SREM", keys.agents_known, agent_id),
        pack("SREM", keys.agents_deleting, agent_id),
    ]
    if was_known:
        commands.append(context.log_event(agents.deleted(agent_id, now_s=context.now_s())))
    await cell.commit(*commands, frees_memory=True)
    context.directory.forget_agent(agent_id)
    context.known.discard(agent_id)


class Deletions:
    """Has interrupted deletions finished, however long nobody asks for these agents."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Agent id -> when to try next, monotonic, and how often in a row it has failed.
        self._waiting: dict[str, tuple[float, int]] = {}
        self._added = trio.Event()

    def interrupted(self, agent_id: str) -> None:
        """A deletion has failed, whether it had begun or not: have the actor look, soon."""
        self._waiting.setdefault(agent_id, (trio.current_time() + _RETRIES.pause_s(1), 1))
        self._added.set()

    async def run(
        self, agents: Supervisor, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Finish what an earlier server left, report started, then finish what is interrupted.

        What cannot be finished at the start is left for later: the actors of these agents take no
        message until then, and all others are served. Ends when cancelled.
        """
        begun = await until_available(self._begun)
        for agent_id in begun:
            logger.info("deletion_resumed", agent=agent_id)
        await self._try_all(agents, dict.fromkeys(begun, 1))
        task_status.started()
        while True:
            await self._wait_until_due()
            now_s = trio.current_time()
            due = {agent: count for agent, (at_s, count) in self._waiting.items() if at_s <= now_s}
            for agent_id in due:
                del self._waiting[agent_id]
            await self._try_all(agents, due)

    async def _begun(self) -> list[str]:
        """Agents whose deletion began and was not finished."""
        (members,) = await self._store.read(pack("SMEMBERS", self._store.keys.agents_deleting))
        return sorted(member.decode() for member in members)

    async def _wait_until_due(self) -> None:
        while True:
            self._added = trio.Event()
            next_s = min((at_s for at_s, _ in self._waiting.values()), default=math.inf)
            if next_s <= trio.current_time():
                return
            with trio.move_on_at(next_s):
                await self._added.wait()

    async def _try_all(self, agents: Supervisor, failures: Mapping[str, int]) -> None:
        """One attempt for each agent; an agent whose attempt fails waits longer each time."""
        names = list(failures)
        for start in range(0, len(names), _AT_ONCE):
            async with trio.open_nursery() as nursery:
                for agent_id in names[start : start + _AT_ONCE]:
                    nursery.start_soon(self._try, agents, agent_id, failures[agent_id])

    async def _try(self, agents: Supervisor, agent_id: str, failures: int) -> None:
        waiter = Waiter(FinishDeletion())
        agents.deliver(agent_id, waiter)
        try:
            await waiter.wait()
        except Exception as error:  # noqa: BLE001 - one agent's failure is not the others'
            failures += 1
            pause_s = _RETRIES.pause_s(failures)
            logger.warning("deletion_unfinished", agent=agent_id, error=str(error), retry_s=pause_s)
            self._waiting[agent_id] = (trio.current_time() + pause_s, failures)
