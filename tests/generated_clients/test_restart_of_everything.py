"""What clients of every kind have written is there after server and store have restarted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc.aio
import pytest

from dbos_actors.client import (
    Agent,
    GetAgentRequest,
    GetResultRequest,
    ListResultsRequest,
    MeasurementResult,
    RegisterAgentRequest,
    StoreResultRequest,
    connect,
)
from tests.support.clients import KINDS, Client, open_client
from tests.support.contracts import contract
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer


def traceroute(number: int) -> bytes:
    """A result of the shape probes send: JSON, some 0.8 KB."""
    hops = [
        {"hop": hop, "result": [{"from": f"192.0.2.{hop}", "rtt": 1.5 * hop, "ttl": 64 - hop}]}
        for hop in range(1, 12)
    ]
    return json.dumps({"msm_id": 5_000 + number, "af": 4, "proto": "ICMP", "result": hops}).encode()


def write(client: Client, agent: str) -> None:
    assert client.call("RegisterAgent", agent={"id": agent, "first_seen": 7}).success
    for name in ("created", "running", "completed"):
        state = {"agent_id": agent, "module_name": "trace", "request_id": agent, "state": name}
        assert client.call("SetModuleState", state=state).success
    results: list[dict[str, Any]] = [
        {"id": f"t{n}", "agent_id": agent, "module_name": "trace", "data": traceroute(n)}
        for n in range(20)
    ]
    outcomes = client.call_many("StoreResult", ({"result": result} for result in results))
    assert all(outcome.success for outcome in outcomes)


def read(client: Client, agent: str) -> None:
    assert client.call("GetAgent", agent_id=agent).agent.first_seen == 7
    assert client.call("GetModuleState", request_id=agent).state.state == "completed"
    assert len(client.call("ListModuleStates", agent_id=agent).states) == 1
    results = {result.id: result for result in client.call("ListResults", agent_id=agent).results}
    for number in range(20):
        assert results[f"t{number}"].data == traceroute(number)
        found = client.call("GetResult", agent_id=agent, request_id=f"t{number}")
        assert found.result == results[f"t{number}"]


def test_everything_acknowledged_is_there_after_a_restart_of_everything(
    start_valkey: Callable[..., ValkeyServer],
) -> None:
    store = start_valkey()
    server = ServerThread(store.address).start()
    try:
        for writer in KINDS:
            with open_client(writer, server.address) as client:
                write(client, writer)
    finally:
        server.stop()
    store.restart()
    server = ServerThread(store.address).start()
    try:
        for reader in KINDS:
            with open_client(reader, server.address) as client:
                for writer in KINDS:
                    read(client, writer)
    finally:
        server.stop()


def test_a_control_server_on_asyncio_keeps_many_calls_of_one_channel_in_flight(
    server: ServerThread,
) -> None:
    messages = contract("b")
    request_class = messages.message("StoreResultRequest")

    async def main() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            store = channel.unary_unary(
                "/dbos.DBOS/StoreResult",
                request_serializer=request_class.SerializeToString,
                response_deserializer=messages.message("StoreResultResponse").FromString,
            )
            responses = await asyncio.gather(
                *(
                    store(
                        request_class(
                            result={"id": f"r{n}", "agent_id": f"a{n % 7}", "module_name": "m"}
                        ),
                        timeout=20,
                    )
                    for n in range(1_000)
                )
            )
            assert all(response.success for response in responses)

    asyncio.run(main())


def test_a_control_server_that_cancels_its_calls_harms_nobody(server: ServerThread) -> None:
    messages = contract("b")
    request_class = messages.message("StoreResultRequest")

    async def main() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            store = channel.unary_unary(
                "/dbos.DBOS/StoreResult",
                request_serializer=request_class.SerializeToString,
                response_deserializer=messages.message("StoreResultResponse").FromString,
            )

            def start(result_id: str) -> Any:
                result = {"id": result_id, "agent_id": "a", "module_name": "m"}
                return store(request_class(result=result), timeout=20)

            assert (await start("first")).success
            doomed = [start(f"r{n}") for n in range(100)]
            for number, call in enumerate(doomed):
                if number % 3:
                    await asyncio.sleep(0)
                call.cancel()
            for call in doomed:
                with suppress(asyncio.CancelledError):
                    await call
            assert (await start("last")).success

    asyncio.run(main())


@pytest.mark.parametrize("is_unix", [False, True])
def test_the_sdk_speaks_to_the_server_on_tcp_and_unix_sockets(
    start_server: Callable[..., ServerThread], tmp_path: Any, is_unix: bool
) -> None:
    listen = f"unix:{tmp_path}/s" if is_unix else "127.0.0.1:0"
    server = start_server(listen=listen)

    async def main() -> None:
        async with connect(server.address) as dbos:
            agent = Agent(id="a", hostname="h", config={"k": "v"})
            registered = await dbos.register_agent(RegisterAgentRequest(agent=agent))
            assert registered.success
            found = await dbos.get_agent(GetAgentRequest(agent_id="a"))
            assert found.agent is not None
            assert found.agent.config == {"k": "v"}
            result = MeasurementResult(id="r", agent_id="a", module_name="m", data=b"\xff\x00")
            stored = await dbos.store_result(StoreResultRequest(result=result))
            assert stored.success
            back = await dbos.get_result(GetResultRequest(agent_id="a", request_id="r"))
            assert back.result is not None
            assert back.result.data == b"\xff\x00"
            listed = await dbos.list_results(ListResultsRequest(agent_id="a", page_size=10))
            assert [one.id for one in listed.results] == ["r"]

    asyncio.run(main())
    if is_unix:
        with open_client("grpcio-b", server.address) as client:
            assert client.call("GetAgent", agent_id="a").found


def test_several_servers_live_in_one_process(start_valkey: Callable[..., ValkeyServer]) -> None:
    stores = [start_valkey(), start_valkey()]
    servers = [ServerThread(store.address).start() for store in stores]
    try:
        clients = [open_client("grpcio-b", server.address) for server in servers]
        for number, client in enumerate(clients):
            assert client.call("RegisterAgent", agent={"id": f"a{number}"}).success
        for number, client in enumerate(clients):
            assert [agent.id for agent in client.call("ListAgents").agents] == [f"a{number}"]
            client.close()
    finally:
        for server in servers:
            server.stop()
