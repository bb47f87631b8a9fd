"""Interceptors: functions that wrap the handler of every method.

They wrap it once, when the server is made, so a call costs nothing more than the functions that
they add. The first interceptor in the list is the outermost.

An interceptor sees every call that reaches a handler. It is also told of the calls of known
methods that are refused when their headers come (`Interceptor.refused`). It does not see calls
of unknown methods, nor requests that are malformed or too large: only the server's statistics
count those. An interceptor that wants to know how a call ends passes a function to the call's
``when_answered`` before it hands the call on. Several interceptors may do so for one call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from grpclib.const import Status

from dbos_actors.rpc.server.unary import UnaryCall

UnaryHandler: TypeAlias = Callable[[UnaryCall], None]
StreamHandler: TypeAlias = Callable[[Any], Awaitable[None]]


class Interceptor:
    """Changes nothing; override what is to be changed."""

    def unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:  # noqa: ARG002
        """The handler to use for a unary method served by a plain function."""
        return handler

    def stream(self, path: str, handler: StreamHandler) -> StreamHandler:  # noqa: ARG002
        """The handler to use for a method of a grpclib service."""
        return handler

    def refused(self, path: str, status: Status) -> None:
        """A call of a method was refused with a status when its headers came."""
