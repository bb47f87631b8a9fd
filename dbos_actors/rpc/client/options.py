"""Every limit and time of the client's side: what a server may send, and how long it may take."""

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

    connections_max: int = 100
    """Connections that the channel has at once: the current one, and those whose server has said
    that it is going away while calls go on there. No further one is made, as if the server could
    not be reached. A server that sends its clients away every minute, while calls last an hour,
    needs 60."""

    keepalive_s: float = inf
    """The server is pinged when nothing has come from it for so long while there are calls. Most
    servers tolerate a ping every five minutes and close the connection of a client that sends
    more."""

    keepalive_answer_s_max: float = 20.0
    """A connection on which nothing has come for so long after a ping is lost; gRPC's default."""

    keepalive_without_calls: bool = False
    """Whether to ping without calls too."""

    replay_bytes_max: int = 256 * 1024
    """Bytes of request messages, beyond the first message, that a call keeps. It sends them again
    if the server says that it has not begun with the call. gRPC core keeps as many per call."""

    replays_max: int = 3
    """How often one call is sent again because the server says that it has not begun with it."""

    server_hostname: str | None = None
    """The name that the server's certificate must have, instead of the host's."""

    authority: str | None = None
    """``:authority``, instead of host and port."""

    http2: Http2Options = field(
        # HTTP/2's own window of 64 KiB limits a stream to 64 KiB for each round trip.
        default_factory=lambda: Http2Options(stream_window_bytes=256 * 1024)
    )
