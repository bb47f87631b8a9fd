"""A batch of reads is bounded by the bytes that it brings, whatever those who read know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import pytest
import trio

from dbos_actors.clock import SystemClock
from dbos_actors.errors import UnavailableError
from dbos_actors.store import Store, StoreSettings, connector_for, open_store, pack
from dbos_actors.store.connection import Connection
from tests.support.valkey import ValkeyServer

MIB = 1 << 20
SETTINGS = StoreSettings(read_bytes=MIB, argument_bytes=MIB // 4)


@contextmanager
def replies_of_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes that each exchange with Redis brought meanwhile."""
    sizes: list[int] = []
    original = Connection.call

    async def call(self: Connection, payload: bytes, count: int) -> Any:
        replies = await original(self, payload, count)
        sizes.append(sum(_size(reply) for reply in replies))
        return replies

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "call", call)
        yield sizes


def _size(reply: object) -> int:
    if isinstance(reply, list):
        return sum(map(_size, reply))
    return len(reply) if isinstance(reply, bytes) else 0


async def read_all(store: Store, commands: Sequence[bytes], **fields: Any) -> list[Any]:
    """Ask for all of them at once; the replies in the order of the commands."""
    found: dict[int, Any] = {}
    done = trio.Event()

    def take(number: int, outcome: Sequence[object] | UnavailableError) -> None:
        found[number] = outcome if isinstance(outcome, UnavailableError) else outcome[0]
        if len(found) == len(commands):
            done.set()

    for number, command in enumerate(commands):
        store.submit_read([command], partial(take, number), **fields)
    with trio.fail_after(20.0):
        await done.wait()
    return [found[number] for number in range(len(commands))]


def opened(valkey: ValkeyServer) -> Any:
    return open_store(
        connector_for(valkey.address), settings=SETTINGS, clock=SystemClock(), random=Random(1)
    )


async def test_large_records_come_a_few_at_a_time(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        valkey.execute("HSET", "h", f"f{number}", bytes([number]) * (MIB // 5))
    async with opened(valkey) as store:
        commands = [pack("HGET", "h", f"f{number}") for number in range(100)]
        with replies_of_batches(monkeypatch) as sizes:
            found = await read_all(store, commands, reply_bytes=None)
    assert [value[:1] for value in found] == [bytes([number]) for number in range(100)]
    assert max(sizes) <= MIB + 1_000
    # Five fit, and are not read one by one either.
    assert len([size for size in sizes if size > MIB // 2]) <= 26


async def test_small_records_cost_one_more_exchange_however_many_they_are(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        valkey.execute("HSET", "h", f"f{number}", f"value {number}")
    valkey.execute("SET", "wrong", "type")
    async with opened(valkey) as store:
        commands = [pack("HGET", "h", f"f{number % 60}") for number in range(2_000)]
        with replies_of_batches(monkeypatch) as sizes:
            found = await read_all(store, commands, reply_bytes=None)
            exchanges = sum(size > 0 for size in sizes)
            (wrong, *_) = await read_all(store, [pack("HGET", "wrong", "f")] * 20, reply_bytes=None)
    wanted = [f"value {n % 60}".encode() if n % 60 < 50 else None for n in range(2_000)]
    assert found == wanted
    assert exchanges <= 3
    assert isinstance(wrong, UnavailableError)
    assert "WRONGTYPE" in str(wrong)


async def test_reads_whose_size_is_known_are_bounded_by_it(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    valkey.execute("HSET", "h", "f", b"x" * (MIB // 2))
    async with opened(valkey) as store:
        with replies_of_batches(monkeypatch) as sizes:
            command = pack("HMGET", "h", "f")
            found = await read_all(store, [command] * 11, reply_bytes=MIB // 2)
            (large,) = await read_all(store, [command], reply_bytes=10 * MIB)
    assert found == [[b"x" * (MIB // 2)]] * 11
    assert large == found[0]
    assert max(sizes) <= MIB + 1_000
