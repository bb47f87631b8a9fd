"""``dbos-actors agents``: who is registered, and who is alive."""

from __future__ import annotations

import click

from dbos_actors.cli.remote import times
from dbos_actors.cli.remote.output import Column
from dbos_actors.cli.remote.records import record_of
from dbos_actors.cli.remote.session import Session, accepted, confirmed, listing, remote
from dbos_actors.client import DeleteAgentRequest, GetAgentRequest, ListAgentsRequest

COLUMNS = (
    Column("id"),
    Column("hostname"),
    Column("alive"),
    Column("last_seen", lambda record: times.shown(record["last_seen"])),
    Column("total_heartbeats"),
)


@click.group()
def agents() -> None:
    """Agents: who is registered, and who is alive."""


@remote("list", agents)
@click.option("--prefix", default="", help="Only agents whose id begins so.")
@click.option("--alive", "liveness", flag_value="alive", default="", help="Only those alive.")
@click.option("--silent", "liveness", flag_value="silent", help="Only those not alive.")
@click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    help="Only agents whose config has this entry; may be repeated.",
)
@listing
async def list_agents(
    session: Session, *, prefix: str, liveness: str, labels: tuple[str, ...], limit: int | None
) -> None:
    """List agents by id."""
    config = {key: value for key, _, value in (label.partition("=") for label in labels)}
    request = ListAgentsRequest(id_prefix=prefix, liveness=liveness, config=config)
    records = session.pages(session.stub.list_agents, request, "agents", limit=limit)
    await session.out.many(records, COLUMNS)


@remote("show", agents)
@click.argument("agent_id")
async def show_agent(session: Session, *, agent_id: str) -> None:
    """Show one agent's record."""
    response = await session.stub.get_agent(GetAgentRequest(agent_id=agent_id))
    accepted(response, found=response.found)
    session.out.one(record_of(response.agent))


@remote("delete", agents)
@click.argument("agent_id")
@click.option("--yes", is_flag=True, help="Delete without asking.")
async def delete_agent(session: Session, *, agent_id: str, yes: bool) -> None:
    """Delete an agent with its runs, results and tasks."""
    confirmed(f"Delete {agent_id} and all its runs, results and tasks?", yes=yes)
    accepted(await session.stub.delete_agent(DeleteAgentRequest(agent_id=agent_id)))
    session.out.done(f"{agent_id} is deleted", deleted=agent_id)
