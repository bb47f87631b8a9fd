"""What a channel grants its server and how patient it is: every bound of the client's side."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from dbos_actors.backoff import BackoffPolicy
from dbos_actors.rpc.wire.framing import MESSAGE_BYTES_MAX
from dbos_actors.rpc.wire.http2 import Http2Options


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """Bounds and times of a channel."""

    message_bytes_max: int = MESSAGE_BYTES_MAX
    """Largest response message, after decompression too; more is RESOURCE_EXHAUSTED."""

    compress_bytes_min: int | None = None
    """Requests of at least this size are gzipped; None: never. The server must know gzip."""

    wait_for_ready: bool = False
    """Whether calls wait, until their deadline, for a server that cannot be reached; else they
    wait for an attempt under way and fail, UNAVAILABLE, with it."""

    connect_s_max: float = 20.0
    """One attempt to connect, until the server's SETTINGS have come; gRPC's minimum."""

    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)
    """Pauses between attempts to connect, from the beginning of one to that of the next."""

    keepalive_s: float = inf
    """Nothing heard for so long while there are calls: ping. Servers by default tolerate pings
    five minutes apart and close the connection of a client that sends more."""

    keepalive_answer_s_max: float = 20.0
    """Nothing heard for so long after a ping: the connection is lost; gRPC's default."""

    keepalive_without_calls: bool = False
    """Whether to ping without calls too."""

    replay_bytes_max: int = 256 * 1024
    """What a call keeps of its request messages, beyond the first, to send them again if the
    server says that it has not begun with the call; gRPC core's per-call buffer."""

    replays_max: int = 3
    """So often one call is sent again, each time because the server has not begun with it."""

    server_hostname: str | None = None
    """The name that the server's certificate must have, instead of the host's."""

    authority: str | None = None
    """``:authority``, instead of host and port."""

    http2: Http2Options = field(
        # A window of 64 KiB, HTTP/2's own, is too small for one stream over long distances.
        default_factory=lambda: Http2Options(stream_window_bytes=256 * 1024)
    )
