"""The cell of the scheduler's actor, and the incarnation in it that is in force.

The cell is never idle for its supervisor: the actor leaves memory only to be loaded again, when the
store has refused a commit or has gone back in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import trio

from dbos_actors.actors.tasks.actor import SchedulerActor
from dbos_actors.actors.tasks.context import SchedulerContext
from dbos_actors.actors.tasks.messages import Barrier, OwnCall
from dbos_actors.clock import Clock
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.runtime import ActorCell, Call, Supervisor, SupervisorLimits, Waiter

_ACTOR: Final = "the scheduler"

_RETRY_S = 1.0
"""Before a recovery that Redis did not allow is tried again."""


class ActorHost:
    """Keeps the actor, and hands it its messages."""

    def __init__(
        self, context: SchedulerContext, *, clock: Clock, size_of: Callable[[Any], int]
    ) -> None:
        """``size_of`` gives the bytes that a waiting request holds."""
        self._context = context
        self._supervisor = Supervisor(
            make=self._make,
            log=context.store,
            clock=clock,
            limits=SupervisorLimits(max_resident=1, idle_s=math.inf),
            size_of=size_of,
        )
        self._made: SchedulerActor | None = None

    def _make(self, _: str, cell: ActorCell) -> SchedulerActor:
        self._made = SchedulerActor(cell, self._context)
        return self._made

    @property
    def actor(self) -> SchedulerActor | None:
        """The incarnation whose book is complete and in force; None while it is read back."""
        made = self._made
        return made if made is not None and made.is_loaded else None

    def require(self, actor: SchedulerActor) -> None:
        """Raise `UnavailableError` unless ``actor`` is still in force and takes messages."""
        if self._made is not actor or not actor.is_ready:
            raise UnavailableError("the scheduler has started again meanwhile")

    def deliver(self, call: Call) -> None:
        """Hand the actor a message: a request of the contract, or one of `messages`."""
        refusal = self._context.readability.refusal
        if refusal:
            call.fail(UnavailableError(refusal))
        else:
            self._supervisor.deliver(_ACTOR, call)

    def start_loading(self) -> None:
        """Have the actor read back, if that is not under way."""
        if self._supervisor.get(_ACTOR) is None:
            self.deliver(OwnCall(Barrier()))

    def reload(self) -> None:
        """The store is not where we left it: start again from it."""
        self._context.readability.reset()
        self._context.rewind.spoil()
        self._context.alarm.ring()
        self._supervisor.reload_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the actor until cancelled."""
        await self._supervisor.run(task_status=task_status)

    async def load(self) -> None:
        """Have the actor loaded, if it can be read."""
        readability = self._context.readability
        while self.actor is None and not readability.refusal:
            waiter = Waiter(Barrier())
            self.deliver(waiter)
            try:
                await waiter.wait()
            except (UnavailableError, OverloadedError):
                if not readability.refusal:
                    await trio.sleep(_RETRY_S)

    async def loaded_book(self) -> TaskBook:
        """The book, once it is complete. Raises `UnavailableError`."""
        if self.actor is None:
            waiter = Waiter(Barrier())
            self.deliver(waiter)
            await waiter.wait()
        actor = self.actor
        if actor is None:
            raise UnavailableError("the scheduler is starting again")
        return actor.book
