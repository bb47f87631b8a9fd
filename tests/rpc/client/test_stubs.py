"""Stubs that betterproto has generated, on the Trio channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import betterproto
import pytest
import trio
from betterproto.lib.google.protobuf import BytesValue
from grpclib.exceptions import ProtocolError

from dbos_actors.rpc.client.stubs import TrioStub
from tests.rpc.client.echo_service import Serve, make_server, open_channel


class EchoStub(betterproto.ServiceStub):
    """As betterproto would generate it."""

    async def echo(self, message: BytesValue) -> BytesValue:
        return await self._unary_unary("/test.Test/Echo", message, BytesValue)

    async def thrice(self, message: BytesValue) -> AsyncIterator[BytesValue]:
        async for response in self._unary_stream("/test.Test/Thrice", message, BytesValue):
            yield response

    async def join(self, messages: Any) -> BytesValue:
        return await self._stream_unary("/test.Test/Join", messages, BytesValue, BytesValue)

    async def echo_all(self, messages: Any) -> AsyncIterator[BytesValue]:
        async for response in self._stream_stream(
            "/test.Test/EchoAll", messages, BytesValue, BytesValue
        ):
            yield response


class TrioEchoStub(TrioStub, EchoStub):  # type: ignore[misc] # streams are no generators here
    """As `TrioStub` says."""


MESSAGES = [BytesValue(value=b"a"), BytesValue(value=b"b")]


@pytest.mark.parametrize("stub_type", [EchoStub, TrioEchoStub])
async def test_all_methods_but_bidirectional_ones_run_on_a_stub_as_it_is(
    serve: Serve, stub_type: type[EchoStub]
) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        stub = stub_type(channel)  # type: ignore[arg-type]
        with trio.fail_after(10):
            assert await stub.echo(MESSAGES[0]) == MESSAGES[0]
            assert [one async for one in stub.thrice(MESSAGES[0])] == [MESSAGES[0]] * 3
            assert await stub.join(MESSAGES) == BytesValue(value=b"ab")


async def test_a_bidirectional_method_runs_on_a_trio_stub(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        with trio.fail_after(10):
            stub = TrioEchoStub(channel)  # type: ignore[arg-type]
            assert [one async for one in stub.echo_all(MESSAGES)] == MESSAGES


@pytest.fixture
def _loop() -> Iterator[None]:
    """A loop of asyncio that nobody runs, as `asyncio.ensure_future` makes one before 3.14."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.usefixtures("_loop")
async def test_a_bidirectional_method_of_a_plain_stub_fails_at_once_and_says_what_to_use(
    serve: Serve,
) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        stub = EchoStub(channel)  # type: ignore[arg-type]
        with trio.fail_after(2), pytest.raises(ProtocolError, match=r"client\.stubs\.TrioStub"):
            [one async for one in stub.echo_all(MESSAGES)]
        assert channel.statistics().calls_started == 0
