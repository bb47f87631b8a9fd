"""The supervisor of a family of virtual actors: routing, activation, passivation.

Every key names an actor that exists for ever and is resident on demand. The
first message for a key activates it; idle ones are passivated by a clock hand
that goes round the resident cells and gives each one second chance, so that
a message costs no bookkeeping beyond one flag.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from dbos_actors.clock import Clock
from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.runtime.actor_cell import ActorCell, State
from dbos_actors.runtime.call import Call, Waiter
from dbos_actors.runtime.limits import SupervisorLimits
from dbos_actors.runtime.mailbox_budget import MailboxBudget
from dbos_actors.runtime.turn import Behaviour, CommitLog


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStatistics:
    """A snapshot of a family of actors."""

    resident: int
    quarantined: int
    mailbox_messages: int
    mailbox_messages_max: int
    mailbox_bytes: int
    activations: int
    passivations: int


# How many cells the hand looks at for one to evict before it gives up: with that
# many in a row busy, the machine is overloaded rather than full.
_EVICTION_PROBES = 256


def _weightless(request: Any) -> int:  # noqa: ARG001
    return 0


class Supervisor:
    """Routes messages to the actors of one family and supervises their tasks."""

    def __init__(
        self,
        *,
        make: Callable[[str, ActorCell], Behaviour],
        log: CommitLog,
        clock: Clock,
        limits: SupervisorLimits,
        size_of: Callable[[Any], int] = _weightless,
    ) -> None:
        """``size_of`` gives the bytes that a request holds; see `MailboxBudget`."""
        self._make = make
        self._log = log
        self._clock = clock
        self._limits = limits
        self._mailbox_budget = MailboxBudget(limits.mailbox_bytes, size_of)
        self._cells: dict[str, ActorCell] = {}
        self._nursery: trio.Nursery | None = None
        # What the hand has yet to pass in this lap, next one last. What it has passed is not
        # kept, so that cells which have left memory are freed.
        self._lap: list[ActorCell] = []
        self._lap_size = 0
        self._activations = 0
        self._passivations = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the actors' tasks until cancelled; passivate idle ones."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._sweep()
            finally:
                self._nursery = None

    def deliver(self, key: str, call: Call) -> None:
        """Hand ``call`` to the actor of ``key``, activating it if need be."""
        cell = self._cells.get(key)
        if cell is None:
            try:
                cell = self._activate(key)
            except (OverloadedError, UnavailableError) as error:
                call.fail(error)
                return
        cell.deliver(call)

    async def ask(self, key: str, request: Any, *, deadline_s: float | None = None) -> Any:
        """Send ``request`` to the actor of ``key`` and return its answer.

        ``deadline_s`` is on the monotonic clock: when a store that is away should have answered.

        Raises what the actor answers with: `RefusedError`, `OverloadedError`,
        `UnavailableError`, or the exception of a bug in it. If cancelled, the message is dropped
        if it still waits for its turn; else the turn is committed all the same.
        """
        waiter = Waiter(request, deadline=deadline_s)
        self.deliver(key, waiter)
        return await waiter.wait()

    def get(self, key: str) -> ActorCell | None:
        """The cell of ``key`` if it is resident."""
        return self._cells.get(key)

    def reload_all(self) -> None:
        """Have every actor load its state again: the store is not where they left it."""
        for cell in list(self._cells.values()):
            cell.reload()

    def statistics(self) -> SupervisorStatistics:
        """Count what is resident and what waits. Visits every cell."""
        waiting = [cell.waiting for cell in self._cells.values()]
        return SupervisorStatistics(
            resident=len(self._cells),
            quarantined=sum(c.state is State.QUARANTINED for c in self._cells.values()),
            mailbox_messages=sum(waiting),
            mailbox_messages_max=max(waiting, default=0),
            mailbox_bytes=self._mailbox_budget.size_bytes,
            activations=self._activations,
            passivations=self._passivations,
        )

    def _activate(self, key: str) -> ActorCell:
        if self._nursery is None:
            raise UnavailableError("the actors are not running")
        if len(self._cells) >= self._limits.max_resident and not self._evict_one():
            raise OverloadedError(
                "the table of resident actors", limit=self._limits.max_resident, unit="actors"
            )
        cell = ActorCell(
            key,
            make=self._make,
            log=self._log,
            clock=self._clock,
            limits=self._limits.actor,
            mailbox_budget=self._mailbox_budget,
            unroute=self._unroute,
        )
        self._cells[key] = cell
        self._activations += 1
        self._nursery.start_soon(cell.run, name=key)
        return cell

    def _unroute(self, cell: ActorCell) -> None:
        del self._cells[cell.key]
        self._passivations += 1

    def _next_cell(self) -> ActorCell | None:
        """Where the hand points next; a lap is a snapshot, so it survives what comes and goes."""
        while True:
            if not self._lap:
                self._lap = list(reversed(self._cells.values()))
                self._lap_size = len(self._lap)
                if not self._lap:
                    return None
            cell = self._lap.pop()
            if cell.state is not State.PASSIVE:
                return cell

    def _evict_one(self) -> bool:
        for _ in range(_EVICTION_PROBES):
            cell = self._next_cell()
            if cell is None:
                return False
            if self._is_idle(cell) and cell.passivate():
                return True
        # Everyone was active since the last lap: recency tells nothing, so take any idle one.
        return any(
            cell.passivate()
            for cell in (self._next_cell() for _ in range(_EVICTION_PROBES))
            if cell is not None
        )

    def _is_idle(self, cell: ActorCell) -> bool:
        """Second chance: whether it had no message since the last visit."""
        if cell.active:
            cell.active = False
            cell.idle_since_s = self._clock.monotonic_s()
            return False
        return True

    async def _sweep(self) -> None:
        """One lap per `idle_s`, a slice a second."""
        idle_s = self._limits.idle_s
        pause_s = min(1.0, idle_s / 10)
        while True:
            await trio.sleep(pause_s)
            due_s = self._clock.monotonic_s() - idle_s
            # Of the lap as it began: by what is left of it, it would never end.
            size = max(self._lap_size, len(self._cells))
            for _ in range(math.ceil(size * pause_s / idle_s)):
                cell = self._next_cell()
                if cell is None:
                    break
                if self._is_idle(cell) and cell.idle_since_s <= due_s:
                    cell.passivate()
