"""The simulated Redis keeps the contract that real connectors keep."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio

from dbos_actors.clock import SystemClock
from dbos_actors.store import Connector
from tests.simulation.network import Conditions, Route
from tests.simulation.redis.deployment import SimulatedConnector, SimulatedRedis
from tests.store.contract_connector import ConnectorContract

CONDITIONS = [Conditions(), Conditions(latency_s=0.002, split_chance=0.5)]


class TestSimulatedConnector(ConnectorContract):
    @pytest.fixture(params=CONDITIONS, ids=["at once", "slow and in pieces"])
    async def connector(self, request: pytest.FixtureRequest) -> AsyncIterator[Connector]:
        async with trio.open_nursery() as nursery:
            redis = SimulatedRedis(SystemClock(), nursery)
            redis.primary.password = "sesame"
            route = Route(random.Random(2), request.param)
            yield SimulatedConnector(redis, route, password="sesame")
            nursery.cancel_scope.cancel()
