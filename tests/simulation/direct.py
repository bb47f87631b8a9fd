"""Calls and streams without gRPC: handed to the service's handlers as objects.

Stands in for `dbos_actors.rpc.server.server.Server`, whose own tests cover bytes and
sockets; here it would cost most of the time. What matters is kept: a call is
answered once, at any time; it may expire, and its client may go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import trio
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from dbos_actors.errors import sole_cause
from dbos_actors.rpc.server.unary import UnaryMethod
from tests.simulation.history import StreamEndedError


class DirectCall:
    """One call; what `dbos_actors.rpc.server.unary.UnaryCall` is to the service."""

    def __init__(self, method: UnaryMethod, deadline: float | None, server: DirectServer) -> None:
        self.method = method
        self.deadline = deadline
        self.request: Any = None
        self.answered = False
        self.metadata: dict[str, str] = {}
        self.peer = "simulated:"
        self.body: bytes | None = None
        self.error: tuple[Status, str | None] | None = None
        self._server = server
        self._done = trio.Event()

    def reply(self, message: Any) -> None:
        if not self.answered:
            self.body = message if type(message) is bytes else message.SerializeToString()
            self._finish(Status.OK)

    def fail(self, error: Exception) -> None:
        if self.answered:
            return
        body = self.method.in_band(error) if self.method.in_band is not None else None
        if body is not None:
            self.body = body
            self._finish(Status.OK)
        else:
            self.error = self._server.status(error)
            self._finish(self.error[0])

    def expire(self) -> None:
        """The deadline has come."""
        if not self.answered:
            self.error = Status.DEADLINE_EXCEEDED, "deadline exceeded"
            self._finish(Status.DEADLINE_EXCEEDED)

    def abandon(self) -> None:
        """The client has gone."""
        if not self.answered:
            self._finish(None)

    async def wait(self) -> None:
        """Until answered, expired or abandoned."""
        deadline = float("inf") if self.deadline is None else self.deadline
        with trio.move_on_at(deadline):
            await self._done.wait()
        self.expire()

    def _finish(self, status: Status | None) -> None:
        self.answered = True
        self._server.live.pop(self, None)
        self._done.set()


_UNREAD_RESPONSES_MAX = 2
"""Beyond it a handler waits before it sends more, as flow control has it."""


class DirectStream:
    """One stream: what `rpc.server.stream.ServerStream` is to a handler, and its client's end."""

    def __init__(self, handler: Handler, server: DirectServer) -> None:
        self.handler = handler
        self.scope = trio.CancelScope()
        self._server = server
        self._requests: deque[Any] = deque()
        self._requests_ended = False
        self._responses: deque[bytes] = deque()
        self.handed_over = 0
        self._ending: StreamEndedError | None = None
        self._changed = trio.lowlevel.ParkingLot()

    # ---------------------------------------------------- what the handler sees

    async def recv_message(self) -> Any:
        messages = await self.recv_messages(1)
        return messages[0] if messages else None

    async def recv_messages(self, count_max: int = 1_000) -> list[Any]:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._requests and not self._requests_ended:
            await self._changed.park()
        return [self._requests.popleft() for _ in range(min(count_max, len(self._requests)))]

    async def send_message(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._responses) >= _UNREAD_RESPONSES_MAX and self._ending is None:
            await self._changed.park()
        if self._ending is not None:
            raise StreamTerminatedError("the call is over")
        body = message if isinstance(message, bytes) else message.SerializeToString()
        self._responses.append(body)
        self._changed.unpark_all()

    @property
    def is_handed_over(self) -> bool:
        return not self._responses

    async def wait_handed_over(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._responses and self._ending is None:
            await self._changed.park()

    # ----------------------------------------------------- what its client does

    def send(self, message: Any) -> None:
        """Hand a request over."""
        if self._ending is not None:
            raise self._ending
        self._requests.append(message)
        self._changed.unpark_all()

    def end(self) -> None:
        """Send nothing more."""
        self._requests_ended = True
        self._changed.unpark_all()

    async def receive(self) -> Any:
        """The next response; None after the last. Raises `StreamEndedError` unless it ended OK."""
        while not self._responses:
            if self._ending is not None:
                if self._ending.status is Status.OK:
                    return None
                raise self._ending
            await self._changed.park()
        body = self._responses.popleft()
        self.handed_over += 1
        self._changed.unpark_all()
        return self.handler.reply_type.FromString(body)

    def abandon(self) -> None:
        """The client has gone; what was on the way to it is lost."""
        self._responses.clear()
        self._finish(None, "connection lost")
        self.scope.cancel()

    async def run(self) -> None:
        """Have the handler serve it."""
        try:
            with self.scope:
                await self.handler.func(self)
        except Exception as error:  # noqa: BLE001 - as the transport does
            cause = sole_cause(error)
            assert isinstance(cause, Exception)
            if self._ending is None:
                self._finish(*self._server.status(cause))
        except BaseExceptionGroup as group:
            cancelled, _ = group.split(trio.Cancelled)
            assert cancelled is not None
            raise cancelled from None
        else:
            if not self.scope.cancelled_caught:
                self._finish(Status.OK, None)
        finally:
            self._finish(None, "connection lost")

    def _finish(self, status: Status | None, text: str | None) -> None:
        if self._ending is None:
            self._ending = StreamEndedError(status, text)
            self._changed.unpark_all()


class DirectServer:
    """What `open_supervisor` uses of a `Server`, without sockets."""

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryMethod],
        services: Collection[Any],
        status_of: Callable[[Exception], tuple[Status, str | None]],
        **_: Any,
    ) -> None:
        self._unary = unary
        self._handlers: dict[str, Handler] = {}
        for service in services:
            self._handlers.update(service.__mapping__())
        self._status_of = status_of
        self.answer_round = nullcontext()
        """Nothing is held back."""
        self.live: dict[DirectCall, None] = {}
        self._streams: dict[DirectStream, None] = {}
        self._streams_ended = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.accepting = False
        self._stop = trio.Event()

    async def serve(
        self,
        listeners: Sequence[Any],
        *,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                self.accepting = True
                task_status.started(listeners)
                await self._stop.wait()
                self._nursery.cancel_scope.cancel()
        finally:
            self.accepting = False
            self.abandon_all()

    async def drain(self, grace_s: float) -> None:
        self.accepting = False
        with trio.move_on_after(grace_s):
            for call in list(self.live):
                await call._done.wait()
            while self._streams:
                self._streams_ended = trio.Event()
                await self._streams_ended.wait()
        self._stop.set()

    def status(self, error: Exception) -> tuple[Status, str | None]:
        if isinstance(error, GRPCError):
            return error.status, error.message
        return self._status_of(error)

    def begin(self, path: str, request: bytes, deadline_s: float | None) -> DirectCall:
        """A request has arrived."""
        method = self._unary[path]
        call = DirectCall(method, deadline_s, self)
        call.request = method.decode(request)
        self.live[call] = None
        try:
            method.handler(call)  # type: ignore[arg-type] # all that a handler uses of one
        except Exception as error:  # noqa: BLE001 - as the transport does
            call.fail(error)
        return call

    def open(self, path: str) -> DirectStream:
        """The client opens a stream."""
        assert self._nursery is not None
        stream = DirectStream(self._handlers[path], self)
        self._streams[stream] = None
        self._nursery.start_soon(self._run, stream)
        return stream

    async def _run(self, stream: DirectStream) -> None:
        try:
            await stream.run()
        finally:
            del self._streams[stream]
            if not self._streams:
                self._streams_ended.set()

    def abandon_all(self) -> None:
        """Every client has lost its connection."""
        for call in list(self.live):
            call.abandon()
        for stream in list(self._streams):
            stream.abandon()
