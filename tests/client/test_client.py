"""The SDK's stub over real sockets, against a server of grpclib's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import betterproto
import pytest
from grpclib.events import RecvRequest, listen
from grpclib.server import Server

from dbos_actors import client
from dbos_actors.api.sdk import dbos
from dbos_actors.client import (
    DbosStub,
    GetAgentRequest,
    GRPCError,
    Status,
    StreamTerminatedError,
    connect,
)
from dbos_actors.client.addresses import channel_target
from dbos_actors.client.environment import default_address

T = TypeVar("T")


class FakeDbos(dbos.DbosBase):
    """Knows every agent but one; the rest is not implemented."""

    async def get_agent(self, get_agent_request: GetAgentRequest) -> client.GetAgentResponse:
        if get_agent_request.agent_id == "slow":
            await asyncio.Event().wait()
        return client.GetAgentResponse(
            found=True, agent=client.Agent(id=get_agent_request.agent_id, config={"a": "b"})
        )


class Seen:
    """Metadata of the calls that arrived."""

    def __init__(self) -> None:
        self.authorization: list[str] = []

    async def __call__(self, event: RecvRequest) -> None:
        self.authorization.append(str(event.metadata.get("authorization")))


def against_a_server(
    body: Callable[[str], Awaitable[T]], *, path: Path | None = None, seen: Seen | None = None
) -> T:
    """What ``body`` returns, given the address of a server."""

    async def run() -> T:
        server = Server([FakeDbos()])
        if seen is not None:
            listen(server, RecvRequest, seen)
        if path is not None:
            await server.start(path=str(path))
            address = f"unix:{path}"
        else:
            listener = socket.create_server(("127.0.0.1", 0))
            await server.start(sock=listener)
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            return await body(address)
        finally:
            server.close()
            await server.wait_closed()

    return asyncio.run(run())


def test_a_call_is_answered_over_tcp() -> None:
    async def body(address: str) -> client.GetAgentResponse:
        async with connect(address) as stub:
            return await stub.get_agent(GetAgentRequest(agent_id="probe-1"))

    response = against_a_server(body)
    assert response.found
    assert response.agent == client.Agent(id="probe-1", config={"a": "b"})


def test_a_call_is_answered_over_a_unix_socket(tmp_path: Path) -> None:
    async def body(address: str) -> client.GetAgentResponse:
        async with connect(address) as stub:
            return await stub.get_agent(GetAgentRequest(agent_id="probe-1"))

    assert against_a_server(body, path=tmp_path / "s").found


def test_the_token_goes_with_every_call() -> None:
    seen = Seen()

    async def body(address: str) -> None:
        async with connect(address, token="secret") as stub:
            await stub.get_agent(GetAgentRequest(agent_id="a"))
            await stub.get_agent(GetAgentRequest(agent_id="b"))
        async with connect(address) as stub:
            await stub.get_agent(GetAgentRequest(agent_id="c"))

    against_a_server(body, seen=seen)
    assert seen.authorization == ["Bearer secret", "Bearer secret", "None"]


def test_a_call_has_a_deadline() -> None:
    async def body(address: str) -> None:
        async with connect(address, timeout_s=0.05) as stub:
            with pytest.raises(asyncio.TimeoutError):
                await stub.get_agent(GetAgentRequest(agent_id="slow"))

    against_a_server(body)


def test_a_failing_infrastructure_raises() -> None:
    async def body(address: str) -> Status:
        async with connect(address) as stub:
            with pytest.raises(GRPCError) as caught:
                await stub.list_agents(client.ListAgentsRequest())
            status: Status = caught.value.status
            return status

    assert against_a_server(body) is Status.UNIMPLEMENTED


def test_a_lost_connection_raises() -> None:
    async def body() -> None:
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with (
            listener,
            connect(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", retries=False) as stub,
        ):
            with pytest.raises(StreamTerminatedError):
                await stub.get_agent(GetAgentRequest(agent_id="a"))

    asyncio.run(body())


def test_a_server_that_is_not_there_raises(tmp_path: Path) -> None:
    async def body() -> None:
        async with connect(f"unix:{tmp_path / 'nobody'}", retries=False) as stub:
            with pytest.raises(OSError, match="No such file"):
                await stub.get_agent(GetAgentRequest(agent_id="a"))

    asyncio.run(body())


@pytest.mark.parametrize("address", ["", "here", "here:http", ":1", "::1:1", "unix:"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    async def body() -> None:
        async with connect(address):
            pytest.fail("connected")

    with pytest.raises(ValueError, match="is not HOST:PORT"):
        asyncio.run(body())


def test_an_ipv6_address_is_taken_out_of_its_brackets() -> None:
    assert channel_target("[::1]:5") == ("::1", 5, None)


def test_every_message_and_the_stub_are_exported() -> None:
    generated = {
        name
        for name, value in vars(dbos).items()
        if isinstance(value, type)
        and issubclass(value, betterproto.Message | DbosStub)
        and value.__module__ == dbos.__name__
    }
    assert generated < set(client.__all__)
    assert all(hasattr(client, name) for name in client.__all__)


def test_the_address_of_a_client_that_names_none_is_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DBOS_ADDRESS", raising=False)
    assert default_address() == "localhost:50051"
    monkeypatch.setenv("DBOS_ADDRESS", "nonsense")

    async def body() -> None:
        async with connect():
            pytest.fail("connected")

    with pytest.raises(ValueError, match="'nonsense' is not HOST:PORT"):
        asyncio.run(body())
