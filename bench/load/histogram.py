"""Latency histograms: log-linear buckets, as HdrHistogram has them.

A value keeps its highest seven bits, so a percentile is at most 1/64 off; equal
bucket numbers mean equal values everywhere, so histograms of many processes add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

_PRECISION_BITS = 7


def _bucket(value: int) -> int:
    shift = max(0, value.bit_length() - _PRECISION_BITS)
    return (shift << _PRECISION_BITS) + (value >> shift)


def _highest(bucket: int) -> int:
    """The largest value that falls into ``bucket``."""
    shift, top = divmod(bucket, 1 << _PRECISION_BITS)
    return (top + 1 << shift) - 1


class Histogram:
    """Counts of latencies in microseconds."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts: Counter[int] = Counter(counts or {})

    @classmethod
    def of_seconds(cls, samples: Iterable[float]) -> Histogram:
        """A histogram of samples given in seconds."""
        return cls(Counter(_bucket(max(0, int(sample * 1e6))) for sample in samples))

    @classmethod
    def from_json(cls, counts: Mapping[str, int]) -> Histogram:
        """The inverse of `to_json`."""
        return cls({int(bucket): count for bucket, count in counts.items()})

    def to_json(self) -> dict[str, int]:
        """Bucket number to count, for transport between processes."""
        return {str(bucket): count for bucket, count in sorted(self._counts.items())}

    def add(self, other: Histogram) -> None:
        """Adds the samples of ``other``."""
        self._counts.update(other._counts)

    def __len__(self) -> int:
        return self._counts.total()

    def percentile_us(self, percent: float) -> float:
        """The latency in µs that ``percent`` of the samples do not exceed; 0 if empty."""
        wanted = self._counts.total() * percent / 100
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return float(_highest(bucket))
        return 0.0

    def share_above(self, limit_us: float) -> float:
        """The share of samples, 0 to 1, that lie above ``limit_us``."""
        total = self._counts.total()
        if not total:
            return 0.0
        above = sum(n for bucket, n in self._counts.items() if _highest(bucket) > limit_us)
        return above / total
