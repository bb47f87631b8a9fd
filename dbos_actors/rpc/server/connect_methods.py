"""Which methods are called over Connect, and what the protocol needs to know of each.

The table is derived once from the server's routes. A method's messages have a JSON form if their
classes have descriptors. A method may be called by GET if it is unary and its descriptor says
``idempotency_level = NO_SIDE_EFFECTS``: browsers and caches repeat a GET as they like, and a link
on any page makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.descriptor_pb2 import MethodOptions

from dbos_actors.rpc.connect.codecs import json_decoder, json_encoder, proto_decoder
from dbos_actors.rpc.server.routes import Route
from dbos_actors.rpc.server.stream_call import StreamMethod


@dataclass(frozen=True, slots=True)
class ConnectMethod:
    """A method, as Connect calls it."""

    path: str
    proto: Route
    """Serves requests in protobuf's binary form."""
    json: Route | None
    """Serves requests in JSON; None: the messages have no such form."""
    to_json: Callable[[bytes], bytes] | None
    """The JSON of a serialised response."""
    is_streaming: bool
    """Whether there is a stream on either side."""
    needs_http2: bool
    """Whether there is one on both."""
    has_get: bool


def connect_methods(routes: Mapping[bytes, Route]) -> dict[bytes, ConnectMethod]:
    """The methods by path."""
    return {path: _method(path.decode("ascii"), route) for path, route in routes.items()}


def _method(path: str, route: Route) -> ConnectMethod:
    request_type, reply_type = route.request_type, route.reply_type
    has_json = hasattr(request_type, "DESCRIPTOR") and hasattr(reply_type, "DESCRIPTOR")
    is_up = isinstance(route, StreamMethod) and route.client_streaming
    is_down = isinstance(route, StreamMethod) and route.server_streaming
    return ConnectMethod(
        path=path,
        proto=replace(route, decode=proto_decoder(route.decode)),
        json=replace(route, decode=json_decoder(request_type)) if has_json else None,
        to_json=json_encoder(reply_type) if has_json else None,
        is_streaming=is_up or is_down,
        needs_http2=is_up and is_down,
        has_get=has_json and not (is_up or is_down) and _has_no_effects(path, request_type),
    )


def _has_no_effects(path: str, request_type: Any) -> bool:
    """Whether a method's descriptor promises that; False for one that has none."""
    pool = request_type.DESCRIPTOR.file.pool
    try:
        method = pool.FindMethodByName(path.removeprefix("/").replace("/", "."))
    except KeyError:
        return False
    level: int = method.GetOptions().idempotency_level
    return level == MethodOptions.NO_SIDE_EFFECTS
