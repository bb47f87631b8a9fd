"""How a server stops: no call that it has begun is cut while there is grace."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any

import trio
import trio.testing
from grpclib.const import Status

from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.framing import frame

Handler = Callable[[UnaryCall], None]
Serve = Callable[[Server], AbstractAsyncContextManager[str]]
MakeServer = Callable[..., Server]
Connect = Callable[..., Any]


async def test_a_running_call_survives_a_drain_on_a_server_that_was_empty_before(
    serve: Serve, make_server: MakeServer, connect: Connect
) -> None:
    """As after one health probe: the only connection comes and goes, then another one works."""
    calls: list[UnaryCall] = []
    server = make_server({"Echo": calls.append})
    async with serve(server) as address:
        probe = await connect(address)
        await probe.receive()
        await probe.stream.aclose()
        while server.statistics().connections:
            await trio.lowlevel.checkpoint()
        client = await connect(address)
        stream = client.raw.request(b"x")
        await client.flush()
        while not calls:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 60)
            with trio.fail_after(5):
                while client.raw.goaway is None:
                    assert await client.receive()
                assert not calls[0].answered
                calls[0].reply(b"done")
                answer = await client.answer(stream)
        assert (answer.status, answer.body) == (Status.OK, frame(b"done"))


async def test_a_second_drain_sets_another_limit(
    serve: Serve, make_server: MakeServer, connect: Connect
) -> None:
    calls: list[UnaryCall] = []
    server = make_server({"Echo": calls.append})
    async with serve(server) as address:
        client = await connect(address)
        client.raw.request(b"x")
        await client.flush()
        while not calls:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 60)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                await server.drain(0)
        assert calls[0].answered


class OneConnection(trio.abc.Listener[trio.SocketStream]):
    """Gives one connection, and drains its server before that connection's task has run."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock
        self.drain: Callable[[], Awaitable[None]]

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        sock, self._sock = self._sock, None
        if sock is not None:
            return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        with trio.CancelScope(shield=True):
            await self.drain()
        return await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_connection_accepted_just_before_a_drain_is_waited_for(
    make_server: MakeServer, echo_handler: Handler, make_client: Callable[..., Any]
) -> None:
    server = make_server({"Echo": echo_handler})
    ours, theirs = socket.socketpair(type=socket.SOCK_STREAM)
    listener = OneConnection(ours)
    listener.drain = partial(server.drain, 60)
    raw = make_client()
    stream_id = raw.request(b"x")
    theirs.send(raw.output())
    async with (
        trio.open_nursery() as nursery,
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as stream,
    ):
        nursery.start_soon(server.serve, [listener])
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            while not raw.closed and (data := await stream.receive_some()):
                raw.receive(bytes(data))
                if output := raw.output():
                    await stream.send_all(output)
        assert raw.answers[stream_id].status is Status.OK
        assert raw.goaway is not None
