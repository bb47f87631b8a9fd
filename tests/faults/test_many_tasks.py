"""Many tasks at once: a burst, a steady flow, a ``kill -9`` with all of them pending.

Small sizes and generous bounds, since machines differ; `python -m bench.task_load` runs the full
ones.
"""

from __future__ import annotations

import pytest

from bench.task_load import drain_run, recovery_run, steady_run

pytestmark = pytest.mark.long


async def test_tasks_due_in_the_same_second_are_each_pushed_once_and_drained() -> None:
    figures = await drain_run(10_000, subscribers=10)
    assert figures["drained_per_s"] > 1_000


async def test_a_steady_flow_of_due_tasks_is_pushed_on_time_beside_results() -> None:
    figures = await steady_run(500, seconds=4, subscribers=4, results=20)
    assert figures["lateness_ms_p99"] < 1_000
    assert figures["results_beside"] > 1_000


async def test_pending_tasks_are_all_there_soon_after_a_kill() -> None:
    figures = await recovery_run(50_000)
    assert figures["recovery_s"] < 10
