"""Plain GET requests that are no calls: a service may answer them with pages.

A service gives `Server` a `PageSource`: a function from a path to a `Page`, or None for a path that
it does not have. It runs where requests are read, so it must not wait: pages are in memory. They
are sent under the same limits as responses of calls: unsent bytes, connections, what strangers may
use. They need no credentials, as health checks need none: a page that shows something secret gets
it by calls of its own, which need them.

The host of a request was checked when the function is called (`dbos_actors.rpc.connect.origins`).
Without pages the server answers ``GET /`` with one line, which says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

TEXT: Final = b"text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    body: bytes
    content_type: bytes = TEXT
    http_status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Further ones, names in lower case. ``content-length`` and ``x-content-type-options`` are
    added to them."""


PageSource: TypeAlias = Callable[[str], Page | None]
"""From the path of a request, without its query, to its page; raises nothing."""


def only_greeting(greeting: str) -> PageSource:
    """The pages of a server that has none: one line at ``/``."""
    page = Page(greeting.encode() + b"\n")
    return lambda path: page if path == "/" else None
