"""Runs faults in rounds, each on a stage of its own, and adds up what came of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.chaos.careful import careful_plan
from tests.chaos.disks import NoDiskError
from tests.chaos.faults import Fault
from tests.chaos.scene import open_scene
from tests.chaos.verdict import Verdict

ROUND: Final = 5
"""Repetitions on one stage: the history stays short enough to be checked within a second or two."""


@dataclass(slots=True)
class Row:
    """One fault's line of the table."""

    fault: Fault
    times: int = 0
    kills: int = 0
    skipped: str = ""
    """Why it could not be done here."""
    verdict: Verdict = field(default_factory=Verdict)


def repetitions(fault: Fault, chosen: Sequence[Fault], kills: int) -> int:
    """How often to do a fault for so many kills in all."""
    shares = sum(other.share for other in chosen)
    if not fault.share:
        return fault.times if not shares else max(1, round(fault.times * kills / 200))
    return max(1, -(-kills * fault.share // (shares * fault.kills)))


async def run_fault(fault: Fault, times: int, *, seed: int, give_up_at: float) -> Row:
    """Do a fault so often; no round is begun after ``give_up_at`` (``time.monotonic``)."""
    row = Row(fault)
    random = Random(f"{seed} {fault.name}")
    while row.times < times and not row.skipped:
        if time.monotonic() > give_up_at:
            row.skipped = "out of time"
            break
        try:
            await _round(row, min(ROUND, times - row.times), random)
        except NoDiskError as error:
            row.skipped = f"not possible here: {error}"
        except Exception as error:  # noqa: BLE001 - a round that ends early is a finding
            row.times += 1
            row.verdict.violations.append("".join(traceback.format_exception(error)))
    return row


async def _round(row: Row, times: int, random: Random) -> None:
    fault = row.fault
    plan = careful_plan()
    async with open_scene(plan, stage=fault.stage, fsync=fault.fsync, random=random) as scene:
        for _ in range(times):
            await scene.wait_busy()
            await fault.run(scene)
            await scene.recover()
        await scene.wait_busy()
        verdict = await scene.verdict(plan)
    row.times += times
    row.kills += scene.kills
    total = row.verdict
    total.acknowledged += verdict.acknowledged
    total.unanswered += verdict.unanswered
    total.judged += verdict.judged
    total.lost += verdict.lost
    total.lost_age_s = max(total.lost_age_s, verdict.lost_age_s)
    total.violations += verdict.violations
    total.pauses_s += verdict.pauses_s
    if verdict.lost and not fault.may_lose:
        total.violations.append(f"{verdict.lost} acknowledged writes are lost")


_HEAD: Final = (
    "| fault | level | times | kills | acknowledged | no answer | judged calls "
    "| pause, median | pause, longest | lost | violations |"
)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [_HEAD, "|---|---|" + "---:|" * 9]
    for row in rows:
        fault, verdict = row.fault, row.verdict
        level = "fsync" if fault.fsync else "replay"
        if row.skipped and not row.times:
            lines.append(f"| {fault.what} | {level} | {row.skipped} |" + " |" * 8)
            continue
        pauses = sorted(verdict.pauses_s) or [0.0]
        lost = f"{verdict.lost:,}"
        if verdict.lost:
            lost += f" (last {verdict.lost_age_s:.1f} s)"
        lines.append(
            f"| {fault.what} | {level} | {row.times} | {row.kills} | {verdict.acknowledged:,} "
            f"| {verdict.unanswered:,} | {verdict.judged:,} | {pauses[len(pauses) // 2]:.2f} s "
            f"| {pauses[-1]:.2f} s | {lost} | {len(verdict.violations)} |"
        )
    done = [row for row in rows if row.times]
    lines.append(
        f"| **all** | | {sum(row.times for row in done)} | {sum(row.kills for row in done)} "
        f"| {sum(row.verdict.acknowledged for row in done):,} "
        f"| {sum(row.verdict.unanswered for row in done):,} "
        f"| {sum(row.verdict.judged for row in done):,} | | "
        f"| {sum(row.verdict.lost for row in done):,} "
        f"| {sum(len(row.verdict.violations) for row in done)} |"
    )
    return "\n".join(lines)
