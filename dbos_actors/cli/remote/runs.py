"""``dbos-actors runs``: how far the runs of modules are."""

from __future__ import annotations

import click

from dbos_actors.cli.remote import times
from dbos_actors.cli.remote.output import Column
from dbos_actors.cli.remote.records import record_of
from dbos_actors.cli.remote.session import Session, accepted, listing, remote
from dbos_actors.client import GetModuleStateRequest, ListModuleStatesRequest

COLUMNS = (
    Column("request_id"),
    Column("module_name"),
    Column("state"),
    Column("version"),
    Column("timestamp", lambda record: times.shown(record["timestamp"])),
    Column("error_message"),
)


@click.group()
def runs() -> None:
    """Runs of modules, and the states of modules themselves."""


@remote("list", runs)
@click.argument("agent_id")
@click.option("--module", default="", help="Only runs of this module.")
@click.option("--state", "states", multiple=True, help="Only runs in this state; may be repeated.")
@listing
async def list_runs(
    session: Session, *, agent_id: str, module: str, states: tuple[str, ...], limit: int | None
) -> None:
    """List an agent's runs by the time of their last change."""
    request = ListModuleStatesRequest(agent_id=agent_id, module_name=module, states=list(states))
    records = session.pages(session.stub.list_module_states, request, "states", limit=limit)
    await session.out.many(records, COLUMNS)


@remote("show", runs)
@click.argument("request_id")
@click.option("--agent", default="", help="Whose run, if several agents use the request id.")
async def show_run(session: Session, *, request_id: str, agent: str) -> None:
    """Show one run."""
    response = await session.stub.get_module_state(
        GetModuleStateRequest(request_id=request_id, agent_id=agent)
    )
    accepted(response, found=response.found)
    session.out.one(record_of(response.state))
