"""Every bound of a server's transport, by name.

A server enforces each bound for every connection by itself, unless the bound says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dbos_actors.rpc.server.keepalive import KeepalivePolicy
from dbos_actors.rpc.wire.framing import MESSAGE_BYTES_MAX
from dbos_actors.rpc.wire.http1 import Http1Options
from dbos_actors.rpc.wire.http2 import Http2Options

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds of a server; each is enforced per connection unless it says otherwise."""

    message_bytes_max: int = MESSAGE_BYTES_MAX
    """Largest request message, after decompression too; more is RESOURCE_EXHAUSTED."""

    calls_live_max: int = 100_000
    """Calls of the whole server being handled; one more is RESOURCE_EXHAUSTED. Calls of open
    methods, which need no authentication, are not among them."""

    open_calls_connection_max: int = 8
    """Live calls of open methods on one connection; one more is RESOURCE_EXHAUSTED. A client
    that watches its server's health does so once for each service."""

    open_calls_strangers_max: int = 1_000
    """Live calls of open methods of the whole server, on connections whose client is not known:
    a hundredth of all calls. One more ends the oldest."""

    open_calls_clients_max: int = 10_000
    """Likewise on connections whose client is known: every second one may watch."""

    open_message_bytes_max: int = 4 * 1024
    """Largest request message of an open method: the name of a service."""

    calls_busy: int = 4_000
    """Unary calls of the whole server being handled beyond which connections take turns at being
    read: what two of the largest commits hold."""

    connections_max: int = 20_000
    """Connections of the whole server. Each costs about 20 KB. One more takes the place of one
    whose client is not known; if there is none, it is closed at once."""

    connections_strangers_max: int = 2_000
    """Connections of the whole server whose client is not known, a tenth of all. One more takes
    the place of the oldest of them without a call."""

    upload_bytes_max: int = 16 * _MIB
    """Unfinished request messages beyond their stream's window. A message begins to be
    received only when all of it fits; until then its stream waits on flow control."""

    held_bytes_free: int = 1 * _MIB
    """Request bytes each connection may always have waiting for their end or their handler."""

    held_bytes_shared: int = 256 * _MIB
    """Request bytes of the whole server beyond those. The connection that needs more is ended
    (ENHANCE_YOUR_CALM): flow control alone lets each one have 64 MiB waiting."""

    inflated_bytes_max: int = 16 * _MIB
    """Decompressed bytes of a connection's request messages that calls hold: four of the largest
    messages. One more is RESOURCE_EXHAUSTED; one alone always has a place."""

    inflated_bytes_shared: int = 256 * _MIB
    """Decompressed bytes of the whole server's request messages that calls hold; one that does
    not fit is RESOURCE_EXHAUSTED. As much as there is for request bytes as they were sent."""

    unsent_bytes_max: int = 8 * _MIB
    """Unsent response bytes beyond which no further call of the connection is begun, and,
    while its socket accepts nothing, nothing more is read from it. Two of the largest messages
    that clients accept by default: a call does not wait behind one."""

    unsent_bytes_free: int = 256 * 1024
    """Unsent response bytes each connection may always have."""

    unsent_bytes_shared: int = 256 * _MIB
    """Unsent response bytes of the whole server beyond those; a response that does not fit is
    RESOURCE_EXHAUSTED. Clients that do not read cost this much memory and no more."""

    stalled_s_max: float = 30.0
    """A connection that uses some of the shared bytes, and accepts none for so long, is closed."""

    stream_unsent_bytes: int = 64 * 1024
    """Unsent bytes on a stream beyond which its handler waits before sending more."""

    compress_bytes_min: int | None = None
    """Responses of at least this size are gzipped for clients that accept it; None: never.
    Off by default: on a fast network it costs more time than it saves."""

    http1: Http1Options = field(default_factory=Http1Options)
    http2: Http2Options = field(default_factory=Http2Options)
    keepalive: KeepalivePolicy = field(default_factory=KeepalivePolicy)
