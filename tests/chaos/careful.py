"""The careful clients of a scene: few, about few things, so that every call can be judged."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any, Final

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.api import messages
from dbos_actors.rpc.client.channel import Channel
from tests.simulation.history import Ending, Outcome
from tests.simulation.plan import Plan, plan_of

PATIENCE_S: Final = 8.0
"""The longest deadline of a call."""

_REFUSED: Final = "Redis refused the commit"
"""UNAVAILABLE, like much else, but here the server knows that nothing was written."""


class Calls:
    """The service as the careful clients reach it."""

    def __init__(
        self, channel: Channel, up: Callable[[], trio.Event], agents: Container[str]
    ) -> None:
        self._channel = channel
        self._up = up
        self._agents = agents

    def now_s(self) -> float:
        return trio.current_time()

    async def exchange(
        self, method: str, request: dict[str, Any], timeout_s: float | None
    ) -> Outcome:
        # Calls that reach nobody would only make the history long.
        await self._up().wait()
        message = getattr(messages, f"{method}Request")(**request)
        path = f"/dbos.DBOS/{method}"
        try:
            body = await self._channel.unary(
                path, message.SerializeToString(), timeout=timeout_s or PATIENCE_S
            )
        except GRPCError as error:
            if error.status is Status.RESOURCE_EXHAUSTED or _REFUSED in str(error.message):
                return Ending.NO_EFFECT, error.message, "server"
            return Ending.UNKNOWN, f"{error.status.name}: {error.message}", "server"
        response = getattr(messages, f"{method}Response").FromString(body)
        if method == "ListAgents":
            # The load's agents are none of these clients' business.
            ours = [agent for agent in response.agents if agent.id in self._agents]
            response = messages.ListAgentsResponse(agents=ours, error=response.error)
        return Ending.ANSWERED, response, "server"


def careful_plan() -> Plan:
    """Few agents, few runs, all shared, endless work."""
    return replace(
        plan_of(0),
        agents=2,
        runs=3,
        results=2,
        tasks=3,
        clients=4,
        operations=1_000_000_000,
        think_s=0.01,
        deletes=True,
    )
