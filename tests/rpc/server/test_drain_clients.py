"""What clients of every kind see of a stream that the server ends while it drains."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import grpclib.client
import pytest
import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from dbos_actors.rpc.client.channel import Channel
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream
from tests.support.blob import Blob

Serve = Callable[[Server], AbstractAsyncContextManager[str]]

PATH = "/test.Test/Both"
STREAMS = 40


class Both:
    """A stream for ever; ``draining`` ends it if it listens."""

    def __init__(self, *, listens: bool) -> None:
        self._listens = listens
        self.draining = trio.Event()
        self.started = 0
        self.changed = trio.lowlevel.ParkingLot()

    async def both(self, stream: ServerStream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(b"hello")
        self.started += 1
        self.changed.unpark_all()
        if not self._listens:
            await trio.sleep_forever()
        await self.draining.wait()
        raise GRPCError(Status.UNAVAILABLE, "the server is draining")

    def __mapping__(self) -> dict[str, Handler]:
        return {PATH: Handler(self.both, Cardinality.STREAM_STREAM, Blob, Blob)}


async def grpclib_client(address: str, count: int, *, writes: bool) -> list[str]:
    host, _, port = address.rpartition(":")

    async def one(channel: grpclib.client.Channel) -> str:
        method = grpclib.client.StreamStreamMethod(channel, PATH, Blob, Blob)
        try:
            async with method.open(timeout=20) as stream:
                await stream.send_message(Blob(b"x"))
                await stream.recv_message()
                if not writes:
                    await stream.recv_message()
                while True:
                    await stream.send_message(Blob(b"y"))
                    await asyncio.sleep(0.001)
        except GRPCError as error:
            return error.status.name
        except StreamTerminatedError as error:
            return repr(error)
        return "OK"

    async with grpclib.client.Channel(host, int(port)) as channel:
        return await asyncio.gather(*[one(channel) for _ in range(count)])


async def aio_client(address: str, count: int, *, writes: bool) -> list[str]:
    async def one(channel: grpc.aio.Channel) -> str:
        call = channel.stream_stream(PATH)(timeout=20)
        try:
            await call.write(b"x")
            await call.read()
            if not writes:
                await call.read()
            while not call.done():
                await call.write(b"y")
                await asyncio.sleep(0.001)
            return str((await call.code()).name)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            if await call.details() == "Internal error from Core":
                # A write met the stream's end before the status was seen: grpc.aio then makes a
                # status up, with servers of its own, too.
                return "UNAVAILABLE" if writes else "INTERNAL"
            return str((await call.code()).name)

    async with grpc.aio.insecure_channel(address) as channel:
        return await asyncio.gather(*[one(channel) for _ in range(count)])


async def own_client(address: str, count: int, *, writes: bool) -> list[str]:
    host, _, port = address.rpartition(":")
    outcomes = []

    async def one(channel: Channel) -> None:
        try:
            async with channel.request(PATH, Cardinality.STREAM_STREAM, Blob, Blob) as stream:
                await stream.send_message(Blob(b"x"))
                await stream.recv_message()
                if not writes:
                    await stream.recv_message()
                while True:
                    await stream.send_message(Blob(b"y"))
                    await trio.sleep(0.001)
        except GRPCError as error:
            outcomes.append(error.status.name)

    async with Channel(host, int(port)) as channel, trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one, channel)
    return outcomes


@pytest.mark.parametrize("writes", [False, True], ids=["reading", "writing"])
@pytest.mark.parametrize("listens", [True, False], ids=["handler ends", "grace is over"])
@pytest.mark.parametrize("client", [grpclib_client, aio_client, own_client])
async def test_a_stream_that_a_drain_ends_is_unavailable_for_every_client(
    serve: Serve, client: Callable[..., Any], listens: bool, writes: bool
) -> None:
    service = Both(listens=listens)
    server = Server(
        unary={}, services=[service], status_of=lambda error: (Status.UNKNOWN, str(error))
    )
    outcomes: list[str] = []

    async def run_client(address: str) -> None:
        if client is own_client:
            outcomes.extend(await client(address, STREAMS, writes=writes))
        else:
            coroutine = client(address, STREAMS, writes=writes)
            outcomes.extend(await trio.to_thread.run_sync(asyncio.run, coroutine))

    async with serve(server) as address, trio.open_nursery() as nursery:
        nursery.start_soon(run_client, address)
        while service.started < STREAMS:
            await service.changed.park()
        service.draining.set()
        await server.drain(10 if listens else 0.1)
    assert Counter(outcomes) == {"UNAVAILABLE": STREAMS}
