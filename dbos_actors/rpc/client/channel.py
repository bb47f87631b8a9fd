"""gRPC's client side on Trio: a channel shaped like grpclib's.

A `Channel` keeps one HTTP/2 connection to a server, made by the first call and shared by all.
Stubs that grpclib or betterproto have generated take it as they take grpclib's own::

    async with Channel("127.0.0.1", 50051) as channel:
        reply = await GreeterStub(channel).SayHello(HelloRequest(name="Trio"))

Rules:
- A call is started on the connection if that has room; else it waits, first come, first served.
  What waits is bounded by who waits: each call is some task's.
- A connection that is going away takes no further calls; the next one is made for the next call,
  while the calls of the old one finish there.
- After a failed attempt to connect there is a pause (`client_backoff`); calls that are not to
  wait for a server fail at once meanwhile.
- What the callers of one moment have to send goes to the socket together; a call that is alone
  does not wait for that.
"""

from __future__ import annotations

import ssl as _ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from math import inf
from random import Random
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import structlog
import trio
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase, StatusDetailsCodecBase
from grpclib.events import _DispatchChannelEvents
from grpclib.exceptions import GRPCError
from multidict import MultiDict

from dbos_actors.clock import Clock, SystemClock
from dbos_actors.rpc.client.backoff import Backoff
from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.client.connection import ClientConnection
from dbos_actors.rpc.client.link import ClientDriver, Connector, connect
from dbos_actors.rpc.client.options import BackoffPolicy, ChannelOptions
from dbos_actors.rpc.client.stream import (
    Stream,
    decode,
    decode_details,
    encode,
)
from dbos_actors.rpc.wire.addresses import Address, TcpAddress, UnixAddress
from dbos_actors.rpc.wire.compression import compress
from dbos_actors.rpc.wire.deadlines import Deadline, Deadlines
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.metadata import MetadataLike, encode_metadata
from dbos_actors.rpc.wire.peers import peer_name
from dbos_actors.rpc.wire.tls import ALPN, AlpnError

__all__ = [
    "BackoffPolicy",
    "Channel",
    "ChannelOptions",
    "ChannelState",
    "ChannelStatistics",
    "Stream",
]

log = structlog.get_logger(__name__)

SendT = TypeVar("SendT")
RecvT = TypeVar("RecvT")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50051


class ChannelState(Enum):
    """gRPC's connectivity states."""

    IDLE = auto()
    """No connection, and no call that needs one."""
    CONNECTING = auto()
    READY = auto()
    TRANSIENT_FAILURE = auto()
    """The last attempt has failed, and the next one is not due yet."""
    SHUTDOWN = auto()


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
        self._host = host or DEFAULT_HOST
        self._port = DEFAULT_PORT if port is None else port
        self.options = options or ChannelOptions()
        self._address: Address = (
            TcpAddress(self._host, self._port) if path is None else UnixAddress(path)
        )
        self._connector = connector or partial(connect, self._address)
        self._codec = codec
        self._details_codec = status_details_codec
        self._tls = _context(ssl)
        default = str(self._address) if path is None else "localhost"
        self._authority = (self.options.authority or default).encode("ascii")
        self._clock = clock or SystemClock()
        self._backoff = Backoff(self.options.backoff, random or Random())  # noqa: S311 - jitter
        self._keepalive_s = self.options.keepalive_s
        self.__dispatch__ = _DispatchChannelEvents()
        """Where `grpclib.events.listen` registers."""

        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._waiting: dict[ClientCall, None] = {}
        self._connection: _Connection | None = None
        self._connections: dict[_Connection, None] = {}
        self._connecting = False
        self._retry_s = -inf
        self._failure = ""
        self._deadlines = Deadlines()
        self._dirty: list[_Connection] = []
        self._flusher: trio.lowlevel.Task | None = None
        self._calls_started = 0
        self._connections_total = 0

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
            self._nursery.start_soon(self._watch_deadlines)
            self._nursery.start_soon(self._flush_dirty)
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

    def close(self) -> None:
        """End every call, CANCELLED, and close the connections. The channel is of no use after."""
        self._closed = True
        for call in list(self._waiting):
            call.finish(Status.CANCELLED, "the channel is closed")
        for connection in list(self._connections):
            connection.protocol.shut_down()
            connection.protocol.lost("the channel is closed", Status.CANCELLED)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    @property
    def state(self) -> ChannelState:
        """What a call made now would meet."""
        if self._closed:
            return ChannelState.SHUTDOWN
        if self._connection is not None and not self._connection.protocol.draining:
            return ChannelState.READY
        if self._clock.monotonic_s() < self._retry_s:
            return ChannelState.TRANSIENT_FAILURE
        return ChannelState.CONNECTING if self._connecting else ChannelState.IDLE

    def statistics(self) -> ChannelStatistics:
        """A snapshot."""
        return ChannelStatistics(
            state=self.state,
            calls_started=self._calls_started,
            calls_waiting=len(self._waiting),
            calls_live=sum(connection.protocol.live for connection in self._connections),
            connections=len(self._connections),
            connections_total=self._connections_total,
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
    ) -> Stream[SendT, RecvT]:
        """A call, to be used with ``async with``; nothing is sent yet.

        ``timeout`` in seconds from now, or a ``deadline``; the earlier one holds.
        """
        return Stream(
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
    ) -> bytes:
        """A unary call of serialised messages, for those who make many.

        No listeners, no response metadata. Raises `grpclib.GRPCError`; cancellation resets the
        call.
        """
        call = self.make_call(
            path,
            metadata,
            server_streaming=False,
            deadline_s=None if timeout is None else self._clock.monotonic_s() + timeout,
            wait_for_ready=self._waits(wait_for_ready),
        )
        changed = trio.lowlevel.ParkingLot()
        call.on_change = changed.unpark_all
        call.queue(self._frame(request), end=True, replay_bytes_max=0)
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

    # ------------------------------------------------------ for `Stream` only

    def encode(self, message: Any, message_type: Any) -> bytes:
        """A framed message."""
        return self._frame(encode(message, message_type, self._codec))

    def _frame(self, body: bytes) -> bytes:
        least = self.options.compress_bytes_min
        if least is not None and len(body) >= least:
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
    ) -> ClientCall:
        """A call that waits to be submitted. Raises `MetadataError`, ValueError."""
        return ClientCall(
            self,
            path.encode("ascii"),
            encode_metadata(metadata) if metadata else [],
            server_streaming=server_streaming,
            deadline_s=None if deadline_s == inf else deadline_s,
            wait_for_ready=wait_for_ready,
            limit=self.options.message_bytes_max,
        )

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
        self._admit(call)

    def _admit(self, call: ClientCall) -> None:
        connection = self._connection
        if connection is not None and connection.protocol.draining:
            connection = self._connection = None
        if self._closed:
            call.finish(Status.CANCELLED, "the channel is closed")
        elif connection is not None:
            if not self._waiting and connection.protocol.can_start:
                connection.protocol.start(call, self._clock.monotonic_s())
            else:
                self._waiting[call] = None
        elif not call.wait_for_ready and self._clock.monotonic_s() < self._retry_s:
            call.finish(Status.UNAVAILABLE, self._failure)
        else:
            self._waiting[call] = None
            self._require_connection()

    # ------------------------------------------------------- as `CallOwner`

    def call_over(self, call: ClientCall) -> None:
        """A call has its status."""
        self._waiting.pop(call, None)
        if call.deadline_s is not None:
            self._deadlines.remove(call.deadline_s, call)

    def call_refused(self, call: ClientCall) -> None:
        """A server has not begun with a call."""
        if call.replays > self.options.replays_max:
            call.finish(Status.UNAVAILABLE, "refused by the server, again and again")
        else:
            self._admit(call)

    # ----------------------------------------------------------- connections

    def _require_connection(self) -> None:
        if not self._connecting:
            assert self._nursery is not None
            self._connecting = True
            self._nursery.start_soon(self._connect)

    async def _connect(self) -> None:
        """Try until there is a connection, or nobody wants one any more."""
        clock = self._clock
        try:
            while self._waiting:
                pause_s = self._retry_s - clock.monotonic_s()
                if pause_s > 0:
                    await trio.sleep(pause_s)
                    continue
                began_s = clock.monotonic_s()
                failure = await self._try_to_connect()
                if failure is None:
                    break
                self._attempt_failed(began_s, failure)
        finally:
            self._connecting = False
        self._start_waiting()

    def _attempt_failed(self, began_s: float, failure: str) -> None:
        """Pause before the next attempt; calls that do not wait for a server fail."""
        self._retry_s = began_s + self._backoff.next_s()
        self._failure = f"cannot connect to {self._address}: {failure}"
        log.info("cannot connect", server=str(self._address), error=failure)
        for call in list(self._waiting):
            if not call.wait_for_ready:
                call.finish(Status.UNAVAILABLE, self._failure)

    async def _try_to_connect(self) -> str | None:
        """Why there is no connection now; None if there is one."""
        assert self._nursery is not None
        try:
            with trio.fail_after(self.options.connect_s_max):
                await self._nursery.start(self._run_connection)
        except trio.TooSlowError:
            return f"no answer for {self.options.connect_s_max:g} s"
        except AlpnError:
            return "the server does not speak HTTP/2 over TLS"
        except (OSError, _ConnectionFailedError) as error:
            cause = error.__cause__
            if isinstance(cause, BaseExceptionGroup):  # of every address that a name has
                return f"{error} ({cause.exceptions[0]})"
            return str(error)
        except Exception as error:
            log.exception("connecting has failed", server=str(self._address))
            return repr(error)
        return None

    async def _run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """A connection's whole life. Raises only before it is ready.

        One that ends before it has carried a call was a failed attempt, although the server has
        greeted: without a pause, a server that does no more than that would be asked on and on.
        """
        began_s = self._clock.monotonic_s()
        sock = await self._connector()
        driver = ClientDriver(sock, self._clock)
        try:
            if self._tls is not None:
                hostname = self.options.server_hostname or self._host
                await driver.shake_hands(self._tls, hostname)
            connection = _Connection(self, driver, task_status)
            connection.protocol = ClientConnection(
                connection,
                self.options,
                now_s=self._clock.monotonic_s(),
                scheme=b"http" if self._tls is None else b"https",
                authority=self._authority,
                peer=peer_name(sock),
                keepalive_s=self._keepalive_s,
            )
            self._connections[connection] = None
            try:
                await driver.run(connection.protocol, keepalive_s=self._keepalive_s)
            finally:
                del self._connections[connection]
                if self._connection is connection:
                    self._connection = None
            if not connection.was_ready:
                raise _ConnectionFailedError(connection.protocol.reason)
        finally:
            driver.close()
        if connection.protocol.used:
            self._backoff.reset()
        elif not self._closed and self._connection is None:
            self._attempt_failed(began_s, connection.protocol.reason)
        self._start_waiting()

    def connection_ready(self, connection: _Connection) -> None:
        """The server has greeted."""
        self._connections_total += 1
        self._connection = connection
        self._retry_s = -inf

    def _start_waiting(self) -> None:
        """Start what waits, as far as there is room."""
        connection = self._connection
        if connection is not None and connection.protocol.draining:
            connection = self._connection = None
        if connection is None:
            if self._waiting and not self._closed:
                self._require_connection()
            return
        protocol, now_s = connection.protocol, self._clock.monotonic_s()
        while self._waiting and protocol.can_start:
            call = next(iter(self._waiting))
            del self._waiting[call]
            protocol.start(call, now_s)

    def connection_changed(self, connection: _Connection) -> None:
        """A connection has room again, or takes no more calls."""
        if connection.protocol.too_many_pings and self._keepalive_s < inf:
            connection.protocol.too_many_pings = False
            self._keepalive_s *= 2
            log.warning("the server complains about pings", keepalive_s=self._keepalive_s)
        if connection is self._connection:
            self._start_waiting()

    # ------------------------------------------------------------ what is due

    def connection_has_output(self, connection: _Connection, *, at_once: bool) -> None:
        """Flush it: at once if its call is alone, else together with the others'."""
        if connection.dirty:
            return
        if at_once and connection.protocol.live <= 1 and not self._waiting:
            connection.flush()
            return
        connection.dirty = True
        self._dirty.append(connection)
        flusher, self._flusher = self._flusher, None
        if flusher is not None:
            trio.lowlevel.reschedule(flusher)

    async def _flush_dirty(self) -> None:
        """Runs after every task that is runnable now: one flush for all that they send."""
        while True:
            if self._dirty:
                dirty, self._dirty = self._dirty, []
                for connection in dirty:
                    connection.dirty = False
                    connection.flush()
                await trio.lowlevel.checkpoint()
            else:
                self._flusher = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort_flusher)

    def _abort_flusher(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        self._flusher = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _watch_deadlines(self) -> None:
        deadlines = self._deadlines
        while True:
            scope = trio.CancelScope(deadline=deadlines.next_s)

            def sooner(deadline_s: float, scope: trio.CancelScope = scope) -> None:
                scope.deadline = deadline_s

            deadlines.on_earlier = sooner
            with scope:
                await trio.sleep_forever()
            deadlines.expire(self._clock.monotonic_s())


class _Connection:
    """A connection of the channel's: its protocol, its driver, and what it tells the channel."""

    __slots__ = (
        "_channel",
        "_driver",
        "_flushing",
        "_task_status",
        "dirty",
        "protocol",
        "was_ready",
    )

    def __init__(
        self,
        channel: Channel,
        driver: ClientDriver,
        task_status: trio.TaskStatus[None],
    ) -> None:
        self._channel = channel
        self._driver = driver
        self._task_status = task_status
        self._flushing = False
        self.was_ready = False
        self.dirty = False
        self.protocol: ClientConnection

    def flush(self) -> None:
        """Send what is to be sent."""
        self._flushing = True
        self._driver.flush()
        self._flushing = False

    def has_output(self) -> None:
        """As `ConnectionOwner`."""
        self._channel.connection_has_output(self, at_once=not self._flushing)

    def may_start(self) -> None:
        """As `ConnectionOwner`."""
        if self.protocol.ready and not self.protocol.draining and not self.was_ready:
            self.was_ready = True
            self._channel.connection_ready(self)
            self._task_status.started()
        self._channel.connection_changed(self)


class _ConnectionFailedError(Exception):
    """A connection has ended before the server has greeted."""


def _context(ssl: _ssl.SSLContext | bool | None) -> _ssl.SSLContext | None:
    if not ssl:
        return None
    if ssl is True:
        ssl = _ssl.create_default_context()
        ssl.minimum_version = _ssl.TLSVersion.TLSv1_2
    ssl.set_alpn_protocols([ALPN])
    return ssl
