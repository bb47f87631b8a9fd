"""Which method of a server answers which path.

`make_routes` is called once, when the server is made. It wraps every handler in the server's
interceptors, so that a call finds the finished handler by one look-up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from dbos_actors.rpc.server.interceptors import Interceptor
from dbos_actors.rpc.server.stream_call import StreamMethod
from dbos_actors.rpc.server.unary import UnaryMethod

Route: TypeAlias = UnaryMethod | StreamMethod


class Servable(Protocol):
    """A grpclib service (its own type for this is private)."""

    def __mapping__(self) -> Mapping[str, Any]:
        """Full path to `grpclib.const.Handler`."""
        ...


def make_routes(
    unary: Mapping[str, UnaryMethod],
    services: Collection[Servable],
    open_services: Collection[Servable],
    interceptors: Sequence[Interceptor],
) -> dict[bytes, Route]:
    """Every method by its full path. A unary method wins over one of a service."""
    routes: dict[bytes, Route] = {}
    for is_open, group in ((False, services), (True, open_services)):
        for path, handler in (pair for one in group for pair in one.__mapping__().items()):
            stream_handler = handler.func
            for interceptor in reversed(interceptors):
                stream_handler = interceptor.stream(path, stream_handler)
            routes[path.encode("ascii")] = StreamMethod(
                path=path,
                handler=stream_handler,
                client_streaming=handler.cardinality.client_streaming,
                server_streaming=handler.cardinality.server_streaming,
                decode=handler.request_type.FromString,
                request_type=handler.request_type,
                reply_type=handler.reply_type,
                is_open=is_open,
            )
    for path, method in unary.items():
        unary_handler = method.handler
        for interceptor in reversed(interceptors):
            unary_handler = interceptor.unary(path, unary_handler)
        routes[path.encode("ascii")] = replace(method, handler=unary_handler)
    return routes
