"""One stage for faults: a Redis, a server on it, proxies before both, and clients at work.

    clients -> proxy -> server -> proxy -> Redis

Two kinds of clients work all the time. The load keeps a hundred writes in flight and remembers
each with its outcome. The careful clients make one call at a time about a few agents, runs and
results that they all share, reads included, and record when each call began and ended: these
histories are short enough to be checked for linearizability.

`verdict` ends the work and looks: at what the clients saw, at what Redis holds, and at what the
servers logged.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

import trio
from grpclib.exceptions import GRPCError

from bench.recorded_writes import ACKNOWLEDGED, Load
from dbos_actors.api import messages
from dbos_actors.rpc.client.channel import BackoffPolicy, Channel, ChannelOptions
from tests.chaos.careful import PATIENCE_S, Calls
from tests.chaos.disks import SmallDisk, VolatileDisk
from tests.chaos.proxy import Proxy
from tests.chaos.sentinel import SentinelPair
from tests.chaos.verdict import Blackout, Evidence, Verdict, judge
from tests.simulation.clients import Client, Universe
from tests.simulation.history import History
from tests.simulation.plan import Plan
from tests.support.keyspace import Keyspace
from tests.support.process import ServerProcess
from tests.support.valkey import ValkeyServer

Stage = Literal["plain", "small disk", "volatile disk", "sentinel"]

LOAD_CONNECTIONS: Final = 2
LOAD_IN_FLIGHT: Final = 50
"""Each; enough that every commit has company, little enough for a laptop with other work."""

CALL_S: Final = 4.0
"""The load's deadline; what takes longer ends without an answer."""

MOVE_S_MAX: Final = 2.0
"""How long connections to a primary that was replaced may stand. They have to end within what
the server keeps: what such a primary is told meanwhile is gone."""


class Scene:
    """A running stage; see `open_scene`. Its methods are what faults are made of."""

    def __init__(
        self,
        nursery: trio.Nursery,
        directory: Path,
        random: Random,
        *,
        redis: ValkeyServer,
        pair: SentinelPair | None,
        disk: SmallDisk | VolatileDisk | None,
        fsync: bool,
    ) -> None:
        self.random = random
        self.pair = pair
        self.disk = disk
        self.load = Load()
        self.history = History()
        self.kills = 0
        self.found: list[str] = []
        """Violations seen on the way."""
        self.pauses_s: list[float] = []
        self._redis = redis
        self._fsync = fsync
        self._nursery = nursery
        self.store_proxy = Proxy(random, target=str(redis.socket_path), path=directory / "p")
        self.client_proxy = Proxy(random)
        self._server: ServerProcess | None = None
        self._logs: list[str] = []
        self._up = trio.Event()
        self._stop = trio.Event()
        self._load_ended = trio.Event()
        self._careful = trio.CancelScope()
        self._blackouts: list[Blackout] = []
        self._fault_from = 0
        self._fault_began_s = 0.0

    # --------------------------------------------------------------- parties

    @property
    def redis(self) -> ValkeyServer:
        """The Valkey that serves now."""
        return self._redis if self.pair is None else self.pair.primary

    @property
    def server(self) -> ServerProcess:
        assert self._server is not None, "nobody serves"
        return self._server

    async def start_server(self) -> None:
        """Start a server and let the clients reach it."""
        variables = {
            "DBOS_MAX_EVENTS": "10000000",
            "DBOS_DURABILITY": "fsync" if self._fsync else "replay",
            "DBOS_IDLE_PASSIVATION": "1s",
            "DBOS_LOG_LEVEL": "info",
        }
        server = ServerProcess(f"unix://{self.store_proxy.address}", **variables)
        self._server = server
        await trio.to_thread.run_sync(server.wait_ready)
        self.client_proxy.target = server.address
        self._up.set()

    def kill_server(self) -> None:
        """``kill -9``."""
        self._check_alive()
        self._up = trio.Event()
        self.server.kill()
        self.kills += 1
        self._retire()

    async def kill_redis(self) -> None:
        """``kill -9``."""
        await trio.to_thread.run_sync(self.redis.kill)
        self.kills += 1

    async def start_redis(self) -> None:
        await trio.to_thread.run_sync(self._redis.start)

    async def ask_redis(self, *command: str | int) -> Any:
        """One command, past the proxy."""
        return await trio.to_thread.run_sync(partial(self.redis.execute, *command))

    async def freeze(self, who: ServerProcess | ValkeyServer, for_s: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        os.kill(who.pid, signal.SIGSTOP)
        try:
            await trio.sleep(for_s)
        finally:
            os.kill(who.pid, signal.SIGCONT)

    async def wait_outcome(self, outcome: str, timeout_s: float) -> None:
        """Wait until some more writes of the load have ended so."""
        before = len(self.load.history)
        with trio.move_on_after(timeout_s):
            while True:
                if any(write.outcome == outcome for write in self.load.history[before:]):
                    return
                await trio.sleep(0.02)
        self.found.append(f"no write ended as {outcome} within {timeout_s} s")

    def black_out(self) -> None:
        """All power is gone now: what was not synced is lost."""
        self._blackouts.append(Blackout(trio.current_time()))

    def power_is_back(self) -> None:
        """Nobody serves yet; answers of before have arrived by now."""
        blackout = self._blackouts[-1]
        blackout.until_s, blackout.until = trio.current_time(), self.history.tick()

    async def wait_busy(self) -> None:
        """Wait until the clients are well at work: a fault may begin."""
        await self._wait_acknowledged(self.random.randint(200, 600))
        await trio.sleep(self.random.uniform(0.2, 0.6))
        # Whatever is acknowledged from now on was issued since then, or was in flight.
        in_flight = 2 * LOAD_CONNECTIONS * LOAD_IN_FLIGHT
        self._fault_from = max(0, len(self.load.history) - in_flight)
        self._fault_began_s = trio.current_time()

    async def recover(self) -> None:
        """The fault is over: wait for the next acknowledged writes, and note the longest pause."""
        await self._wait_acknowledged(50)
        settled_s = sorted(
            write.settled_s
            for write in self.load.history[self._fault_from :]
            if write.outcome == ACKNOWLEDGED and write.settled_s >= self._fault_began_s
        )
        times_s = [self._fault_began_s, *settled_s]
        self.pauses_s.append(max(after - before for before, after in pairwise(times_s)))
        self._check_alive()

    async def _wait_acknowledged(self, more: int) -> None:
        try:
            await self.load.wait_acknowledged(self.load.acknowledged + more)
        except trio.TooSlowError:
            log = self.server.log()[-2000:]
            raise AssertionError(f"nothing is served; the server's log ends:\n{log}") from None

    def _check_alive(self) -> None:
        if not self.server.is_running:
            self.found.append(f"the server died by itself:\n{self.server.log()[-2000:]}")

    def _retire(self) -> None:
        self._logs.append(self.server.log())
        self.server.close()
        self._server = None

    # --------------------------------------------------------------- clients

    async def run_load(self) -> None:
        """Write for ever, on new connections whenever the old ones are gone."""
        while not self._stop.is_set():
            await self._up.wait()
            await self.load.run(
                self.client_proxy.address,
                connections=LOAD_CONNECTIONS,
                in_flight_each=LOAD_IN_FLIGHT,
                deadline_s=CALL_S,
                stop=self._stop,
            )
            await trio.sleep(0.02)
        self._load_ended.set()

    async def run_careful(self, plan: Plan) -> None:
        """Several clients about the same few things, until `verdict`."""
        with self._careful:
            async with trio.open_nursery() as nursery:
                for number in range(plan.clients):
                    nursery.start_soon(self._run_careful, f"client-{number}", plan)

    async def _run_careful(self, name: str, plan: Plan) -> None:
        async with self._channel() as channel:
            await self._client(name, plan, channel).run()

    def _channel(self) -> Channel:
        host, _, port = self.client_proxy.address.rpartition(":")
        backoff = BackoffPolicy(first_s=0.02, factor=1.5, max_s=0.2)
        return Channel(host, int(port), options=ChannelOptions(backoff=backoff))

    def _client(self, name: str, plan: Plan, channel: Channel) -> Client:
        service = Calls(channel, lambda: self._up, Universe(plan).agents)
        random = Random(self.random.getrandbits(64))
        return Client(name, plan=plan, random=random, service=service, history=self.history)

    # --------------------------------------------------------------- verdict

    async def verdict(self, plan: Plan) -> Verdict:
        """End the work, look at everything, and judge it."""
        self._stop.set()
        with trio.move_on_after(3 * CALL_S) as scope:
            await self._load_ended.wait()
        if scope.cancelled_caught:
            self.found.append("calls without an answer in good health")
        self._careful.cancel()
        await self._look(plan)
        self.server.kill()
        self._retire()
        self._up = trio.Event()
        await self.start_server()
        await self._look(plan)
        self.server.send(signal.SIGTERM)
        status = await trio.to_thread.run_sync(self.server.wait)
        if status != 0:
            self.found.append(f"the server ended with status {status}")
        self._retire()
        return await trio.to_thread.run_sync(self._judge, plan)

    async def _look(self, plan: Plan) -> None:
        """Read everything, once nothing that was under way can still happen."""
        async with self._channel() as channel:
            client = self._client("witness", plan, channel)
            await trio.sleep(0.3)
            # Commits are in order: with this one, all that waited is done.
            mark = {"id": "witness", "hostname": "h", "config": {"tag": "w"}}
            request = messages.RegisterAgentRequest(agent=mark).SerializeToString()
            try:
                await channel.unary("/dbos.DBOS/RegisterAgent", request, timeout=PATIENCE_S)
            except GRPCError as error:
                self.found.append(f"no write in good health: {error}")
            if self.history.settled_at is None:
                self.history.settled_at = self.history.tick()
            if not await client.look_at_everything():
                self.found.append("a read got no answer in good health")

    def _judge(self, plan: Plan) -> Verdict:
        with self.redis.client() as client:
            stored = Keyspace(client)
        # With fsync nothing is excused: what was acknowledged is on disk.
        blackouts = [] if self._fsync else self._blackouts
        evidence = Evidence(self.load, self.history, stored, blackouts, self._logs)
        return judge(evidence, plan, found=self.found, pauses_s=self.pauses_s)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@asynccontextmanager
async def open_scene(
    plan: Plan, *, stage: Stage = "plain", fsync: bool = False, random: Random
) -> AsyncIterator[Scene]:
    """Start everything and put the clients to work; nothing is left at the end.

    Raises `NoDiskError` if the stage needs a disk that this machine does not give.
    """
    appendfsync = "always" if fsync else "everysec"
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        pair: SentinelPair | None = None
        disk: SmallDisk | VolatileDisk | None = None
        redis = ValkeyServer(appendfsync=appendfsync)
        try:
            if stage == "sentinel":
                pair = await trio.to_thread.run_sync(partial(SentinelPair, appendfsync=appendfsync))
            else:
                if stage == "small disk":
                    disk = SmallDisk(redis.directory)
                elif stage == "volatile disk":
                    disk = VolatileDisk(redis.directory)
                await trio.to_thread.run_sync(redis.start)
            async with trio.open_nursery() as nursery:
                scene = Scene(
                    nursery,
                    Path(directory),
                    random,
                    redis=redis,
                    pair=pair,
                    disk=disk,
                    fsync=fsync,
                )
                try:
                    await _start(scene, plan, nursery)
                    yield scene
                finally:
                    nursery.cancel_scope.cancel()
                    scene.close()
        finally:
            if pair is not None:
                pair.close()
            if redis.is_running:
                redis.kill()
            if disk is not None:
                with suppress(OSError):
                    disk.close()
            redis.close()


async def _start(scene: Scene, plan: Plan, nursery: trio.Nursery) -> None:
    await nursery.start(scene.store_proxy.run)
    await nursery.start(scene.client_proxy.run)
    if scene.pair is not None:
        nursery.start_soon(scene.pair.follow, partial(_move, scene, nursery))
        with trio.fail_after(10):
            await until(lambda: ":" in scene.store_proxy.target)
    await scene.start_server()
    nursery.start_soon(scene.run_load)
    nursery.start_soon(scene.run_careful, plan)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    while not condition():  # noqa: ASYNC110 - see above
        await trio.sleep(0.02)


def _move(scene: Scene, nursery: trio.Nursery, address: str) -> None:
    """The primary is elsewhere: what whoever owns its address does, sooner or later."""
    scene.store_proxy.target = address
    nursery.start_soon(_cut_later, scene.store_proxy, scene.random.uniform(0.0, MOVE_S_MAX))


async def _cut_later(proxy: Proxy, after_s: float) -> None:
    await trio.sleep(after_s)
    proxy.cut()
