"""Collections are short, however much the server keeps in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from dbos_actors.cli import garbage
from dbos_actors.cli.garbage import WALKED_MAX, tidy_when_idle, tune_garbage_collection


class Node:
    """In a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def tuned() -> Iterator[None]:
    thresholds = gc.get_threshold()
    callbacks = list(gc.callbacks)
    tune_garbage_collection()
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


def test_no_collection_walks_more_than_what_is_new(tuned: None) -> None:
    walked: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generations = range(info["generation"] + 1)
            walked.append(sum(len(gc.get_objects(generation=g)) for g in generations))

    gc.callbacks.append(note)
    kept = [[number] for number in range(1_000_000)]
    gc.callbacks.remove(note)
    assert len(kept) == 1_000_000
    assert len(walked) > 100
    assert max(walked) <= 1.01 * WALKED_MAX
    assert gc.get_freeze_count() > 900_000


async def test_frozen_garbage_is_freed_once_the_server_is_idle(
    tuned: None,
    cpu: list[float],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the tests have imported is frozen too.
    monkeypatch.setattr(garbage, "FROZEN_WALKED_MAX", 10_000_000)
    node = weakref.ref(Node())
    gc.freeze()
    gc.collect()
    assert node() is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tidy_when_idle)
        for _ in range(10):
            await trio.sleep(1.0)
            cpu[0] += 0.5
        assert node() is not None, "it was tidied at work"
        await trio.sleep(11.0)
        assert node() is None
        nursery.cancel_scope.cancel()


async def test_too_much_to_walk_in_a_moment_is_left_alone(
    tuned: None,
    cpu: list[float],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "FROZEN_WALKED_MAX", 10)
    collections: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collections.append(info["generation"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tidy_when_idle)
        await trio.sleep(1.0)
        cpu[0] += 10.0
        gc.callbacks.append(note)
        await trio.sleep(30.0)
        gc.callbacks.remove(note)
        nursery.cancel_scope.cancel()
    assert 2 not in collections
