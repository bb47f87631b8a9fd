"""What the user of a channel gets for each call: `grpclib.client.Stream`, on Trio.

It has the methods of grpclib's stream with the same meaning, so that stubs written for grpclib run.
Two things differ:
- Whenever a call ends with another status than OK, a `grpclib.GRPCError` is raised. That includes a
  lost connection (UNAVAILABLE), the deadline (DEADLINE_EXCEEDED), and a reset, whose status is the
  one that the gRPC specification gives it.
- A request message may be ``bytes`` that are serialised already. With ``bytes`` as the reply type,
  replies are returned as they came.

A stream holds no cancel scope and no nursery, because betterproto's stubs use it inside an async
generator. The channel watches its deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar

import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from multidict import MultiDict

from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.client.events import ChannelEvents
from dbos_actors.rpc.client.options import ChannelOptions
from dbos_actors.rpc.wire.deadlines import Deadline
from dbos_actors.rpc.wire.metadata import Metadata, MetadataError, MetadataLike, decode_metadata
from dbos_actors.rpc.wire.peers import Peer

SendT = TypeVar("SendT")
RecvT = TypeVar("RecvT")


class Caller(Protocol):
    """What a stream needs of the channel that has made it."""

    options: ChannelOptions

    @property
    def __dispatch__(self) -> ChannelEvents:
        """The listeners."""
        ...

    def encode(self, message: Any, message_type: Any, compress: bool | None = None) -> bytes:
        """A framed message, gzipped or not; None: as the channel's options say.

        Raises TypeError for one of another type.
        """
        ...

    def decode(self, body: bytes, message_type: Any) -> Any:
        """A message. Raises `grpclib.GRPCError` (INTERNAL) if the bytes are none."""
        ...

    def decode_details(self, call: ClientCall) -> Any:
        """The details of a call's status."""
        ...

    def start_soon(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run something beside the channel's calls. It must not raise."""
        ...

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
        ...

    def submit(self, call: ClientCall) -> None:
        """Start a call, or let it wait."""
        ...


class ClientStream(Generic[SendT, RecvT]):
    """One call. Made by `Channel.request`; used with ``async with``.

    Leaving the block waits for the call's status and raises it unless it is OK; leaving it by an
    exception, cancellation among them, resets the call at once. Sending and receiving may be done
    by two tasks.
    """

    def __init__(
        self,
        channel: Caller,
        method_name: str,
        metadata: Metadata,
        cardinality: Cardinality,
        *,
        send_type: type[SendT],
        recv_type: type[RecvT],
        deadline: Deadline | None,
        wait_for_ready: bool,
    ) -> None:
        self._channel = channel
        self._path = method_name
        self._metadata = metadata
        self._cardinality = cardinality
        self._send_type = send_type
        self._recv_type = recv_type
        self._deadline = deadline
        self._wait_for_ready = wait_for_ready
        self._dispatch = channel.__dispatch__
        self._call: ClientCall | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._sent = False
        self._trailers_done = False
        self._cancelled = False
        self._failure: Exception | None = None
        self._sending: trio.CancelScope | None = None
        self.initial_metadata: Metadata | None = None
        """The response's, once `recv_initial_metadata` has returned."""
        self.trailing_metadata: Metadata | None = None
        """The response's, once the call is over and that was noticed."""
        self.peer: Peer | None = None
        """Who serves the call, once it is sent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _exc_type: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        call = self._call
        if call is None:
            return
        try:
            if exc is None and not self._cancelled:
                if not (call.request_ended or call.over):
                    raise ProtocolError("the request has not ended")
                if self.initial_metadata is None:
                    await self.recv_initial_metadata()
                if not self._trailers_done:
                    await self.recv_trailing_metadata()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Reset the call unless it is over, and stop sending to it; what leaving the block does."""
        if self._sending is not None:
            self._sending.cancel()
        if self._call is not None:
            self._call.cancel()

    # -------------------------------------------------------------- requests

    async def send_request(self, *, end: bool = False, announce_gzip: bool = False) -> None:
        """Begin the call: wait for the connection and for room among its concurrent streams.

        ``end``: there will be no message (streaming requests only). ``announce_gzip``: messages
        may be sent with ``compress=True``. Raises `grpclib.GRPCError` when the call has failed
        before it began, `MetadataError` for metadata that must not be sent, `ProtocolError` on
        misuse.
        """
        if self._call is not None:
            raise ProtocolError("request is already sent")
        if end and not self._cardinality.client_streaming:
            raise ProtocolError("a unary request requires a message to be sent")
        await self._begin(announces_gzip=announce_gzip)
        if end:
            self._queue(b"", end=True)
        self._submit()
        await self._wait_started()

    async def _begin(self, *, announces_gzip: bool) -> None:
        """Make the call, and let listeners have their say."""
        (metadata,) = await self._dispatch.send_request(
            self._metadata,
            method_name=self._path,
            deadline=self._deadline,
            content_type="application/grpc",
        )
        call = self._channel.make_call(
            self._path,
            metadata,
            server_streaming=self._cardinality.server_streaming,
            deadline_s=None if self._deadline is None else self._deadline.deadline_s,
            wait_for_ready=self._wait_for_ready,
            announces_gzip=announces_gzip,
        )
        call.on_change = self._changed.unpark_all
        self._call = call

    def _submit(self) -> None:
        assert self._call is not None
        self._channel.submit(self._call)

    def _queue(self, data: bytes, *, end: bool) -> None:
        assert self._call is not None
        self._call.queue(data, end=end, replay_bytes_max=self._channel.options.replay_bytes_max)

    async def _wait_started(self) -> None:
        call = self._call
        assert call is not None
        try:
            while call.connection is None and not call.over:
                await self._changed.park()
        except BaseException:
            call.cancel()
            raise
        if call.connection is None:
            self._raise_error()
        else:
            self.peer = Peer(call.connection.peer, call.connection.peer_certificate)

    async def send_message(
        self, message: SendT, *, end: bool = False, compress: bool | None = None
    ) -> None:
        """Send a request message, once the server has taken enough of the earlier ones.

        ``end``: it is the last one, as the only one of a unary request always is. ``compress``:
        whether to gzip it, in a call that has announced gzip or begins with this message; None:
        as `ChannelOptions.compress_bytes_min` says. The server must know gzip. If cancelled,
        nothing of it was sent (and the first one never will be: that cancels the call). A message
        after the server has ended the call with OK goes nowhere; with another status, that is
        raised. Raises `grpclib.GRPCError`, `ProtocolError` on misuse, TypeError.
        """
        streaming = self._cardinality.client_streaming
        if self._call is not None and self._call.request_ended:
            raise ProtocolError("the request has ended")
        if compress and self._call is not None and not self._call.announces_gzip:
            raise ProtocolError("gzip was not announced: send_request(announce_gzip=True)")
        (message,) = await self._dispatch.send_message(message)
        data = self._channel.encode(message, self._send_type, compress)
        first = self._call is None
        if first:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._begin(announces_gzip=bool(compress))
            self._queue(data, end=end or not streaming)
            self._submit()
            await self._wait_started()
        else:
            if streaming:
                await trio.lowlevel.checkpoint()
            if await self._wait_can_send():
                self._queue(data, end=end or not streaming)
        self._sent = True

    async def _wait_can_send(self) -> bool:
        """Whether the server still wants something."""
        call = self._call
        assert call is not None
        while not call.can_send and not call.over:
            await self._changed.park()
        if call.over:
            if call.error is not None:
                self._raise_error()
            return False
        return True

    async def end(self) -> None:
        """End a streaming request. Raises as `send_message` does."""
        if self._call is None:
            raise ProtocolError("request was not sent")
        if not self._cardinality.client_streaming:
            if not self._sent:
                raise ProtocolError("a unary request requires a message to be sent")
            return
        if self._call.request_ended:
            raise ProtocolError("the request has ended")
        if await self._wait_can_send():
            self._queue(b"", end=True)

    def send_from(self, messages: Any) -> None:
        """Send a streaming request from an iterable, async or not, beside what this task does.

        The call ends with the request's end when the iterable does; if that raises, the call is
        cancelled and the error raised where the response is received. The iterable is closed with
        the call. To be used once, after `send_request`.
        """
        if self._call is None or self._sending is not None:
            raise ProtocolError("the request is not sent, or has its messages already")
        self._sending = trio.CancelScope()
        self._channel.start_soon(self._send_from, messages, self._sending)

    async def _send_from(self, messages: Any, scope: trio.CancelScope) -> None:
        call = self._call
        assert call is not None
        try:
            try:
                with scope:
                    await self._send_all(messages)
            finally:
                if hasattr(messages, "aclose"):
                    await messages.aclose()
        except Exception as error:  # noqa: BLE001 - raised to whoever receives
            if not call.over:
                self._failure = error
                call.cancel()

    async def _send_all(self, messages: Any) -> None:
        call = self._call
        assert call is not None
        if hasattr(messages, "__aiter__"):
            async for message in messages:
                await self.send_message(message)
                if call.over:
                    return
        else:
            for message in messages:
                await self.send_message(message)
                if call.over:
                    return
        if not call.over:
            await self.end()

    # ------------------------------------------------------------- responses

    @property
    def is_message_compressed(self) -> bool:
        """Whether the response message that was taken last came compressed."""
        return self._call is not None and self._call.is_message_compressed

    async def recv_initial_metadata(self) -> None:
        """Wait for the response's headers.

        Raises `grpclib.GRPCError` if the call has failed before, `ProtocolError` on misuse.
        """
        if self._call is None:
            raise ProtocolError("request was not sent yet")
        if self.initial_metadata is not None:
            raise ProtocolError("initial metadata was already received")
        call = self._call
        while call.headers is None and not call.over:
            await self._changed.park()
        began = call.headers is not None and call.headers is not call.trailers
        metadata: Metadata = self._decode_metadata(call.headers) if began else MultiDict()
        (self.initial_metadata,) = await self._dispatch.recv_initial_metadata(metadata)
        if not began:
            await self._note_trailers()
            if call.error is not None:
                self._raise_error()

    def _decode_metadata(self, headers: Any) -> Metadata:
        try:
            return decode_metadata(headers)
        except MetadataError as error:
            assert self._call is not None
            self._call.cancel()
            raise GRPCError(Status.INTERNAL, f"response metadata: {error}") from error

    async def recv_message(self) -> RecvT | None:
        """The next response message; None after the last of a call that is OK.

        Raises `grpclib.GRPCError` with the status of a call that is not, once the messages before
        it are taken; after the deadline, at once. A message already there is returned without
        letting other tasks run. Cancellation loses none.
        """
        if self._call is None:
            raise ProtocolError("request was not sent yet")
        if self.initial_metadata is None:
            await self.recv_initial_metadata()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        call = self._call
        while (body := call.take()) is None:
            if call.over:
                call.end()
                if call.error is not None:
                    await self._note_trailers()
                    self._raise_error()
                return None
            await self._changed.park()
        (message,) = await self._dispatch.recv_message(self._channel.decode(body, self._recv_type))
        return message  # type: ignore[no-any-return]

    def __aiter__(self) -> AsyncIterator[RecvT]:
        return self

    async def __anext__(self) -> RecvT:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def recv_trailing_metadata(self) -> None:
        """Wait for the call's status; messages not taken yet are dropped.

        Raises `grpclib.GRPCError` unless it is OK, `ProtocolError` on misuse.
        """
        call = self._call
        if call is None or not (call.request_ended or call.over):
            raise ProtocolError("the request has not ended")
        if self.initial_metadata is None:
            raise ProtocolError("initial metadata was not received yet")
        if self._trailers_done:
            raise ProtocolError("trailing metadata was already received")
        while not call.over:
            while call.take() is not None:
                pass
            if not call.over:
                await self._changed.park()
        await self._note_trailers()
        if call.error is not None:
            self._raise_error()

    async def _note_trailers(self) -> None:
        call = self._call
        assert call is not None
        if self._trailers_done:
            return
        self._trailers_done = True
        (self.trailing_metadata,) = await self._dispatch.recv_trailing_metadata(
            self._decode_metadata(call.trailers),
            status=call.status,
            status_message=call.message,
            status_details=self._channel.decode_details(call),
        )

    def _raise_error(self) -> NoReturn:
        """Raise what the call has ended with."""
        call = self._call
        assert call is not None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if call.error is None:
            raise StreamTerminatedError("the call is over")
        raise GRPCError(call.error.status, call.error.message, self._channel.decode_details(call))

    async def cancel(self) -> None:
        """Reset the call. Whatever waits for it gets CANCELLED. No-op once it is over."""
        if self._call is None:
            raise ProtocolError("request was not sent yet")
        self._cancelled = True
        self._call.cancel()
        await trio.lowlevel.checkpoint()
