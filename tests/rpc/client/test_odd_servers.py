"""What a channel does when sockets and servers behave as few do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.client.channel import Channel
from dbos_actors.rpc.server.listeners import open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.http2 import Http2Options, Setting
from tests.support.raw_server import RawServer

MakeServer = Callable[..., Server]
PATH = "/test.Test/Echo"


class FullSocket(socket.socket):
    """Accepts nothing the first time that it is given a request, as a unix socket may."""

    was_full = False

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:  # type: ignore[override]
        if b"secret" in bytes(data) and not self.was_full:
            self.was_full = True
            raise BlockingIOError
        return super().send(data, flags)


async def test_a_call_that_the_socket_took_late_is_not_sent_twice(
    make_server: MakeServer, nursery: trio.Nursery, tmp_path: Path
) -> None:
    received: list[UnaryCall] = []
    sockets: list[FullSocket] = []

    def handler(call: UnaryCall) -> None:
        received.append(call)
        sockets[-1].shutdown(socket.SHUT_RDWR)  # the connection is lost before an answer

    async def connector() -> socket.socket:
        stream = await trio.open_unix_socket(tmp_path / "s")
        sock = FullSocket(fileno=stream.socket.detach())
        sock.setblocking(False)
        sockets.append(sock)
        return sock

    await nursery.start(
        make_server({"Echo": handler}).serve, await open_listeners(f"unix:{tmp_path}/s")
    )
    async with Channel(path=str(tmp_path / "s"), connector=connector) as channel:
        with pytest.raises(GRPCError) as caught, trio.fail_after(5):
            await channel.unary(PATH, b"secret")
    assert sockets[0].was_full
    assert len(received) == 1
    assert caught.value.status is Status.UNAVAILABLE


async def test_an_infinite_timeout_is_none(
    make_server: MakeServer, nursery: trio.Nursery, tmp_path: Path
) -> None:
    deadlines: list[float | None] = []

    def handler(call: UnaryCall) -> None:
        deadlines.append(call.deadline)
        call.reply(call.request)

    await nursery.start(
        make_server({"Echo": handler}).serve, await open_listeners(f"unix:{tmp_path}/s")
    )
    async with Channel(path=str(tmp_path / "s")) as channel:
        assert await channel.unary(PATH, b"x", timeout=inf) == b"x"
    assert deadlines == [None]


class Greeter:
    """Connections to a server that greets, allows no stream, and closes."""

    def __init__(self) -> None:
        self.count = 0

    async def connect(self) -> socket.socket:
        self.count += 1
        ours, theirs = socket.socketpair()
        settings = {int(Setting.MAX_CONCURRENT_STREAMS): 0}
        theirs.send(RawServer(Http2Options(settings=settings)).output())
        theirs.close()
        ours.setblocking(False)
        return ours


@pytest.mark.parametrize("waits", [False, True])
async def test_a_server_that_greets_and_closes_is_not_asked_without_pause(
    autojump_clock: trio.testing.MockClock, waits: bool
) -> None:
    greeter = Greeter()
    async with Channel("nowhere", connector=greeter.connect) as channel:
        with pytest.raises(GRPCError) as caught:
            await channel.unary(PATH, b"x", timeout=10, wait_for_ready=waits)
        if waits:
            # With gRPC's backoff: at 0, 1, 2.6, 5.2 and 9.3 s, each give or take 20 %.
            assert caught.value.status is Status.DEADLINE_EXCEEDED
            assert greeter.count in range(4, 7)
        else:
            assert caught.value.status is Status.UNAVAILABLE
            assert greeter.count == 1
            with pytest.raises(GRPCError, match="UNAVAILABLE"):
                await channel.unary(PATH, b"x", timeout=10)
            assert greeter.count == 1
