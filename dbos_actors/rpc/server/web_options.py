"""What a server was told about requests that are not gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field

from dbos_actors.rpc.connect.origins import WebPolicy
from dbos_actors.rpc.server.pages import PageSource, only_greeting


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """The options of one server."""

    policy: WebPolicy = field(default_factory=WebPolicy)
    """Which hosts and origins are answered."""

    pages: PageSource = field(
        default_factory=lambda: only_greeting("This server speaks gRPC and Connect.")
    )
    """What plain GET requests are answered with."""
