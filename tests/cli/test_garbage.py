"""Collections are short, however much the server keeps in memory, and memory is given back."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing

from dbos_actors.cli import garbage
from dbos_actors.cli.garbage import WALKED_MAX, tend_memory


class Node:
    """In a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def left_as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    callbacks = list(gc.callbacks)
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks[:] = callbacks
    gc.unfreeze()
    gc.collect()


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The processor time that the process is told to have used."""
    used_s = [0.0]
    monkeypatch.setattr(garbage, "process_time", lambda: used_s[0])
    return used_s


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the heap was trimmed."""
    at: list[float] = []

    async def run_sync(_: object) -> None:
        await trio.lowlevel.checkpoint()
        at.append(trio.current_time())

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return at


@asynccontextmanager
async def tended() -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(tend_memory)
        yield
        nursery.cancel_scope.cancel()


@contextmanager
def walks() -> Iterator[list[tuple[int, int]]]:
    """The collections meanwhile: each one's generation, and how many containers it walked."""
    walked: list[tuple[int, int]] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generation = info["generation"]
            count = sum(len(gc.get_objects(generation=g)) for g in range(generation + 1))
            walked.append((generation, count))

    gc.callbacks.append(note)
    try:
        yield walked
    finally:
        gc.callbacks.remove(note)


async def test_no_collection_walks_more_than_what_is_new() -> None:
    async with tended():
        with walks() as walked:
            kept = [[number] for number in range(1_000_000)]
        assert len(kept) == 1_000_000
        assert len(walked) > 100
        assert max(count for _, count in walked) <= 1.01 * WALKED_MAX
        assert gc.get_freeze_count() > 900_000


async def test_what_is_made_while_as_much_is_freed_is_collected_all_the_same(
    cpu: list[float], autojump_clock: trio.testing.MockClock, trims: list[float]
) -> None:
    """Python counts what was made minus what was freed. Left to it, one collection walked all."""
    async with tended():
        kept = deque([number] for number in range(300_000))
        gc.freeze()
        with walks() as walked:
            for number in range(300_000):
                kept.popleft()
                kept.append([number])
                if number % 10_000 == 0:  # a busy server makes less in a twentieth of a second
                    cpu[0] += 0.05
                    await trio.sleep(0.05)
            kept.extend([number] for number in range(10_000))
    assert sum(count for _, count in walked) > 290_000
    assert max(count for _, count in walked) <= 1.01 * WALKED_MAX


async def test_memory_is_given_back_at_work_when_much_was_freed_and_once_more_later(
    cpu: list[float], autojump_clock: trio.testing.MockClock, trims: list[float]
) -> None:
    async def work(seconds: int) -> None:
        for _ in range(seconds):
            cpu[0] += 1.0
            await trio.sleep(1.0)

    async with tended():
        kept = [[number] for number in range(500_000)]
        await work(5)
        assert trims == []
        with walks() as walked:
            del kept
            freed_s = trio.current_time()
            await work(20)
    first, second = trims
    assert first - freed_s <= 1.1
    assert second - first == pytest.approx(6.0)
    assert [generation for generation, _ in walked].count(2) == 2
    assert max(count for _, count in walked) <= 1.01 * WALKED_MAX


async def test_frozen_garbage_is_freed_once_the_server_is_idle(
    cpu: list[float],
    autojump_clock: trio.testing.MockClock,
    trims: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the tests have imported is frozen too.
    monkeypatch.setattr(garbage, "FROZEN_WALKED_MAX", 10_000_000)
    async with tended():
        node = weakref.ref(Node())
        gc.freeze()
        gc.collect()
        assert node() is not None
        for _ in range(10):
            await trio.sleep(1.0)
            cpu[0] += 0.5
        assert node() is not None, "it was collected at work"
        await trio.sleep(11.0)
        assert node() is None
        assert len(trims) == 1


async def test_too_much_to_walk_in_a_moment_is_left_alone(
    cpu: list[float],
    autojump_clock: trio.testing.MockClock,
    trims: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "FROZEN_WALKED_MAX", 10)
    async with tended():
        await trio.sleep(1.0)
        cpu[0] += 10.0
        with walks() as walked:
            await trio.sleep(30.0)
    assert len(trims) == 1
    assert max(count for _, count in walked) <= 1.01 * WALKED_MAX
