"""The faults: what is done, how often, on what stage, and what may be lost.

Each function does its fault once and undoes it; the clients work all the while.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from tests.chaos.disks import SmallDisk, VolatileDisk
from tests.chaos.proxy import Proxy, Way
from tests.chaos.scene import MOVE_S_MAX, Scene, Stage, until

REPLAY_S: Final = 5.0
"""How long the server can send a commit again (`StoreSettings.replay_s`)."""

LEASE_S: Final = 5.0


# --------------------------------------------------------------------- kills


async def kill_server(scene: Scene) -> None:
    scene.kill_server()
    await scene.start_server()


async def kill_redis(scene: Scene) -> None:
    await scene.kill_redis()
    await trio.sleep(scene.random.choice([0.0, 0.3]))
    await scene.start_redis()


async def kill_both(scene: Scene) -> None:
    scene.kill_server()
    await scene.kill_redis()
    await scene.start_redis()
    await scene.start_server()


async def redis_loses_a_second(scene: Scene) -> None:
    mark = scene.redis.aof_mark()
    await trio.sleep(scene.random.uniform(0.3, 1.0))
    await scene.kill_redis()
    scene.redis.cut_aof(mark)
    await scene.start_redis()


# --------------------------------------------------------------------- power


async def _cut_power(scene: Scene) -> None:
    assert isinstance(scene.disk, VolatileDisk)
    await trio.to_thread.run_sync(scene.disk.cut_power)


async def redis_loses_power(scene: Scene) -> None:
    await trio.sleep(scene.random.uniform(0.5, 1.5))
    await scene.kill_redis()
    await _cut_power(scene)
    await scene.start_redis()


async def all_lose_power(scene: Scene) -> None:
    await trio.sleep(scene.random.uniform(0.5, 2.5))
    # Redis first: no answer may leave after the moment that counts.
    await scene.kill_redis()
    scene.black_out()
    scene.kill_server()
    await _cut_power(scene)
    await scene.start_redis()
    scene.power_is_back()
    await scene.start_server()


# -------------------------------------------------------------------- freeze


async def freeze_server(scene: Scene) -> None:
    await scene.freeze(scene.server, scene.random.uniform(0.3, 2.0))


async def freeze_server_beyond_its_lease(scene: Scene) -> None:
    await scene.freeze(scene.server, LEASE_S + 1.0)


async def freeze_redis(scene: Scene) -> None:
    await scene.freeze(scene.redis, scene.random.uniform(0.3, 3.0))


# ------------------------------------------------------------------- network


async def _cut(proxy: Proxy, scene: Scene) -> None:
    for _ in range(3):
        if scene.random.random() < 0.5:
            proxy.cut()
        else:
            proxy.cut_after(scene.random.randint(1, 20_000))
        await trio.sleep(scene.random.uniform(0.05, 0.3))


async def _delay(proxy: Proxy, scene: Scene) -> None:
    proxy.delay_s = scene.random.choice([0.02, 0.1, 0.3])
    await trio.sleep(1.5)
    proxy.heal()


async def _half_close(proxy: Proxy, scene: Scene) -> None:
    await proxy.half_close(scene.random.choice(list(Way)))
    await trio.sleep(0.3)


async def _silence(proxy: Proxy, scene: Scene) -> None:
    proxy.silence()
    await trio.sleep(scene.random.uniform(0.5, 2.0))
    if scene.random.random() < 0.5:
        proxy.cut()
    proxy.heal()


async def cut_redis(scene: Scene) -> None:
    await _cut(scene.store_proxy, scene)


async def delay_redis(scene: Scene) -> None:
    await _delay(scene.store_proxy, scene)


async def half_close_redis(scene: Scene) -> None:
    await _half_close(scene.store_proxy, scene)


async def silence_redis(scene: Scene) -> None:
    await _silence(scene.store_proxy, scene)


async def cut_clients(scene: Scene) -> None:
    await _cut(scene.client_proxy, scene)


async def delay_clients(scene: Scene) -> None:
    await _delay(scene.client_proxy, scene)


async def half_close_clients(scene: Scene) -> None:
    await _half_close(scene.client_proxy, scene)


async def silence_clients(scene: Scene) -> None:
    await _silence(scene.client_proxy, scene)


# -------------------------------------------------------------- full things


async def out_of_memory(scene: Scene) -> None:
    info = await scene.ask_redis("INFO", "memory")
    await scene.ask_redis("CONFIG", "SET", "maxmemory", info["used_memory"] + 100_000)
    await scene.wait_outcome("UNAVAILABLE", 5.0)
    if scene.random.random() < 0.5:
        # The next server has to take the store over from a Redis that refuses writes.
        scene.kill_server()
        await scene.start_server()
    await trio.sleep(0.5)
    await scene.ask_redis("CONFIG", "SET", "maxmemory", 0)


async def fill_disk(scene: Scene) -> None:
    assert isinstance(scene.disk, SmallDisk)
    await trio.to_thread.run_sync(scene.disk.fill)
    await scene.wait_outcome("UNAVAILABLE", 5.0)
    await trio.sleep(scene.random.uniform(0.0, 1.0))
    scene.disk.free()


async def fill_disk_and_kill_redis(scene: Scene) -> None:
    assert isinstance(scene.disk, SmallDisk)
    await trio.to_thread.run_sync(scene.disk.fill)
    await scene.wait_outcome("UNAVAILABLE", 5.0)
    # What Redis had answered for, but could not write, is older by now than what is kept.
    await trio.sleep(REPLAY_S + 1.5)
    await scene.kill_redis()
    scene.disk.free()
    await scene.start_redis()


async def fill_disk_under_always(scene: Scene) -> None:
    """A Redis that cannot sync under ``always`` ends itself."""
    assert isinstance(scene.disk, SmallDisk)
    await trio.to_thread.run_sync(scene.disk.fill)
    with trio.fail_after(20):
        await until(lambda: not scene.redis.is_running)
    scene.disk.free()
    scene.redis.socket_path.unlink(missing_ok=True)
    await scene.start_redis()


# ----------------------------------------------------------------- fail-over


async def _failed_over(scene: Scene, failovers: int) -> None:
    pair = scene.pair
    assert pair is not None
    with trio.fail_after(20):
        await until(lambda: pair.failovers != failovers)


async def kill_primary(scene: Scene) -> None:
    assert scene.pair is not None
    await trio.to_thread.run_sync(scene.pair.wait_in_step)
    old, failovers = scene.pair.primary, scene.pair.failovers
    await trio.to_thread.run_sync(old.kill)
    scene.kills += 1
    await _failed_over(scene, failovers)
    await trio.to_thread.run_sync(old.start)
    await _follow(scene, old)


async def freeze_primary(scene: Scene) -> None:
    """The old primary comes back and does not know that it is none any more."""
    assert scene.pair is not None
    await trio.to_thread.run_sync(scene.pair.wait_in_step)
    old, failovers = scene.pair.primary, scene.pair.failovers
    old.pause()
    await _failed_over(scene, failovers)
    await trio.sleep(0.3)
    old.resume()
    await _follow(scene, old)


async def fail_over_by_command(scene: Scene) -> None:
    """Both are well; connections to the old primary stand for a while."""
    assert scene.pair is not None
    await trio.to_thread.run_sync(scene.pair.wait_in_step)
    failovers = scene.pair.failovers
    old = scene.pair.primary
    await trio.to_thread.run_sync(scene.pair.fail_over)
    await _failed_over(scene, failovers)
    await trio.sleep(MOVE_S_MAX)
    await _follow(scene, old)


async def _follow(scene: Scene, old: object) -> None:
    """Sentinel does it too, but takes ten seconds to be sure."""
    assert scene.pair is not None
    new = scene.pair.primary
    assert old is not new
    for server in scene.pair.servers:
        if server is not new:
            await trio.to_thread.run_sync(server.execute, "REPLICAOF", "127.0.0.1", new.port)


# --------------------------------------------------------------------- table


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the table."""

    name: str
    what: str
    run: Callable[[Scene], Awaitable[None]]
    kills: int = 0
    """``kill -9`` in one repetition."""
    share: int = 0
    """Of two hundred kills, so many are of this fault."""
    times: int = 10
    """Repetitions, of a fault without a share."""
    stage: Stage = "plain"
    fsync: bool = False
    may_lose: bool = False


FAULTS: Final = (
    Fault("kill-server", "kill -9 of the server", kill_server, 1, 50),
    Fault("kill-redis", "kill -9 of Redis", kill_redis, 1, 40),
    Fault("kill-both", "kill -9 of both at once", kill_both, 2, 40),
    Fault(
        "redis-loses-a-second",
        "kill -9 of Redis, its file cut back by up to a second",
        redis_loses_a_second,
        1,
        20,
    ),
    Fault(
        "redis-power",
        "Redis's machine loses power",
        redis_loses_power,
        1,
        20,
        stage="volatile disk",
    ),
    Fault(
        "all-power-replay",
        "Both machines lose power",
        all_lose_power,
        2,
        20,
        stage="volatile disk",
        may_lose=True,
    ),
    Fault(
        "all-power-fsync",
        "Both machines lose power",
        all_lose_power,
        2,
        20,
        stage="volatile disk",
        fsync=True,
    ),
    Fault("kill-both-fsync", "kill -9 of both at once", kill_both, 2, 10, fsync=True),
    Fault(
        "kill-primary",
        "kill -9 of the primary, Sentinel promotes its replica",
        kill_primary,
        1,
        10,
        stage="sentinel",
    ),
    Fault(
        "freeze-primary",
        "SIGSTOP of the primary, Sentinel promotes, it comes back stale",
        freeze_primary,
        times=5,
        stage="sentinel",
    ),
    Fault(
        "fail-over",
        "SENTINEL FAILOVER, old connections stand for up to 2 s",
        fail_over_by_command,
        times=5,
        stage="sentinel",
    ),
    Fault("freeze-server", "SIGSTOP of the server, up to 2 s", freeze_server),
    Fault(
        "freeze-server-long",
        "SIGSTOP of the server beyond its lease",
        freeze_server_beyond_its_lease,
        times=3,
    ),
    Fault("freeze-redis", "SIGSTOP of Redis, up to 3 s", freeze_redis),
    Fault("cut-redis", "Connections to Redis cut, also in mid-message", cut_redis),
    Fault("delay-redis", "Bytes to and from Redis delayed, up to 0.6 s", delay_redis),
    Fault("half-close-redis", "One direction to Redis closed", half_close_redis),
    Fault("silence-redis", "Nothing gets through to Redis, up to 2 s", silence_redis),
    Fault("cut-clients", "Connections of clients cut, also in mid-message", cut_clients),
    Fault("delay-clients", "Bytes to and from clients delayed, up to 0.6 s", delay_clients),
    Fault("half-close-clients", "One direction to clients closed", half_close_clients),
    Fault("silence-clients", "Nothing gets through to clients, up to 2 s", silence_clients),
    Fault("out-of-memory", "Redis at its maxmemory; server killed half the time", out_of_memory),
    Fault("disk-full", "Disk full under everysec (MISCONF)", fill_disk, stage="small disk"),
    Fault(
        "disk-full-kill",
        "Disk full for 7 s, then kill -9 of Redis",
        fill_disk_and_kill_redis,
        1,
        5,
        stage="small disk",
    ),
    Fault(
        "disk-full-always",
        "Disk full under always: Redis ends itself",
        fill_disk_under_always,
        times=5,
        stage="small disk",
        fsync=True,
    ),
)
