"""gRPC's client side on Trio: a channel shaped like grpclib's.

The first call of a `Channel` connects to its server, and all calls share that HTTP/2 connection.
Stubs that grpclib or betterproto have generated accept it in place of grpclib's own channel::

    async with Channel("127.0.0.1", 50051) as channel:
        reply = await GreeterStub(channel).SayHello(HelloRequest(name="Trio"))

`dbos_actors.rpc.client.connections` says when a connection is made, and which calls wait for it.
"""

from __future__ import annotations

import ssl as _ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import trio
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase, StatusDetailsCodecBase
from grpclib.exceptions import GRPCError
from multidict import MultiDict

from dbos_actors.backoff import BackoffPolicy
from dbos_actors.clock import Clock, SystemClock
from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.client.connections import ChannelState, Connections, Target
from dbos_actors.rpc.client.events import channel_events
from dbos_actors.rpc.client.link import Connector, connect
from dbos_actors.rpc.client.messages import decode, decode_details, encode
from dbos_actors.rpc.client.options import ChannelOptions
from dbos_actors.rpc.client.stream import ClientStream
from dbos_actors.rpc.client.stubs import refuse_asyncio_stub
from dbos_actors.rpc.wire.addresses import Address, TcpAddress, UnixAddress
from dbos_actors.rpc.wire.compression import compress
from dbos_actors.rpc.wire.deadlines import Deadline, Deadlines, watch
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.metadata import MetadataLike, encode_metadata
from dbos_actors.rpc.wire.tls import ALPN

__all__ = [
    "BackoffPolicy",
    "Channel",
    "ChannelOptions",
    "ChannelState",
    "ChannelStatistics",
    "ClientStream",
]

SendT = TypeVar("SendT")
RecvT = TypeVar("RecvT")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50051


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """A snapshot."""

    state: ChannelState
    calls_started: int
    """Calls made on the channel, however they ended."""
    calls_waiting: int
    """Calls that wait for a connection, or for room on it."""
    calls_live: int
    """Streams open on the connections."""
    connections: int
    """Connections that exist: the current one, and those that are going away."""
    connections_total: int


class _HasTimeRemaining(Protocol):
    """grpclib's `Deadline`, and those of this package."""

    def time_remaining(self) -> float: ...


class Channel:
    """Calls to one server. Use it as an async context manager, which runs its connections.

    ``host`` and ``port`` (127.0.0.1:50051), or the ``path`` of a unix socket. ``ssl``: True for the
    system's authorities, or a context, whose ALPN is set to h2. ``codec`` and
    ``status_details_codec`` are grpclib's; without them, messages are what grpclib's default codec
    knows and betterproto's: those with ``SerializeToString`` and ``FromString``; or bytes.
    ``connector``, ``clock`` and ``random`` are for tests.

    At the end of the block calls still running fail, CANCELLED, and the connections are closed.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        path: str | None = None,
        codec: CodecBase | None = None,
        status_details_codec: StatusDetailsCodecBase | None = None,
        ssl: _ssl.SSLContext | bool | None = None,
        options: ChannelOptions | None = None,
        connector: Connector | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        if path is not None and (host is not None or port is not None):
            raise ValueError("path cannot be used with host or port")
        host = host or DEFAULT_HOST
        port = DEFAULT_PORT if port is None else port
        address: Address = TcpAddress(host, port) if path is None else UnixAddress(path)
        self._address = address
        self.options = options or ChannelOptions()
        self._codec = codec
        self._details_codec = status_details_codec
        self._clock = clock or SystemClock()
        self.__dispatch__ = channel_events()
        """Where `grpclib.events.listen` registers."""

        default = str(address) if path is None else "localhost"
        target = Target(
            name=str(address),
            connector=connector or partial(connect, address),
            authority=(self.options.authority or default).encode("ascii"),
            tls=_context(ssl),
            hostname=self.options.server_hostname or host,
        )
        jitter = random or Random()  # noqa: S311 - not for secrets
        self._connections = Connections(target, self.options, self._clock, jitter)
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._deadlines = Deadlines()
        self._calls_started = 0

    def __repr__(self) -> str:
        return f"Channel({self._address!r})"

    # -------------------------------------------------------------- lifetime

    async def __aenter__(self) -> Self:
        if self._manager is not None:
            raise RuntimeError("a channel is opened once")
        self._manager = trio.open_nursery()
        outer = await self._manager.__aenter__()
        await outer.start(self._run)
        return self

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """All that the channel runs, in a nursery of its own: closing does not cancel the block."""
        async with trio.open_nursery() as self._nursery:
            self._connections.nursery = self._nursery
            self._nursery.start_soon(watch, self._deadlines, self._clock)
            self._nursery.start_soon(self._connections.flush_dirty)
            task_status.started()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._manager is not None
        self.close()
        try:
            return await self._manager.__aexit__(exc_type, exc, traceback)
        except BaseExceptionGroup as group:
            others = [other for other in group.exceptions if other is not exc]
            if exc is not None and all(isinstance(other, trio.Cancelled) for other in others):
                return False  # the block's own error, as it is
            raise

    def reconnect(self, reason: str) -> None:
        """Give up the connections: their calls end, UNAVAILABLE, and the next one makes another.

        For who knows better than the transport that a connection is dead.
        """
        self._connections.give_up(reason)

    def close(self) -> None:
        """End every call, CANCELLED, and close the connections. The channel is of no use after."""
        self._connections.close()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    @property
    def state(self) -> ChannelState:
        """What a call made now would meet."""
        return self._connections.state

    def statistics(self) -> ChannelStatistics:
        """A snapshot."""
        connections = self._connections
        return ChannelStatistics(
            state=connections.state,
            calls_started=self._calls_started,
            calls_waiting=connections.calls_waiting,
            calls_live=connections.calls_live,
            connections=connections.open,
            connections_total=connections.made_total,
        )

    # ----------------------------------------------------------------- calls

    def request(
        self,
        name: str,
        cardinality: Cardinality,
        request_type: type[SendT],
        reply_type: type[RecvT],
        *,
        timeout: float | None = None,
        deadline: _HasTimeRemaining | None = None,
        metadata: MetadataLike | None = None,
        wait_for_ready: bool | None = None,
    ) -> ClientStream[SendT, RecvT]:
        """A call, to be used with ``async with``; nothing is sent yet.

        ``timeout`` in seconds from now, or a ``deadline``; the earlier one holds. Raises
        `ProtocolError` if a stub asks that needs asyncio.
        """
        if cardinality is Cardinality.STREAM_STREAM:
            refuse_asyncio_stub(sys._getframe(1).f_code)  # noqa: SLF001 - nothing else tells
        return ClientStream(
            self,
            name,
            MultiDict(metadata or ()),
            cardinality,
            send_type=request_type,
            recv_type=reply_type,
            deadline=self._deadline(timeout, deadline),
            wait_for_ready=self._waits(wait_for_ready),
        )

    async def unary(
        self,
        path: str,
        request: bytes,
        *,
        timeout: float | None = None,
        metadata: MetadataLike = (),
        wait_for_ready: bool | None = None,
        compress: bool | None = None,
    ) -> bytes:
        """A unary call of serialised messages, for those who make many.

        ``compress``: whether to gzip the request; None: as the options say. No listeners, no
        response metadata. Raises `grpclib.GRPCError`; cancellation resets the call.
        """
        call = self.make_call(
            path,
            metadata,
            server_streaming=False,
            deadline_s=None if timeout is None else self._clock.monotonic_s() + timeout,
            wait_for_ready=self._waits(wait_for_ready),
            announces_gzip=bool(compress),
        )
        changed = trio.lowlevel.ParkingLot()
        call.on_change = changed.unpark_all
        call.queue(self._frame(request, compress), end=True, replay_bytes_max=0)
        await trio.lowlevel.checkpoint_if_cancelled()
        self.submit(call)
        try:
            while call.status is None:
                await changed.park()
        except BaseException:
            call.cancel()
            raise
        body = call.take() if call.status is Status.OK else None
        if body is None or call.status is not Status.OK:
            assert call.status is not None
            raise GRPCError(call.status, call.message, self.decode_details(call))
        return body

    def _waits(self, wait_for_ready: bool | None) -> bool:
        return self.options.wait_for_ready if wait_for_ready is None else wait_for_ready

    def _deadline(
        self, timeout: float | None, deadline: _HasTimeRemaining | None
    ) -> Deadline | None:
        remaining_s = inf if timeout is None else timeout
        if deadline is not None:
            remaining_s = min(remaining_s, deadline.time_remaining())
        if remaining_s == inf:
            return None
        return Deadline(self._clock.monotonic_s() + remaining_s, self._clock)

    # ------------------------------------------------------- as `Caller`

    def encode(self, message: Any, message_type: Any, compress: bool | None = None) -> bytes:
        """A framed message; ``compress``: whether to gzip it; None: as the options say."""
        return self._frame(encode(message, message_type, self._codec), compress)

    def _frame(self, body: bytes, compress_it: bool | None) -> bytes:
        least = self.options.compress_bytes_min
        if compress_it is None:
            compress_it = least is not None and len(body) >= least
        if compress_it:
            return frame(compress(body), compressed=True)
        return frame(body)

    def decode(self, body: bytes, message_type: Any) -> Any:
        """A message."""
        return decode(body, message_type, self._codec)

    def decode_details(self, call: ClientCall) -> Any:
        """The details of a call's status."""
        return decode_details(call, self._details_codec)

    def start_soon(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run something beside the channel's calls. It must not raise."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *arguments)

    def make_call(
        self,
        path: str,
        metadata: MetadataLike,
        *,
        server_streaming: bool,
        deadline_s: float | None,
        wait_for_ready: bool,
        announces_gzip: bool = False,
    ) -> ClientCall:
        """A call that waits to be submitted. Raises `MetadataError`, ValueError."""
        call = ClientCall(
            self,
            path.encode("ascii"),
            encode_metadata(metadata) if metadata else [],
            server_streaming=server_streaming,
            deadline_s=None if deadline_s == inf else deadline_s,
            wait_for_ready=wait_for_ready,
            limit=self.options.message_bytes_max,
        )
        call.announces_gzip = announces_gzip or self.options.compress_bytes_min is not None
        return call

    def submit(self, call: ClientCall) -> None:
        """Start a call, or let it wait."""
        if self._nursery is None:
            raise RuntimeError("the channel is not open: use it with 'async with'")
        self._calls_started += 1
        if call.deadline_s is not None:
            self._deadlines.add(call.deadline_s, call)
            if call.deadline_s <= self._clock.monotonic_s():
                call.expire()
                return
        self._connections.start(call)

    # ------------------------------------------------------- as `CallOwner`

    def call_over(self, call: ClientCall) -> None:
        """A call has its status."""
        self._connections.forget(call)
        if call.deadline_s is not None:
            self._deadlines.remove(call.deadline_s, call)

    def call_refused(self, call: ClientCall) -> None:
        """A server has not begun with a call."""
        if call.replays > self.options.replays_max:
            call.finish(Status.UNAVAILABLE, "refused by the server, again and again")
        else:
            self._connections.start(call)


def _context(ssl: _ssl.SSLContext | bool | None) -> _ssl.SSLContext | None:
    if not ssl:
        return None
    if ssl is True:
        ssl = _ssl.create_default_context()
        ssl.minimum_version = _ssl.TLSVersion.TLSv1_2
    ssl.set_alpn_protocols([ALPN])
    return ssl
