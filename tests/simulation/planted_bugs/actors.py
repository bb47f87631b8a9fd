"""Planted bugs in actors of any kind: their turns, their loading and their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.errors import UnavailableError
from dbos_actors.runtime.actor_cell import ActorCell, State
from dbos_actors.runtime.turn import Turn
from tests.simulation.planted_bugs.registry import planted


@planted
def a_refused_commit_reloads_nothing() -> Any:
    def refused(self: Turn, error: UnavailableError) -> None:
        self.call.fail(error)
        self.owner.turn_ended(self)

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(Turn, "refused", refused),
            patch.object(ActorCell, "store_refused", lambda *_: None),
        ):
            yield

    return plant()


@planted
def state_is_loaded_while_writes_are_in_flight() -> Any:
    async def at_once(self: ActorCell) -> None:
        self._behaviour.released()
        self._behaviour = self._make(self.key, self)
        self._state = State.LOADING

    return patch.object(ActorCell, "_await_writes", at_once)


@planted
def an_actor_leaves_memory_with_writes_in_flight() -> Any:
    def passivate(self: ActorCell) -> bool:
        if self._state is not State.READY or self._turning or self.mailbox or self._parked_messages:
            return False
        self._end()
        return True

    return patch.object(ActorCell, "passivate", passivate)


@planted
def a_run_leaves_memory_before_it_is_in_redis() -> Any:
    def evict(self: AgentActor, part: str) -> bool:
        self._runs.pop(part, None)
        self._complete = False
        return True

    return patch.object(AgentActor, "evict", evict)


@planted
def actors_keep_their_state_when_redis_lost_its_own() -> Any:
    def no_reload(self: ActorCell) -> None:
        return

    return patch.object(ActorCell, "reload", no_reload)
