"""The world of one simulated run: servers, a Redis, clients and faults, then quiet.

The phases of a run:
1. Clients work while faults happen.
2. Everything is healed; the clients finish, and all that is under way settles.
3. Every register is read, from a server that has lived through it all, then from
   one that has just started. These reads are part of the history.

Then `verdict.judge` looks at the history, at the data itself and at the log.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

import trio

from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.errors import FencedError
from dbos_actors.runtime import ActorLimits
from dbos_actors.server import RunningServer
from dbos_actors.settings import Settings
from dbos_actors.store.ownership import OwnerProcess
from tests.simulation.clients import Client
from tests.simulation.determinism import (
    SimulatedClock,
    stream_of_chance,
)
from tests.simulation.faults import Misfortune
from tests.simulation.history import Ending, History, Outcome, StreamEndedError
from tests.simulation.linearizability import Rollback
from tests.simulation.plan import Plan
from tests.simulation.redis.deployment import SimulatedRedis
from tests.simulation.redis.node import Mode
from tests.simulation.redis.values import EventStream
from tests.simulation.servers import (
    Life,
    SimulatedServer,
)
from tests.simulation.streaming import BulkClient, StreamEnd
from tests.simulation.subscribing import AGENT, Worker
from tests.simulation.watching import Spectator, logged

HEALED_WITHIN_S: Final = 60.0
"""After the last fault: the longest lease, stall, patience and backoff together, twice."""

QUIET_S: Final = 15.0
"""Longer than anything that was under way may take: reply timeouts, backoffs, leases."""

QUARANTINE_S: Final = ActorLimits().quarantine_s


def _inflight(tasks: Scheduler) -> list[TaskRecord]:
    """Every task that is leased."""
    actor = tasks.actor
    if actor is None:
        return []
    found = [actor.book.get(task_id) for _, task_id in actor.book.index.leases.ascending()]
    return [record for record in found if record is not None]


def _is_fenced(cause: BaseException) -> bool:
    if isinstance(cause, BaseExceptionGroup):
        return all(_is_fenced(each) for each in cause.exceptions)
    return isinstance(cause, FencedError)


class World:
    """The run while it lasts."""

    def __init__(self, plan: Plan, settings: Settings, nursery: trio.Nursery) -> None:
        self.plan = plan
        self.clock = SimulatedClock()
        self.history = History()
        self.rollbacks: list[Rollback] = []
        self.notes: list[str] = []
        self.violations: list[str] = []
        self.known: list[str] = []
        """What this run met of two gaps that are known:
        - until it notices, a server whose store is taken by force answers from memory;
        - when Redis lost more than is kept, what is kept is sent again over the gap, so that
          records may lack what they rest on, and the journal an entry."""
        # Redis has a wall clock of its own, which does not jump: leases would last for hours.
        self.redis = SimulatedRedis(SimulatedClock(), nursery, now=lambda: self.history.time)
        self.servers: list[SimulatedServer] = []
        self.misfortune = Misfortune(self, stream_of_chance(plan.seed, "faults"))
        self.has_stopped = trio.Event()
        """The service cannot go on in a way that is known: see `known`."""
        self._sent_over_a_gap = False
        self._settings = settings
        self._nursery = nursery
        self._random = stream_of_chance(plan.seed, "world")
        self._stream_random = stream_of_chance(plan.seed, "open-stream")
        self._worker = Worker(
            "worker", plan=plan, random=stream_of_chance(plan.seed, "worker"), service=self
        )
        self._spectators = [
            Spectator(name, plan=plan, random=stream_of_chance(plan.seed, name), service=self)
            for name in ("spectator-0", "spectator-1")
        ]
        self._crash_random = stream_of_chance(plan.seed, "actors")
        self._is_healed = False
        # Entries of the log by earlier owners: nobody can write them again.
        self._written_before = 0
        # Since when commits are missing, or were until a server sent them again.
        self._missing_since: int | None = None

    def note(self, text: str) -> None:
        """Add a line to the run's diary."""
        self.notes.append(f"[{self.history.time}] {trio.current_time():.3f}s {text}")

    def now_s(self) -> float:
        return trio.current_time()

    # --------------------------------------------------------------- servers

    @property
    def current(self) -> SimulatedServer:
        """The server that was started last."""
        return self.servers[-1]

    def alive(self) -> list[SimulatedServer]:
        return [server for server in self.servers if server.life is not Life.DEAD]

    def start_server(self, *, take_over: bool = False) -> None:
        """The operator starts a server, which tries until it has the store."""
        plan = self.plan
        number = len(self.servers) + 1
        server = SimulatedServer(
            number,
            settings=self._settings,
            redis=self.redis,
            clock=self.clock,
            random=stream_of_chance(plan.seed, f"server-{number}"),
            redis_conditions=plan.redis_conditions,
            client_conditions=plan.client_conditions,
            host="host" if plan.one_host else f"host-{number}",
            take_over=take_over,
            over_grpc=plan.over_grpc,
            nursery=self._nursery,
            on_started=self._started,
            on_ended=self._ended,
        )
        self.servers.append(server)
        self.note(f"{server.name} is started" + (", to take over" if take_over else ""))
        self._nursery.start_soon(server.run)

    def is_dead(self, owner: OwnerProcess) -> bool:
        """Whether the process of an owner has ended, as its machine knows."""
        return self.servers[owner.pid - 1001].life is Life.DEAD

    def _started(self, server: SimulatedServer) -> None:
        self.note(f"{server.name} serves, epoch {server.history.epoch}")
        self._written_before = self._take_of(server)
        if server.take_over:
            now = self.history.tick()
            for other in self.alive():
                if other is not server:
                    self.known.append("answers of a server whose store was taken by force")
                    self.history.overtaken.setdefault(other.name, now)
        assert server.running is not None
        server.running.store.on_reload(self._reloaded)
        self._roll_back()
        self._nursery.start_soon(self._expect_tasks, server.name, server.running)

    async def _expect_tasks(self, name: str, running: RunningServer) -> None:
        """A server reads the tasks back, unless what it reads was sent again over a gap."""
        await running.tasks.readable.wait_value(False)
        if self.is_over_a_gap:
            self.known.append("no server serves tasks over a journal with a gap")
            self.has_stopped.set()
        else:
            self.violations.append(f"{name} cannot read the tasks")

    def _ended(self, server: SimulatedServer, cause: BaseException | None) -> None:
        self.note(f"{server.name} has ended: {cause!r}")
        if server.history is not None and not self._has_everything(server):
            self._lost_since = self._missing_since
        if cause is not None and not _is_fenced(cause):
            self.violations.append(f"{server.name} died of {cause!r}")
        elif server is self.current:
            self.start_server()

    # --------------------------------------- what may be lost, and what may not

    def may_die(self, server: SimulatedServer) -> bool:
        """Whether the server's death now is one that loses nothing, or losses are allowed."""
        if server.life is not Life.SERVING or len(self.alive()) > 1:
            return False
        return self.plan.both_at_once or self._has_everything(server)

    def _has_everything(self, server: SimulatedServer) -> bool:
        """Whether Redis has, on disk or not, all that the server has acknowledged."""
        value = self.redis.primary.database.values.get(b"dbos:{p0}:commit")
        includes: bool = server.history.includes(value)
        return includes

    def certain_entries(self) -> int:
        """So many entries of the log count as on disk whatever happens."""
        log = self.redis.primary.log
        alive = self.alive()
        if len(alive) > 1 or any(s.route.is_frozen or s.is_ending for s in alive):
            return len(log)  # who will own what comes back, and when?
        if self.plan.both_at_once:
            return 0
        # Nobody else could write it again.
        return self._written_before if self.current.life is Life.SERVING else len(log)

    def _take_of(self, server: SimulatedServer) -> int:
        """Where in the log the server became the owner."""
        commit = [b"SET", b"dbos:{p0}:commit", b"%d:0" % server.history.epoch]
        log = self.redis.primary.log
        return next((i for i, entry in enumerate(log) if commit in entry.commands), len(log))

    @property
    def is_over_a_gap(self) -> bool:
        return self._sent_over_a_gap and self.plan.both_at_once

    def redis_lost(self, first_lost: int | None) -> None:
        """Redis has lost what was committed since this moment of the history."""
        if first_lost is None:
            return
        self.note(f"Redis lost what was committed since [{first_lost}]")
        if self._missing_since is None or first_lost < self._missing_since:
            self._missing_since = first_lost

    def _reloaded(self) -> None:
        """The server sends again what it has, over a store that lacks what that was built on."""
        self._sent_over_a_gap = True
        self._roll_back()

    def _roll_back(self) -> None:
        if self.plan.both_at_once and self._missing_since is not None:
            self.note(f"rolled back to [{self._missing_since}] or later")
            self.rollbacks.append(Rollback(self._missing_since, self.history.tick()))
        self._missing_since = None

    # --------------------------------------------------------------- clients

    async def exchange(
        self, method: str, request: dict[str, Any], timeout_s: float | None
    ) -> Outcome:
        """Have a call served by a server that seems to be there: usually the latest."""
        server = self._reachable(self._random)
        if server is None:
            await trio.sleep(0.05)
            return Ending.NO_EFFECT, "nobody serves", ""
        return *await server.exchange(method, request, timeout_s), server.name

    async def open_stream(self, method: str) -> tuple[StreamEnd, str]:
        """Open a stream, likewise. Raises `StreamEndedError`."""
        server = self._reachable(self._stream_random)
        if server is None:
            await trio.sleep(0.05)
            raise StreamEndedError(None, "nobody serves")
        return await server.open_stream(method), server.name

    def _reachable(self, random: Random) -> SimulatedServer | None:
        candidates = [server for server in self.servers if server.life is Life.SERVING]
        if not candidates:
            return None
        if len(candidates) > 1 and random.random() < 0.3:
            return random.choice(candidates)
        return candidates[-1]

    def client(self, name: str) -> Client:
        return Client(
            name,
            plan=self.plan,
            random=stream_of_chance(self.plan.seed, name),
            service=self,
            history=self.history,
        )

    def _bulk_client(self, name: str) -> BulkClient:
        return BulkClient(
            name,
            plan=self.plan,
            random=stream_of_chance(self.plan.seed, name),
            service=self,
            history=self.history,
        )

    # ------------------------------------------------------------ the phases

    async def run(self) -> None:
        """All phases; what is wrong is in `violations`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_stopped, nursery.cancel_scope)
            await self._phases()
            nursery.cancel_scope.cancel()

    async def _end_when_stopped(self, scope: trio.CancelScope) -> None:
        await self.has_stopped.wait()
        scope.cancel()

    async def _phases(self) -> None:
        plan = self.plan
        self.start_server()
        finished = trio.Event()
        async with trio.open_nursery() as faults:
            faults.start_soon(self._clients, finished)
            with trio.move_on_after(plan.duration_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.misfortune.run, nursery)
                    await finished.wait()
                    nursery.cancel_scope.cancel()
            self._heal()
            with trio.move_on_after(HEALED_WITHIN_S):
                await finished.wait()
            if not finished.is_set():
                self.violations += [
                    f"still without an answer after a minute of good health: {operation}"
                    for operation in self.history.operations
                    if operation.end is None
                ]
                faults.cancel_scope.cancel()
                return
        await trio.sleep(QUIET_S if not self.plan.crash_chance else QUIET_S + QUARANTINE_S)
        self.history.settled_at = self.history.tick()
        await self._look("survivor")
        self._check_tasks()
        for server in self.alive():
            server.cancel()
        await trio.sleep(3.0)
        await self._look("newcomer")

    async def _clients(self, finished: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self.plan.clients):
                nursery.start_soon(self.client(f"client-{number}").run)
            if self.plan.bulk_streams:
                nursery.start_soon(self._bulk_client("bulk").run)
            if self.plan.subscriptions:
                nursery.start_soon(self._worker.run)
            for spectator in self._spectators:
                nursery.start_soon(spectator.run)
        finished.set()

    def crashes(self) -> bool:
        """Whether the actor that has a message now is to crash over it."""
        chance = 0.0 if self._is_healed else self.plan.crash_chance
        crashes = chance > 0.0 and self._crash_random.random() < chance
        if crashes:
            counts = self.misfortune.counts
            counts["ACTOR_CRASH"] = counts.get("ACTOR_CRASH", 0) + 1
        return crashes

    def check_watches(self) -> list[str]:
        """What the spectators got, held against the log."""
        stream = self.redis.primary.database.values.get(b"dbos:{p0}:events")
        log = logged(stream.entries) if isinstance(stream, EventStream) else []
        return [complaint for one in self._spectators for complaint in one.complaints(log)]

    def _heal(self) -> None:
        self._is_healed = True
        self.note("healed")
        redis = self.redis
        if redis.primary.mode is Mode.DOWN:
            redis.start()
        redis.loaded()
        redis.resume()
        redis.primary.refusal = None
        self.misfortune.mend()
        self.clock.set_right()
        for server in self.alive():
            server.thaw()

    async def _look(self, name: str) -> None:
        """Read everything; in good health every read is answered."""
        self.note(f"the {name} reads everything")
        with trio.move_on_after(HEALED_WITHIN_S) as scope:
            for _ in iter(lambda: any(s.life is Life.SERVING for s in self.servers), True):
                await trio.sleep(0.5)
            if not await self.client(name).look_at_everything():
                self.violations.append(f"a read of the {name} got no answer in good health")
        if scope.cancelled_caught:
            self.violations.append(f"the {name} cannot read in good health")

    def _check_tasks(self) -> None:
        """No lease lasts as long as the quiet did, and the ledger balances."""
        for server in self.servers:
            if server.life is Life.SERVING and server.running is not None:
                counted = server.running.tasks.statistics()
                if counted.imbalance or counted.audit_imbalances or counted.audit_strangers:
                    self.violations.append(f"the ledger of tasks does not balance: {counted}")
                inflight = _inflight(server.running.tasks)
                self.violations += self._worker.stranded(inflight)
                lasting = [each.task_id for each in inflight if each.agent_id != AGENT]
                if lasting:
                    self.violations.append(f"leases have not ended: {lasting}")
