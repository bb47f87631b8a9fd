"""A network of socket pairs on which each connection goes as its test says."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.client.channel import BackoffPolicy, Channel, ChannelOptions
from dbos_actors.rpc.wire.http2 import Http2Error
from tests.support.raw_server import RawServer

PATH = "/test.Test/Echo"


class End:
    """The server's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self.raw = RawServer()
        self.answered: set[int] = set()

    async def flush(self, mutate: Callable[[bytes], bytes] = bytes) -> None:
        if data := self.raw.output():
            await self.stream.send_all(mutate(data))

    async def receive(self) -> bool:
        data = await self.stream.receive_some(1 << 16)
        if data:
            self.raw.receive(bytes(data))
        return bool(data)

    async def request(self, number: int = 0) -> int:
        """The stream of the next request that has ended, after so many."""
        while True:
            ended = [n for n, request in self.raw.requests.items() if request.ended]
            if len(ended) > number:
                return ended[number]
            await self.flush()
            if not await self.receive():
                raise trio.EndOfChannel

    async def echo(self) -> None:
        """Answer everything until the client has gone."""
        while True:
            for stream_id, request in list(self.raw.requests.items()):
                if request.ended and request.reset is None and stream_id not in self.answered:
                    self.answered.add(stream_id)
                    self.raw.headers(stream_id)
                    self.raw.data(stream_id, request.body)
                    self.raw.trailers(stream_id)
            await self.flush()
            if not await self.receive():
                return


Plan = Callable[[End], Awaitable[None]]


class Network:
    """Connections through socket pairs; each attempt goes as the next plan says, then as usual."""

    def __init__(self, nursery: trio.Nursery, *plans: Plan | OSError) -> None:
        self._nursery = nursery
        self.plans = list(plans)
        self.attempts_s: list[float] = []
        self.ends: list[End] = []

    async def connect(self) -> socket.socket:
        self.attempts_s.append(trio.current_time())
        plan = self.plans.pop(0) if self.plans else End.echo
        if isinstance(plan, OSError):
            raise plan
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        end = End(theirs)
        self.ends.append(end)
        self._nursery.start_soon(self._serve, end, plan)
        return ours

    async def _serve(self, end: End, plan: Plan) -> None:
        try:
            with suppress(
                trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, Http2Error
            ):
                await plan(end)
        finally:
            end.stream.socket.close()

    def channel(self, **options: Any) -> Channel:
        return Channel(
            "server.test",
            1234,
            options=ChannelOptions(**{"backoff": BackoffPolicy(jitter=0), **options}),
            connector=self.connect,
        )


async def silent(_end: End) -> None:
    await trio.sleep_forever()


REFUSED = ConnectionRefusedError(111, "refused")


async def call(channel: Channel, body: bytes = b"x", **options: Any) -> bytes | Status:
    """What a call brings."""
    try:
        return await channel.unary(PATH, body, **options)
    except GRPCError as error:
        status: Status = error.status
        return status
