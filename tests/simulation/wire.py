"""Calls as gRPC bytes: the real channel and the real server, with a bad network between them.

The sockets are real ones (both ends in this process), since transport and
channel use sockets directly; each end leads into a simulated route, which
delays, splits, freezes and cuts what passes. The kernel hands over what one end
writes before the other looks, so a run still repeats itself exactly.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from random import Random
from typing import Any

import trio
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from dbos_actors.api import messages
from dbos_actors.clock import Clock
from dbos_actors.rpc.client.channel import BackoffPolicy, Channel, ChannelOptions
from dbos_actors.rpc.server.listeners import UnixListener
from dbos_actors.service.methods import SERVICE
from tests.simulation.history import Ending, StreamEndedError
from tests.simulation.network import Pipe, Route

_PIECE_BYTES = 65_536


class WireListener(UnixListener):
    """What a server accepts simulated connections from."""

    def __init__(self, route: Route, nursery: trio.Nursery) -> None:
        self.path = "simulated"
        self._route = route
        self._nursery = nursery
        self._accepted, self._arriving = trio.open_memory_channel[trio.SocketStream](1_000)
        self._is_closed = False

    async def accept(self) -> trio.SocketStream:
        return await self._arriving.receive()

    async def aclose(self) -> None:
        self._is_closed = True
        with suppress(trio.WouldBlock):
            while True:
                self._arriving.receive_nowait().socket.close()
        await trio.lowlevel.checkpoint()

    async def connect(self) -> socket.socket:
        """A client's end of a new connection. Raises OSError."""
        await self._route.wait_thawed()
        if self._is_closed:
            raise ConnectionRefusedError("simulated")
        client, beside_client = socket.socketpair()
        server, beside_server = socket.socketpair()
        client.setblocking(False)
        there, back = self._route.pipe(), self._route.pipe()
        self._nursery.start_soon(_carry, _stream(beside_client), there, back)
        self._nursery.start_soon(_carry, _stream(beside_server), back, there)
        self._accepted.send_nowait(_stream(server))
        return client


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def _carry(stream: trio.SocketStream, outgoing: Pipe, incoming: Pipe) -> None:
    """Between one end's socket and the route, both ways, until either breaks."""

    async def send() -> None:
        while data := await stream.receive_some(_PIECE_BYTES):
            outgoing.send(bytes(data))
        outgoing.end()

    async def receive() -> None:
        while data := await incoming.receive(_PIECE_BYTES):
            await stream.send_all(data)
        await stream.send_eof()

    async def until_broken(way: Any) -> None:
        try:
            await way()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_broken, send)
            nursery.start_soon(until_broken, receive)
    finally:
        outgoing.reset()
        incoming.reset()
        stream.socket.close()


class WireStream:
    """A client's end of one stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send(self, message: Any) -> None:
        """Raises `StreamEndedError`."""
        try:
            await self._stream.send_message(message)
        except (GRPCError, StreamTerminatedError, OSError, trio.BrokenResourceError) as error:
            raise _ended(error) from error

    async def end(self) -> None:
        """Send nothing more. Raises `StreamEndedError`."""
        try:
            await self._stream.end()
        except (GRPCError, StreamTerminatedError, OSError, trio.BrokenResourceError) as error:
            raise _ended(error) from error

    async def receive(self) -> Any:
        """The next response; None after the last. Raises `StreamEndedError` unless it ended OK."""
        try:
            return await self._stream.recv_message()
        except (GRPCError, StreamTerminatedError, OSError, trio.BrokenResourceError) as error:
            raise _ended(error) from error

    def abandon(self) -> None:
        """Be gone."""
        self._stream.abandon()


def _ended(error: Exception) -> StreamEndedError:
    if isinstance(error, GRPCError):
        return StreamEndedError(error.status, error.message)
    return StreamEndedError(None, str(error))


class WireClients:
    """The clients' channel to one server."""

    def __init__(self, listener: WireListener, clock: Clock, random: Random) -> None:
        self._channel = Channel(
            connector=listener.connect,
            clock=clock,
            random=random,
            options=ChannelOptions(
                connect_s_max=2.0, backoff=BackoffPolicy(first_s=0.05, max_s=0.5)
            ),
        )

    async def run(self) -> None:
        """Keep the channel open until cancelled."""
        async with self._channel:
            await trio.sleep_forever()

    async def exchange(
        self, method: str, message: Any, timeout_s: float | None
    ) -> tuple[Ending, Any]:
        """Make a call."""
        response_type = getattr(messages, f"{method}Response")
        channel: Any = self._channel  # has what stubs use of grpclib's
        path = f"/{SERVICE.full_name}/{method}"
        stub: Any = UnaryUnaryMethod(channel, path, type(message), response_type)
        try:
            response = await stub(message, timeout=timeout_s)
        except GRPCError as error:
            if error.status is Status.RESOURCE_EXHAUSTED:
                return Ending.NO_EFFECT, error.message
            return Ending.UNKNOWN, f"{error.status.name}: {error.message}"
        except (StreamTerminatedError, OSError, trio.BrokenResourceError) as error:
            return Ending.UNKNOWN, f"connection lost: {error}"
        return Ending.ANSWERED, response

    async def open(self, method: str, request_type: type, response_type: type) -> WireStream:
        """Open a stream. Raises `StreamEndedError`."""
        stream: Any = self._channel.request(
            f"/{SERVICE.full_name}/{method}",
            Cardinality.STREAM_STREAM,
            request_type,
            response_type,
            timeout=None,
        )
        try:
            await stream.send_request()
        except (GRPCError, StreamTerminatedError, OSError, trio.BrokenResourceError) as error:
            raise _ended(error) from error
        return WireStream(stream)
