"""What the server answers on the web besides gRPC: which pages may call it, and its own pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dbos_actors.rpc.connect.origins import WebPolicy
from dbos_actors.rpc.server.pages import only_greeting
from dbos_actors.rpc.server.web_options import WebOptions
from dbos_actors.service.methods import SERVICE

GREETING: Final = (
    f"DBOS actors: gRPC, and Connect (connectrpc.com) at POST /{SERVICE.full_name}/METHOD"
)
"""What ``GET /`` answers."""


def web_options(*, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> WebOptions:
    """The options of a server that may be called as ``hosts`` and from pages of ``origins``."""
    policy = WebPolicy.of(hosts=hosts, origins=origins)
    return WebOptions(policy=policy, pages=only_greeting(GREETING))
