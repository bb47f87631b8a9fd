"""Calls without gRPC: handed to the service's handlers as objects.

Stands in for `dbos_actors.rpc.server.Server`, whose own tests cover bytes and
sockets; here it would cost most of the time. What matters is kept: a call is
answered once, at any time; it may expire, and its client may go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.unary import UnaryMethod


class DirectCall:
    """One call; what `dbos_actors.rpc.unary.UnaryCall` is to the service."""

    def __init__(self, method: UnaryMethod, deadline: float | None, server: DirectServer) -> None:
        self.method = method
        self.deadline = deadline
        self.request: Any = None
        self.answered = False
        self.on_answered: Callable[[Status | None], None] | None = None
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
        if self.on_answered is not None:
            self.on_answered(status)


class DirectServer:
    """What `open_supervisor` uses of a `Server`, without sockets."""

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryMethod],
        status_of: Callable[[Exception], tuple[Status, str | None]],
        **_: Any,
    ) -> None:
        self._unary = unary
        self._status_of = status_of
        self.live: dict[DirectCall, None] = {}
        self.accepting = False
        self._stop = trio.Event()

    async def serve(
        self,
        listeners: Sequence[Any],
        *,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.accepting = True
        task_status.started(listeners)
        try:
            await self._stop.wait()
        finally:
            self.accepting = False
            self.abandon_all()

    def flush(self) -> None:
        """Nothing is held back."""

    async def drain(self, grace_s: float) -> None:
        self.accepting = False
        with trio.move_on_after(grace_s):
            for call in list(self.live):
                await call._done.wait()
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

    def abandon_all(self) -> None:
        """Every client has lost its connection."""
        for call in list(self.live):
            call.abandon()
