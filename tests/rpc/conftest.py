"""A client made of bytes, and servers of plain functions, for the transport's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
import trio
from grpclib.const import Status

from dbos_actors.rpc.server.connection import ServerConnection
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import open_listeners
from dbos_actors.rpc.server.routes import Servable
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    Http2Connection,
    Http2Options,
    ResponseReceived,
    StreamClosed,
    StreamError,
    StreamReset,
    TrailersReceived,
)

Handler: TypeAlias = Callable[[UnaryCall], None]

HEADERS: dict[bytes, bytes] = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/test.Test/Echo",
    b":authority": b"test",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


def status_of(error: Exception) -> tuple[Status, str]:
    """The table of the services under test."""
    if isinstance(error, LookupError):
        return Status.NOT_FOUND, str(error)
    return Status.UNKNOWN, "untold"


def echo(call: UnaryCall) -> None:
    """Answers what was asked."""
    call.reply(call.request)


@dataclass
class Answer:
    """What a stream brought."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None
    closed: bool = False

    @property
    def http_status(self) -> int:
        return int(self.headers[b":status"])

    @property
    def status(self) -> Status:
        fields = {**self.headers, **self.trailers}
        return Status(int(fields[b"grpc-status"]))

    @property
    def message(self) -> str:
        return {**self.headers, **self.trailers}.get(b"grpc-message", b"").decode()


class RawClient:
    """The client's side of one connection: bytes out, bytes in, nothing hidden."""

    def __init__(self, options: Http2Options | None = None, *, acknowledge: bool = True) -> None:
        self.engine = Http2Connection.client(options or Http2Options(reset_burst=10**9))
        self.answers: dict[int, Answer] = {}
        self.goaway: GoAwayReceived | None = None
        self.closed = False
        self._acknowledge = acknowledge

    def request(
        self,
        body: bytes | None = b"",
        *,
        end: bool = True,
        extra: Sequence[tuple[bytes, bytes]] = (),
        **changes: bytes | None,
    ) -> int:
        """Send a call; ``body`` is put in a frame. Keywords change headers (None drops one)."""
        headers = dict(HEADERS)
        for name, value in changes.items():
            key = name.replace("_", "-").encode()
            key = b":" + key if key in (b"path", b"method", b"scheme") else key
            if value is None:
                del headers[key]
            else:
                headers[key] = value
        stream_id = self.engine.send_request(
            [*headers.items(), *extra], end_stream=body is None and end
        )
        self.answers[stream_id] = Answer()
        if body is not None:
            self.send(stream_id, frame(body), end=end)
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.engine.send_data(stream_id, data, end_stream=end)

    def reset(self, stream_id: int, code: int = 8) -> None:
        self.engine.reset(stream_id, code)

    def output(self) -> bytes:
        parts = []
        while data := self.engine.output(1 << 20):
            parts.append(data)
        self._take_events()
        return b"".join(parts)

    def receive(self, data: bytes) -> None:
        self.engine.receive(data)
        self._take_events()

    def _take_events(self) -> None:
        for event in self.engine.events():
            match event:
                case ResponseReceived():
                    self.answers[event.stream_id].headers = dict(event.headers)
                case TrailersReceived():
                    self.answers[event.stream_id].trailers = dict(event.headers)
                case DataReceived():
                    self.answers[event.stream_id].body += event.data
                    if self._acknowledge and event.data:
                        with suppress(*StreamError):  # the connection may end in this read
                            self.engine.acknowledge(len(event.data), event.stream_id)
                case StreamReset():
                    self.answers[event.stream_id].reset = event.error_code
                case StreamClosed():
                    self.answers[event.stream_id].closed = True
                case GoAwayReceived():
                    self.goaway = event
                case ConnectionClosed():
                    self.closed = True


class Pipe:
    """A raw client and a `ServerConnection` joined by memory, under a clock set by hand."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        *,
        limits: ServerLimits | None = None,
        decode: Callable[[bytes], Any] = bytes,
        client: RawClient | None = None,
        services: Sequence[Servable] = (),
        core: SharedState | None = None,
        **options: Any,
    ) -> None:
        self.core = core or SharedState(
            unary={f"/test.Test/{n}": UnaryMethod(h, decode) for n, h in methods.items()},
            services=services,
            status_of=status_of,
            limits=limits or ServerLimits(),
            **options,
        )
        self.client = client or RawClient()
        self.now_s = 1000.0
        self.started: list[StreamCall] = []
        self.server = ServerConnection(self.core, self, peer="ipv4:192.0.2.1:1", now_s=self.now_s)
        self.flushes = 0
        self.blocked = False
        self._unread = bytearray()

    def start(self, call: StreamCall) -> None:
        """As the driver, which would run a handler."""
        self.started.append(call)

    def tell_over(self, call: StreamCall) -> None:
        """As the driver, at once."""
        call.tell_over()

    def flush(self) -> None:
        """As the driver of `ServerConnection`."""
        self.flushes += 1
        while True:
            data = self.server.output(1 << 16)
            self._unread += data
            if len(data) == 1 << 16:
                continue
            if not self.server.flushed(0, self.now_s):
                return

    def dismiss(self) -> None:
        """As the driver, which would close the socket."""
        self.server.queue_dismissal()
        self.flush()
        self.server.lost()

    def to_server(self, *, chunk: int | None = None) -> None:
        data = self.client.output()
        if not data:
            return
        for start in range(0, len(data), chunk or len(data)):
            self.server.receive(data[start : start + (chunk or len(data))], self.now_s)
            self.flush()

    def to_client(self) -> None:
        data, self._unread = bytes(self._unread), bytearray()
        if data:
            self.client.receive(data)

    def run(self, *, chunk: int | None = None) -> None:
        """Carry bytes both ways until none move."""
        while True:
            self.to_server(chunk=chunk)
            if not self._unread:
                return
            self.to_client()


@asynccontextmanager
async def _serve(server: Server) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1:0")
        await nursery.start(server.serve, listeners)
        listener = listeners[0]
        assert isinstance(listener, trio.SocketListener)
        host, port = listener.socket.getsockname()
        yield f"{host}:{port}"
        nursery.cancel_scope.cancel()


ServeUnary: TypeAlias = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def make_pipe() -> Callable[..., Pipe]:
    return Pipe


@pytest.fixture
def make_client() -> Callable[..., RawClient]:
    return RawClient


@pytest.fixture
def serve() -> Callable[[Server], AbstractAsyncContextManager[str]]:
    """Serves on a free port; the context manager gives its address."""
    return _serve


@pytest.fixture
def make_server() -> Callable[..., Server]:
    """A server of plain functions of bytes: ``make_server({'Echo': handler})``."""

    def make(
        methods: Mapping[str, Handler],
        *,
        decode: Callable[[bytes], Any] = bytes,
        **options: Any,
    ) -> Server:
        return Server(
            unary={f"/test.Test/{n}": UnaryMethod(h, decode) for n, h in methods.items()},
            status_of=status_of,
            **options,
        )

    return make


@pytest.fixture
def echo_handler() -> Handler:
    return echo


class SocketClient:
    """A `RawClient` on a Trio stream."""

    def __init__(self, stream: trio.abc.Stream, client: RawClient) -> None:
        self.stream = stream
        self.raw = client

    async def flush(self) -> None:
        if data := self.raw.output():
            await self.stream.send_all(data)

    async def receive(self) -> bool:
        """Take what has come; False at the end."""
        if self.raw.closed:
            return False
        data = await self.stream.receive_some(1 << 18)
        if not data:
            return False
        self.raw.receive(bytes(data))
        await self.flush()
        return True

    async def answer(self, stream_id: int) -> Answer:
        """The stream's answer, once it is closed or reset."""
        await self.flush()
        answer = self.raw.answers[stream_id]
        with trio.fail_after(10):
            while not answer.closed and answer.reset is None:
                if not await self.receive():
                    raise EOFError
        return answer

    async def call(self, body: bytes | None = b"", **changes: Any) -> Answer:
        return await self.answer(self.raw.request(body, **changes))


Connect: TypeAlias = Callable[..., Awaitable[SocketClient]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects raw clients to an address."""
    streams: list[trio.abc.AsyncResource] = []

    async def connect_raw(address: str, **options: Any) -> SocketClient:
        host, _, port = address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        streams.append(stream)
        return SocketClient(stream, RawClient(**options))

    yield connect_raw
    for stream in streams:
        await trio.aclose_forcefully(stream)


def splits(data: bytes, sizes: tuple[int, ...] = (1, 2, 7, 1_000_000)) -> Iterator[list[bytes]]:
    """The same bytes in several slicings."""
    for size in sizes:
        yield [data[start : start + size] for start in range(0, len(data), size)]
