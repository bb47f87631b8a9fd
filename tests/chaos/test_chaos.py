"""Each kind of fault once or twice, and the tools that do them; the long run is a command."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest
import trio

from tests.chaos.disks import NoDiskError, SmallDisk, VolatileDisk
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.proxy import Proxy, Way
from tests.chaos.run import repetitions, run_fault, table
from tests.support.valkey import ValkeyServer

SHORT = (
    "kill-server",
    "kill-both",
    "redis-loses-a-second",
    "cut-redis",
    "cut-clients",
)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
async def test_nothing_acknowledged_is_lost_and_nothing_seen_vanishes(name: str) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == name]
    row = await run_fault(fault, 2, seed=1, give_up_at=time.monotonic() + 60)
    assert row.verdict.violations == []
    assert row.verdict.acknowledged > 500
    assert row.verdict.judged > 50
    assert table([row]).count("\n") == 3


def test_kills_are_shared_out_and_none_is_left_out() -> None:
    for kills in (1, 30, 200):
        done = sum(repetitions(fault, FAULTS, kills) * fault.kills for fault in FAULTS)
        assert done >= kills
    assert repetitions(FAULTS[0], FAULTS[:1], 7) == 7
    assert repetitions(Fault("x", "", FAULTS[0].run, times=4), [], 200) == 4


# ------------------------------------------------------------------ the proxy


async def echo(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(bytes(data).upper())
        await stream.send_all(b"bye")
        await stream.send_eof()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxy, trio.SocketStream]]:
    """A proxy before an echo, and a connection through it that works."""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, echo, 0)
            port = listeners[0].socket.getsockname()[1]
            proxy = Proxy(Random(1), target=f"127.0.0.1:{port}")
            await nursery.start(proxy.run)
            _, _, own = proxy.address.rpartition(":")
            async with await trio.open_tcp_stream("127.0.0.1", int(own)) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"HELLO"
                yield proxy, stream
            nursery.cancel_scope.cancel()


async def test_the_proxy_passes_everything_on_ends_included() -> None:
    async with proxied() as (_, stream):
        await stream.send_eof()
        assert await stream.receive_some() == b"bye"
        assert await stream.receive_some() == b""


async def test_the_proxy_cuts_every_connection() -> None:
    async with proxied() as (proxy, stream):
        proxy.cut()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_the_proxy_cuts_in_mid_message() -> None:
    async with proxied() as (proxy, stream):
        proxy.cut_after(8)
        await stream.send_all(b"world")
        received = b""
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                received += data
        assert received in (b"", b"WOR")  # a reset may overtake what was on the way


async def test_the_proxy_closes_one_direction_only() -> None:
    async with proxied() as (proxy, stream):
        await proxy.half_close(Way.FORTH)
        assert await stream.receive_some() == b"bye"


async def test_a_silent_proxy_holds_back_until_it_is_healed() -> None:
    async with proxied() as (proxy, stream):
        proxy.silence()
        await stream.send_all(b"again")
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        proxy.heal()
        assert await stream.receive_some() == b"AGAIN"


# ------------------------------------------------------------------ the disks


def test_a_power_cut_loses_what_was_not_synced_and_nothing_else() -> None:
    valkey = ValkeyServer(appendfsync="always")
    try:
        disk = VolatileDisk(valkey.directory)
    except NoDiskError as error:
        valkey.close()
        pytest.skip(str(error))
    try:
        valkey.start()
        valkey.execute("SET", "synced", "1")
        valkey.execute("CONFIG", "SET", "appendfsync", "no")
        valkey.execute("SET", "written", "1")
        valkey.kill()
        disk.cut_power()
        valkey.start()
        assert valkey.execute("GET", "synced") == b"1"
        assert valkey.execute("GET", "written") is None
        valkey.kill()
    finally:
        disk.close()
        valkey.close()


def test_a_full_disk_takes_nothing_until_it_is_freed() -> None:
    valkey = ValkeyServer()
    try:
        disk = SmallDisk(valkey.directory, 1 << 20)
    except NoDiskError as error:
        valkey.close()
        pytest.skip(str(error))
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (valkey.directory / "more").write_bytes(bytes(10_000))
        disk.free()
        (valkey.directory / "more").write_bytes(bytes(10_000))
    finally:
        disk.close()
        valkey.close()
