"""Prometheus metrics: what an operator watches, on a page of its own port.

Calls are counted by an interceptor into plain integers, which costs a call well
under a microsecond; the library's own objects would cost ten times that. What the
parts of the server count themselves is read when the page is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from enum import Enum
from time import perf_counter
from typing import Any, Final

from grpclib.const import Status
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from dbos_actors.rpc.server.interceptors import Interceptor, StreamHandler, UnaryHandler
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.service.http_pages import Page

LATENCY_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the latency buckets: from an answer from memory to the longest wait for Redis."""

RENAMED: Final = {
    "dbos_store_kept_batches": "dbos_store_replayable_batches",
    "dbos_store_kept_bytes": "dbos_store_replayable_bytes",
}
"""Old name -> new name. The page shows both for one release."""

Gauges = dict[str, tuple[str, float]]
"""Name -> (what it is, value)."""


class _MethodCounts:
    """One method's calls so far."""

    __slots__ = ("buckets", "not_ok", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.seconds = [0.0]
        """In a list, which a closure adds to fastest."""
        self.not_ok: dict[str, int] = {}
        """By status; GONE are those whose client did not wait for the answer."""

    def timer(self) -> Callable[[], Callable[[Status | None], None]]:
        """To be called when a call begins; what it returns, with the call's status at its end.

        Closures over locals: this runs for every call, and an attribute or a member of
        an enumeration costs as much as the clock.
        """
        buckets, seconds, not_ok = self.buckets, self.seconds, self.not_ok
        clock, bounds, bucket_of, ok = perf_counter, LATENCY_BOUNDS_S, bisect_left, Status.OK

        def begin() -> Callable[[Status | None], None]:
            started_s = clock()

            def answered(status: Status | None) -> None:
                elapsed_s = clock() - started_s
                buckets[bucket_of(bounds, elapsed_s)] += 1
                seconds[0] += elapsed_s
                if status is not ok:
                    name = "GONE" if status is None else status.name
                    not_ok[name] = not_ok.get(name, 0) + 1

            return answered

        return begin


class CallMetrics(Interceptor):
    """Counts and times every call by method and status."""

    def __init__(self) -> None:
        self._methods: dict[str, _MethodCounts] = {}

    def unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:
        begin = self._counts(path).timer()

        def timed(call: UnaryCall) -> None:
            call.when_answered(begin())
            handler(call)

        return timed

    def stream(self, path: str, handler: StreamHandler) -> StreamHandler:
        begin = self._counts(path).timer()

        async def timed(stream: Any) -> None:
            stream.when_answered(begin())
            await handler(stream)

        return timed

    def refused(self, path: str, status: Status) -> None:
        self._counts(path).timer()()(status)

    def _counts(self, path: str) -> _MethodCounts:
        return self._methods.setdefault(path.removeprefix("/"), _MethodCounts())

    def families(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """The counts as metrics."""
        calls = CounterMetricFamily(
            "dbos_calls", "Calls answered, by gRPC status.", labels=["method", "status"]
        )
        latency = HistogramMetricFamily(
            "dbos_call_seconds", "From request to answer, in the server.", labels=["method"]
        )
        for method, counts in self._methods.items():
            not_ok = sorted(counts.not_ok.items())
            ok = sum(counts.buckets) - sum(count for _, count in not_ok)
            for status, count in [("OK", ok), *not_ok]:
                calls.add_metric([method, status], count)
            total = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip((*LATENCY_BOUNDS_S, "+Inf"), counts.buckets, strict=True):
                total += count
                buckets.append((str(bound), float(total)))
            latency.add_metric([method], buckets, counts.seconds[0])
        yield calls
        yield latency


def gauges_of(prefix: str, statistics: Any) -> Gauges:
    """The numbers of a part's statistics, a dataclass."""
    values = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    gauges = {
        f"dbos_{prefix}_{name}": (f"{prefix}: {name.replace('_', ' ')}.", float(value))
        for name, value in values.items()
        if isinstance(value, int | float)
    }
    for name, state in values.items():
        if isinstance(state, Enum):
            for member in type(state):
                gauges[f"dbos_{prefix}_{name}_{member.value}"] = (
                    f"{prefix}: whether its {name} is {member.value}.",
                    float(member is state),
                )
    return gauges


class _Collector(Collector):
    """The metrics of one page."""

    def __init__(self, calls: CallMetrics, gauges: Callable[[], Gauges]) -> None:
        self._calls = calls
        self._gauges = gauges

    def describe(self) -> Iterable[Any]:
        return []

    def collect(self) -> Iterable[Any]:
        yield from self._calls.families()
        gauges = self._gauges()
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for old, new in RENAMED.items():
            if new in gauges:
                yield GaugeMetricFamily(old, f"Renamed: use {new}.", value=gauges[new][1])


def metrics_page(*, calls: CallMetrics, gauges: Callable[[], Gauges]) -> Callable[[], Page]:
    """The function that makes the page, for `dbos_actors.service.http_pages`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(calls, gauges))
    return lambda: Page(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
