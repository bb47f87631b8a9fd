"""What befalls a run, and when: one task that draws a fault, does it, and waits.

Acknowledged writes may be lost when Redis loses its last second while the only
server that could send it again is gone. Unless the plan asks for that, it is
kept from happening: what an earlier server wrote counts as on disk, and a
server whose Redis has come back older is left alone until it has caught up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, Protocol

import trio

from dbos_actors.store.keys import Keys, escaped
from tests.simulation.clients import Universe
from tests.simulation.determinism import SimulatedClock
from tests.simulation.plan import DEATHS, FREQUENT, Fault, Plan
from tests.simulation.redis.deployment import SimulatedRedis
from tests.simulation.redis.node import Mode, Refusal
from tests.simulation.servers import Life, SimulatedServer

REDIS_FAULTS: Final = frozenset(
    {
        Fault.REDIS_CRASH,
        Fault.REDIS_LOSES_SECONDS,
        Fault.FAIL_OVER,
        Fault.STALL,
        Fault.OOM,
        Fault.READONLY,
        Fault.MISCONF,
    }
)
"""One of these at a time: there is one Redis."""

LOST_S_MAX: Final = 2.0
"""What ``everysec`` may lose when the disk is slow, and a replica may lag behind."""


class FaultyWorld(Protocol):
    """What faults need to know of a world, and what they do to it."""

    plan: Plan
    clock: SimulatedClock
    redis: SimulatedRedis

    @property
    def current(self) -> SimulatedServer: ...
    def alive(self) -> list[SimulatedServer]: ...
    def may_die(self, server: SimulatedServer) -> bool: ...
    def certain_entries(self) -> int: ...
    def start_server(self, *, take_over: bool = False) -> None: ...
    def redis_lost(self, first_lost: int | None) -> None: ...
    def note(self, text: str) -> None: ...


class Misfortune:
    """Draws faults and does them to a world."""

    def __init__(self, world: FaultyWorld, random: Random) -> None:
        self._world = world
        self._random = random
        self._redis_is_busy = False
        self._damaged: dict[bytes, dict[bytes, float]] = {}
        self.counts: dict[str, int] = {}

    async def run(self, nursery: trio.Nursery) -> None:
        """Until cancelled. What takes time runs in ``nursery``."""
        plan = self._world.plan
        if not plan.faults:
            await trio.sleep_forever()
        weights = [3.0 if fault in FREQUENT else 1.0 for fault in plan.faults]
        while True:
            await trio.sleep(self._random.expovariate(1 / plan.fault_gap_s))
            (fault,) = self._random.choices(plan.faults, weights=weights)
            if self._may_happen(fault):
                self._begin(fault, nursery)

    def _may_happen(self, fault: Fault) -> bool:
        world = self._world
        if fault in REDIS_FAULTS:
            return not self._redis_is_busy
        if fault is Fault.WALL_CLOCK_JUMP and "tasks_max_age_s" in world.plan.settings:
            return world.current.life is Life.SERVING
        if fault is Fault.KILL_SERVER and world.current.life is Life.STARTING:
            return len(world.alive()) == 1
        return fault not in DEATHS or world.may_die(world.current)

    def _begin(self, fault: Fault, nursery: trio.Nursery) -> None:
        act: Callable[[], Awaitable[Any] | None] = getattr(self, f"_{fault.name.lower()}")
        self._world.note(fault.name)
        self.counts[fault.name] = self.counts.get(fault.name, 0) + 1
        under_way = act()
        if under_way is not None:
            self._redis_is_busy = self._redis_is_busy or fault in REDIS_FAULTS
            nursery.start_soon(self._finish, fault, under_way)

    async def _finish(self, fault: Fault, under_way: Awaitable[Any]) -> None:
        await under_way
        if fault in REDIS_FAULTS:
            self._redis_is_busy = False

    def _pause_s(self, *choices: float) -> float:
        return self._random.choice(choices) * self._random.uniform(0.5, 1.5)

    # --------------------------------------------------------------- network

    def _cut_redis(self) -> None:
        for server in self._world.alive():
            server.route.cut()

    def _half_close_redis(self) -> None:
        for server in self._world.alive():
            server.route.half_close()

    def _cut_clients(self) -> None:
        for server in self._world.alive():
            server.cut_clients()

    # ----------------------------------------------------------------- Redis

    async def _redis_crash(self) -> None:
        await self._down_and_up(lose=False)

    async def _redis_loses_seconds(self) -> None:
        await self._down_and_up(lose=True)

    async def _down_and_up(self, *, lose: bool) -> None:
        redis = self._world.redis
        keep = self._world.certain_entries()
        lost = redis.crash(lose_s=self._random.uniform(0.0, LOST_S_MAX) if lose else 0.0, keep=keep)
        self._world.redis_lost(lost)
        await trio.sleep(self._pause_s(0.001, 0.1, 1.0, 6.0))
        loading = self._random.random() < 0.3
        redis.start(loading=loading)
        if loading:
            await trio.sleep(self._pause_s(0.1, 1.0))
            redis.loaded()

    async def _fail_over(self) -> None:
        keep = self._world.certain_entries()
        lag_s = self._random.uniform(0.0, LOST_S_MAX)
        self._world.redis_lost(self._world.redis.fail_over(lag_s=lag_s, keep=keep))

    async def _stall(self) -> None:
        self._world.redis.stall()
        await trio.sleep(self._pause_s(0.2, 1.0, 5.0, 12.0))
        self._world.redis.resume()

    async def _oom(self) -> None:
        await self._refuse(Refusal.OOM)

    async def _readonly(self) -> None:
        await self._refuse(Refusal.READONLY)

    async def _misconf(self) -> None:
        await self._refuse(Refusal.MISCONF)

    async def _refuse(self, refusal: Refusal) -> None:
        node = self._world.redis.primary
        node.oom_refuses_reads_in_multi = self._random.random() < 0.5
        node.refusal = refusal
        await trio.sleep(self._pause_s(0.1, 1.0, 3.0))
        if self._world.redis.primary is node and node.mode is Mode.SERVING:
            node.refusal = None

    async def _wrong_type(self) -> None:
        """Somebody else writes to an agent's index of results; it is put back after a while."""
        agent = self._random.choice(Universe(self._world.plan).agents)
        key = f"{Keys().results_at}{escaped(agent)}".encode()
        node = self._world.redis.primary
        index = node.database.values.get(key)
        if key not in self._damaged and node.mode is Mode.SERVING:
            self._damaged[key] = {} if index is None else dict(index.scores)
            node.run_logged([b"DEL", key], [b"SET", key, b"not a sorted set"])
        await trio.sleep(self._pause_s(0.1, 1.0, 3.0))
        if self._world.redis.primary.mode is Mode.SERVING:
            self.mend()

    def mend(self) -> None:
        """Put back what the damaged indexes held, of the records that are there still.

        What was written meanwhile, and not acknowledged, stays a record without an index.
        """
        node = self._world.redis.primary
        for key, scores in self._damaged.items():
            if not isinstance(node.database.values.get(key), bytes):
                continue
            node.run_logged([b"DEL", key])
            records = node.database.values.get(key.replace(b":results-at:", b":results:")) or {}
            kept = {member: score for member, score in scores.items() if member in records}
            if kept:
                pairs = [part for m, score in kept.items() for part in (b"%.17g" % score, m)]
                node.run_logged([b"ZADD", key, *pairs])

    # --------------------------------------------------------------- servers

    def _kill_server(self) -> None:
        self._world.current.kill(deliver_sent=self._random.random() < 0.5)
        self._world.start_server()

    def _cancel_server(self) -> None:
        self._world.current.cancel()
        self._world.start_server()

    async def _drain_server(self) -> None:
        await self._world.current.drain()

    async def _zombie(self) -> None:
        """A server that hears and says nothing for a while, and another in its place."""
        server = self._world.current
        server.freeze(clients=self._random.random() < 0.5)
        await trio.sleep(self._pause_s(0.01, 1.0))
        if self._random.random() < 0.8 and server is self._world.current:
            self._world.start_server()
        await trio.sleep(self._pause_s(0.5, 4.0, 8.0, 12.0))
        server.thaw()

    def _take_over(self) -> None:
        """Another server is told to take the store from a healthy one."""
        self._world.start_server(take_over=True)

    # ------------------------------------------------------------------ time

    def _wall_clock_jump(self) -> None:
        self._world.clock.offset_s += self._random.choice([-3_600.0, -2.0, 2.0, 3_600.0])
