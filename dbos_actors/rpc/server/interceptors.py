"""Interceptors: wrap every method's handler once, when the server is made.

A server without any pays nothing; one that has some pays the calls they add and no
more. The first in the list is the outermost. They see what reaches a handler, and are told of
calls whose client is not known (`Interceptor.refused`); what else is refused before (unknown
methods, malformed or oversized requests) only the server's statistics see. To observe how a
call ends, give its ``when_answered`` a function before handing the call on; every interceptor may.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from grpclib.const import Status

if TYPE_CHECKING:
    from dbos_actors.rpc.server.unary import UnaryCall

UnaryHandler: TypeAlias = "Callable[[UnaryCall], None]"
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
