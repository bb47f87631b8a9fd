"""``dbos-actors ping``: whether a server answers, and how fast."""

from __future__ import annotations

import asyncio
import statistics
import time

import click

from dbos_actors.cli.remote.session import Session, remote
from dbos_actors.client import GetAgentRequest

_AGENT_ID = "-"
"""Of nobody's agent: the server answers from memory that it is not there."""


@remote("ping")
@click.option("--count", type=click.IntRange(1, 10_000), default=5, show_default=True)
@click.option(
    "--interval",
    type=click.FloatRange(0, 60),
    default=0.2,
    show_default=True,
    metavar="SECONDS",
    help="Between two calls.",
)
async def ping(session: Session, *, count: int, interval: float) -> None:
    """Make a few calls that read, and say how long each took."""
    taken_ms: list[float] = []
    for number in range(count):
        if number:
            await asyncio.sleep(interval)
        begun = time.perf_counter()
        await session.stub.get_agent(GetAgentRequest(agent_id=_AGENT_ID))
        taken_ms.append((time.perf_counter() - begun) * 1e3)
        if session.out.format == "table":
            click.echo(f"{session.address}: answered in {taken_ms[-1]:.2f} ms")
    median_ms = statistics.median(taken_ms)
    session.out.done(
        f"{count} calls: least {min(taken_ms):.2f}, median {median_ms:.2f}, "
        f"most {max(taken_ms):.2f} ms",
        address=session.address,
        calls=count,
        least_ms=round(min(taken_ms), 3),
        median_ms=round(median_ms, 3),
        most_ms=round(max(taken_ms), 3),
    )
