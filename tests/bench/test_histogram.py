"""Latency histograms against sorted samples."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bench.load.histogram import Histogram

latencies_us = st.lists(st.integers(0, 100_000_000), min_size=1, max_size=200)


@given(latencies_us, st.sampled_from([50, 95, 99, 100]))
def test_a_percentile_is_at_most_a_64th_above_the_true_one(
    values: list[int], percent: float
) -> None:
    true = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    found = Histogram.of_seconds((value + 0.5) / 1e6 for value in values).percentile_us(percent)
    assert true <= found <= true * (1 + 1 / 64) + 1


@given(latencies_us, latencies_us)
def test_histograms_of_two_processes_add_up(left: list[int], right: list[int]) -> None:
    both = Histogram.of_seconds(value / 1e6 for value in left)
    both.add(Histogram.of_seconds(value / 1e6 for value in right))
    whole = Histogram.of_seconds(value / 1e6 for value in left + right)
    assert both.to_json() == whole.to_json()
    assert Histogram.from_json(both.to_json()).to_json() == both.to_json()
    assert len(both) == len(left) + len(right)


def test_an_empty_histogram_has_no_latency() -> None:
    assert Histogram().percentile_us(99) == 0
    assert Histogram().share_above(1) == 0


def test_the_share_above_a_limit_is_counted() -> None:
    histogram = Histogram.of_seconds([0.001] * 99 + [1.0])
    assert histogram.share_above(50_000) == 0.01
