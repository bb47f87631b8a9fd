"""The memory of finished runs: what is counted is what they cost, and the budget is kept."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from dbos_actors.actors.agents.caches import RunCache


class Holder:
    """An actor's finished runs."""

    def __init__(self) -> None:
        self.runs: dict[str, bytes] = {}

    def evict(self, part: str) -> None:
        del self.runs[part]


def fill(cache: RunCache, *, agents: int, runs: int, record_bytes: int) -> list[Holder]:
    holders = [Holder() for _ in range(agents)]
    for number in range(runs):
        for holder in holders:
            part = f"r{number:015}"
            holder.runs[part] = bytes(record_bytes)
            cache.keep(holder, part, record_bytes)
    return holders


@pytest.mark.parametrize(("agents", "runs"), [(1, 20_000), (4_000, 5), (10_000, 2)])
def test_the_cache_counts_a_run_with_the_bytes_it_takes_in_memory(agents: int, runs: int) -> None:
    cache = RunCache(1 << 30)
    empty = fill(RunCache(1 << 30), agents=agents, runs=0, record_bytes=0)
    gc.collect()
    tracemalloc.start()
    try:
        holders = fill(cache, agents=agents, runs=runs, record_bytes=55)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    taken -= len(empty) * 130  # the holders themselves
    assert len(holders) == agents
    assert 0.7 * cache.size_bytes < taken < 1.15 * cache.size_bytes


def test_the_budget_is_kept_whatever_comes() -> None:
    cache = RunCache(50_000)
    holders = fill(cache, agents=3, runs=200, record_bytes=100)
    assert cache.size_bytes <= 50_000
    assert len(cache) == sum(len(holder.runs) for holder in holders)
    assert "r000000000000199" in holders[-1].runs
    holders[0].runs["large"] = b""
    cache.keep(holders[0], "large", 60_000)
    assert len(cache) == cache.size_bytes == 0
