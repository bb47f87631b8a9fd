"""The SDK on Trio: betterproto's stub over a channel of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from grpclib.const import Status

from dbos_actors.api.sdk import dbos
from dbos_actors.client import (
    Agent,
    GetAgentRequest,
    GetAgentResponse,
    GRPCError,
    ListAgentsRequest,
    MeasurementResult,
    StoreResultRequest,
    StoreResultsResponse,
)
from dbos_actors.client.trio import BackoffPolicy, Channel, ChannelOptions, DbosStub, connect
from dbos_actors.rpc.server.listeners import bound_address, open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream


class FakeDbos(dbos.DbosBase):
    """Knows every agent; counts results; the rest is not implemented. Written for asyncio."""

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def get_agent(self, get_agent_request: GetAgentRequest) -> GetAgentResponse:
        if get_agent_request.agent_id == "slow":
            await trio.sleep_forever()
        return GetAgentResponse(found=True, agent=Agent(id=get_agent_request.agent_id))

    async def count_results(
        self, stream: ServerStream[StoreResultRequest, StoreResultsResponse]
    ) -> None:
        count = 0
        try:
            async for request in stream:
                if request.result.id == "bad":
                    raise GRPCError(Status.INVALID_ARGUMENT, "bad")
                count += 1
                await stream.send_message(StoreResultsResponse(durable=count))
        finally:
            self.ended.set()

    def __mapping__(self) -> Any:
        # betterproto's base does not close the generator of a method whose call is cancelled.
        mapping = super().__mapping__()
        path = "/dbos.DBOS/StoreResults"
        mapping[path] = mapping[path]._replace(func=self.count_results)
        return mapping


@asynccontextmanager
async def serving(service: Any, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = Server(
        unary={}, services=[service], status_of=lambda error: (Status.UNKNOWN, str(error))
    )
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners(address)
        await nursery.start(server.serve, listeners)
        yield bound_address(listeners[0])
        nursery.cancel_scope.cancel()


def result(number: int | str) -> StoreResultRequest:
    return StoreResultRequest(result=MeasurementResult(id=str(number)))


async def test_a_call_is_answered_over_tcp_and_a_unix_socket(tmp_path: Path) -> None:
    for address in ("127.0.0.1:0", f"unix:{tmp_path}/s"):
        async with serving(FakeDbos(), address) as bound, connect(bound) as stub:
            response = await stub.get_agent(GetAgentRequest(agent_id="probe-1"))
            assert response == GetAgentResponse(found=True, agent=Agent(id="probe-1"))


async def test_a_stream_both_ways_takes_iterables_of_either_kind() -> None:
    async def requests(count: int) -> AsyncIterator[StoreResultRequest]:
        for number in range(count):
            yield result(number)

    async with serving(FakeDbos()) as address, connect(address) as stub:
        for source in (requests(5), map(result, range(5))):
            settled = [response.durable async for response in stub.store_results(source)]
            assert settled == [1, 2, 3, 4, 5]


async def test_a_stream_both_ways_is_cancelled_when_its_loop_is_left() -> None:
    service = FakeDbos()
    sending = trio.Event()

    async def endless() -> AsyncIterator[StoreResultRequest]:
        try:
            while True:
                yield result(1)
        finally:
            sending.set()

    async with serving(service) as address, connect(address) as stub:
        responses = stub.store_results(endless())
        async for response in responses:
            if response.durable == 3:
                break
        await responses.aclose()  # type: ignore[attr-defined] # betterproto's generator
        with trio.fail_after(5):
            await sending.wait()
            await service.ended.wait()


async def test_errors_of_either_end_of_a_stream_are_raised_where_it_is_read() -> None:
    async def broken() -> AsyncIterator[StoreResultRequest]:
        yield result(1)
        raise LookupError("no more")

    async with serving(FakeDbos()) as address, connect(address) as stub:
        with pytest.raises(LookupError, match="no more"):
            [_ async for _ in stub.store_results(broken())]
        with pytest.raises(GRPCError, match="bad"):
            [_ async for _ in stub.store_results([result(1), result("bad"), result(2)])]


async def test_unary_methods_of_the_stub_as_generated_run_too() -> None:
    async with serving(FakeDbos()) as address:
        host, _, port = address.rpartition(":")
        async with Channel(host, int(port)) as channel:
            stub = dbos.DbosStub(channel)  # type: ignore[arg-type]
            assert (await stub.get_agent(GetAgentRequest(agent_id="a"))).found


async def test_failures_are_statuses(tmp_path: Path) -> None:
    async with serving(FakeDbos()) as address, connect(address, timeout_s=0.05) as stub:
        with pytest.raises(GRPCError) as caught:
            await stub.get_agent(GetAgentRequest(agent_id="slow"))
        assert caught.value.status is Status.DEADLINE_EXCEEDED
        with pytest.raises(GRPCError) as caught:
            await stub.list_agents(ListAgentsRequest())
        assert caught.value.status is Status.UNIMPLEMENTED
    async with connect(f"unix:{tmp_path}/nobody", retries=False) as stub:
        with pytest.raises(GRPCError, match="No such file") as caught:
            await stub.get_agent(GetAgentRequest(agent_id="a"))
        assert caught.value.status is Status.UNAVAILABLE
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        async with connect("here"):
            pytest.fail("connected")


async def test_calls_may_wait_for_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    options = ChannelOptions(wait_for_ready=True, backoff=BackoffPolicy(first_s=0.01))
    address = f"unix:{tmp_path}/s"
    async with connect(address, options=options) as stub, trio.open_nursery() as nursery:
        nursery.start_soon(stub.get_agent, GetAgentRequest(agent_id="a"))
        await trio.testing.wait_all_tasks_blocked()
        async with serving(FakeDbos(), address):
            assert (await stub.get_agent(GetAgentRequest(agent_id="b"))).found


async def test_the_token_goes_with_every_call() -> None:
    seen = []

    class Seeing(FakeDbos):
        def __mapping__(self) -> Any:
            mapping = super().__mapping__()
            for path, handler in mapping.items():

                async def see(stream: Any, function: Any = handler.func) -> None:
                    seen.append(stream.metadata.get("authorization"))
                    await function(stream)

                mapping[path] = handler._replace(func=see)
            return mapping

    async with serving(Seeing()) as address:
        async with connect(address, token="secret") as stub:
            await stub.get_agent(GetAgentRequest(agent_id="a"))
            [_ async for _ in stub.store_results([result(1)])]
        async with connect(address) as stub:
            await stub.get_agent(GetAgentRequest(agent_id="a"))
    assert seen == ["Bearer secret", "Bearer secret", None]


def test_the_stub_has_every_method_of_the_generated_one() -> None:
    assert issubclass(DbosStub, dbos.DbosStub)
