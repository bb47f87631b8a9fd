"""What the Python peers do in Redis, over `redis.asyncio`: one transaction per call.

| key | type | holds |
|---|---|---|
| results:<agent> | hash | result id -> MeasurementResult |
| results-at:<agent> | sorted set | result ids by received_at |
| agents | hash | agent id -> Agent |
| agents:index | sorted set, score 0 | agent ids |
| states:<agent> | hash | request id -> ModuleState |
| states-at:<agent> | sorted set | request ids by time of last change |
| unfinished:<agent> | set | request ids of runs not in a terminal state |
| request:<request id> | string | agent id |

State changes read before they write and take no lock in between: less than the
service promises, and in the peers' favour.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis

from dbos_actors.api import messages

POOL_CONNECTIONS: Final = 32
"""Of 8 to 128, and none, the least CPU per call at 128 in flight; 64 is as good."""

_RANKS: Final = {"": -1, "created": 0, "started": 1, "running": 2} | dict.fromkeys(
    ("completed", "error", "failed"), 3
)


def connect() -> Any:
    """A client of the Redis that REDIS_ADDR names."""
    host, _, port = os.environ["REDIS_ADDR"].rpartition(":")
    pool = BlockingConnectionPool(
        host=host,
        port=int(port),
        max_connections=int(os.environ.get("PEER_POOL", POOL_CONNECTIONS)),
        timeout=60,
        protocol=2,
    )
    return Redis(connection_pool=pool)


class Durable:
    """The calls, from request message to response message."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    async def no_op(self, _request: messages.StoreResultRequest) -> messages.StoreResultResponse:
        return messages.StoreResultResponse(success=True)

    async def store_result(
        self, request: messages.StoreResultRequest
    ) -> messages.StoreResultResponse:
        result = request.result
        if not result.received_at:
            result.received_at = int(time.time())
        if not result.dbos_server_id:
            result.dbos_server_id = "peer"
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(f"results:{result.agent_id}", result.id, result.SerializeToString())
            pipe.zadd(f"results-at:{result.agent_id}", {result.id: result.received_at}, nx=True)
            await pipe.execute()
        return messages.StoreResultResponse(success=True)

    async def get_result(self, request: messages.GetResultRequest) -> messages.GetResultResponse:
        record = await self._redis.hget(f"results:{request.agent_id}", request.request_id)
        if record is None:
            return messages.GetResultResponse(error="not found")
        result = messages.MeasurementResult.FromString(record)
        return messages.GetResultResponse(found=True, result=result)

    async def list_results(
        self, request: messages.ListResultsRequest
    ) -> messages.ListResultsResponse:
        last = (request.page_size or 0) - 1
        ids = await self._redis.zrange(f"results-at:{request.agent_id}", 0, last)
        response = messages.ListResultsResponse()
        if ids:
            for record in await self._redis.hmget(f"results:{request.agent_id}", ids):
                if record is not None:
                    response.results.append(messages.MeasurementResult.FromString(record))
        return response

    async def register_agent(
        self, request: messages.RegisterAgentRequest
    ) -> messages.RegisterAgentResponse:
        agent = request.agent
        record = await self._redis.hget("agents", agent.id)
        if record is not None:
            known = messages.Agent.FromString(record)
            agent.first_seen = min(known.first_seen, agent.first_seen)
            agent.last_seen = max(known.last_seen, agent.last_seen)
            agent.total_heartbeats = max(known.total_heartbeats, agent.total_heartbeats)
        agent.alive = True
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset("agents", agent.id, agent.SerializeToString())
            if record is None:
                pipe.zadd("agents:index", {agent.id: 0})
            await pipe.execute()
        return messages.RegisterAgentResponse(success=True)

    async def get_agent(self, request: messages.GetAgentRequest) -> messages.GetAgentResponse:
        record = await self._redis.hget("agents", request.agent_id)
        if record is None:
            return messages.GetAgentResponse(error="not found")
        return messages.GetAgentResponse(found=True, agent=messages.Agent.FromString(record))

    async def set_module_state(
        self, request: messages.SetModuleStateRequest
    ) -> messages.SetModuleStateResponse:
        state = request.state
        key = f"states:{state.agent_id}"
        record = await self._redis.hget(key, state.request_id)
        known = messages.ModuleState.FromString(record) if record else messages.ModuleState()
        if _RANKS[state.state] <= _RANKS[known.state]:
            return messages.SetModuleStateResponse(
                error=f"invalid transition {known.state} -> {state.state}"
            )
        state.version = known.version + 1
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, state.request_id, state.SerializeToString())
            pipe.zadd(
                f"states-at:{state.agent_id}", {state.request_id: time.time_ns() // 1_000_000}
            )
            if record is None:
                pipe.set(f"request:{state.request_id}", state.agent_id)
                pipe.sadd(f"unfinished:{state.agent_id}", state.request_id)
            if _RANKS[state.state] == 3:
                pipe.srem(f"unfinished:{state.agent_id}", state.request_id)
            await pipe.execute()
        return messages.SetModuleStateResponse(success=True)

    async def get_module_state(
        self, request: messages.GetModuleStateRequest
    ) -> messages.GetModuleStateResponse:
        agent_id = await self._redis.get(f"request:{request.request_id}")
        if agent_id is None:
            return messages.GetModuleStateResponse(error="not found")
        record = await self._redis.hget(f"states:{agent_id.decode()}", request.request_id)
        state = messages.ModuleState.FromString(record)
        return messages.GetModuleStateResponse(found=True, state=state)

    def methods(self) -> dict[str, tuple[Any, Any, Any]]:
        """Full method path to (coroutine function, request class, response class)."""
        m = messages
        return {
            "/dbos.Bench/NoOp": (self.no_op, m.StoreResultRequest, m.StoreResultResponse),
            "/dbos.DBOS/StoreResult": (
                self.store_result,
                m.StoreResultRequest,
                m.StoreResultResponse,
            ),
            "/dbos.DBOS/GetResult": (self.get_result, m.GetResultRequest, m.GetResultResponse),
            "/dbos.DBOS/ListResults": (
                self.list_results,
                m.ListResultsRequest,
                m.ListResultsResponse,
            ),
            "/dbos.DBOS/RegisterAgent": (
                self.register_agent,
                m.RegisterAgentRequest,
                m.RegisterAgentResponse,
            ),
            "/dbos.DBOS/GetAgent": (self.get_agent, m.GetAgentRequest, m.GetAgentResponse),
            "/dbos.DBOS/SetModuleState": (
                self.set_module_state,
                m.SetModuleStateRequest,
                m.SetModuleStateResponse,
            ),
            "/dbos.DBOS/GetModuleState": (
                self.get_module_state,
                m.GetModuleStateRequest,
                m.GetModuleStateResponse,
            ),
        }
