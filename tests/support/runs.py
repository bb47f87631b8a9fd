"""Module runs as tests report them."""

from __future__ import annotations

from tests.support.clients import Client


def start_runs(client: Client, count: int) -> None:
    """Report so many runs of agent ``a`` as running: ``r0``, ``r1`` and so on."""
    run = {"agent_id": "a", "module_name": "m", "state": "running"}
    requests = ({"state": {**run, "request_id": f"r{number}"}} for number in range(count))
    assert all(outcome.success for outcome in client.call_many("SetModuleState", requests))
