"""``dbos-actors results``: what was measured."""

from __future__ import annotations

import click

from dbos_actors.cli.remote import times
from dbos_actors.cli.remote.output import Column
from dbos_actors.cli.remote.records import record_of
from dbos_actors.cli.remote.session import Session, accepted, listing, remote
from dbos_actors.cli.remote.times import TIME
from dbos_actors.client import GetResultRequest, ListResultsRequest

COLUMNS = (
    Column("id"),
    Column("module_name"),
    Column("received_at", lambda record: times.shown(record["received_at"])),
    Column("data", lambda record: record.get("data", "(not text)")),
)


@click.group()
def results() -> None:
    """Results: what was measured."""


@remote("list", results)
@click.argument("agent_id")
@click.option("--module", default="", help="Only results of this module.")
@click.option("--since", type=TIME, default=0, help="Only those received at this time or later.")
@click.option("--until", type=TIME, default=0, help="Only those received before this time.")
@click.option("--newest-first", is_flag=True, help="Begin with the latest.")
@listing
async def list_results(
    session: Session,
    *,
    agent_id: str,
    module: str,
    since: int,
    until: int,
    newest_first: bool,
    limit: int | None,
) -> None:
    """List an agent's results by the time when they were received."""
    request = ListResultsRequest(
        agent_id=agent_id,
        module_name=module,
        since=since,
        until=until,
        newest_first=newest_first,
    )
    records = session.pages(session.stub.list_results, request, "results", limit=limit)
    await session.out.many(records, COLUMNS)


@remote("show", results)
@click.argument("agent_id")
@click.argument("result_id")
async def show_result(session: Session, *, agent_id: str, result_id: str) -> None:
    """Show one result."""
    request = GetResultRequest(agent_id=agent_id, request_id=result_id)
    response = await session.stub.get_result(request)
    accepted(response, found=response.found)
    session.out.one(record_of(response.result))
