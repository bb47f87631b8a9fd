"""The part of gRPC's keepalive (keepalive.md) that is the same for servers and clients."""

from __future__ import annotations

from enum import Enum, auto

TOO_MANY_PINGS = b"too_many_pings"
"""Said in the GOAWAY to a client that pings too often; it must then ping half as often."""


class Action(Enum):
    """What a connection must do now, after a look at the time."""

    NOTHING = auto()
    PING = auto()
    DRAIN = auto()
    CLOSE = auto()
