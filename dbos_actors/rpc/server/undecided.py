"""A connection of which nobody knows yet which version of HTTP its client speaks.

Without TLS the first bytes tell: a client of HTTP/2 begins with ``PRI``, which no method of
HTTP/1.1 does (RFC 9113, 3.4). So the server says nothing before it has them. Under TLS the
handshake tells (ALPN); a client that names no protocol speaks HTTP/1.1.

Until then the connection is among the server's strangers, and has as long as a handshake may take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from grpclib.const import Status

from dbos_actors.rpc.server.keepalive import UNANSWERED_SHUTDOWN_S
from dbos_actors.rpc.server.shared_state import Driver, SharedState

_HTTP2: Final = b"PRI"
"""How the preface of HTTP/2 begins."""


class Undecided:
    """Has the methods of `ServerConnection` that its driver calls."""

    __slots__ = (
        "_bytes",
        "_decide",
        "_draining_s",
        "_driver",
        "_opened_s",
        "_shared",
        "closed",
        "peer",
        "peer_certificate",
    )

    is_full = False
    is_stranger = True
    is_busy = False
    streams = 0
    unsent_bytes = 0

    closed: bool
    """Nothing more will happen: close the socket."""

    def __init__(
        self,
        shared: SharedState,
        driver: Driver,
        decide: Callable[[bool, bytes, float], None],
        *,
        peer: str,
        now_s: float,
    ) -> None:
        """``decide`` is called once, with whether it is HTTP/2, the bytes, and the time."""
        self._shared = shared
        self._driver: Driver | None = driver
        self._decide = decide
        self._opened_s = now_s
        self._draining_s: float | None = None
        self._bytes = b""
        self.peer = peer
        self.peer_certificate: dict[str, Any] | None = None
        self.closed = False
        shared.strangers.add(self)

    @property
    def opened_s(self) -> float:
        """When the connection was accepted."""
        return self._opened_s

    @property
    def is_draining(self) -> bool:
        """Whether it is to end as soon as it is known how."""
        return self._draining_s is not None

    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> None:
        """Take bytes from the client; decide, if they tell."""
        if self.closed:
            return
        self._bytes += data
        known = len(_HTTP2)
        if len(self._bytes) >= known or not _HTTP2.startswith(self._bytes):
            self.decide(self._bytes[:known] == _HTTP2, now_s)

    def decide(self, is_http2: bool, now_s: float) -> None:
        """It is decided: another object takes the place of this one."""
        self._shared.strangers.discard(self)
        data, self._bytes = self._bytes, b""
        self._decide(is_http2, data, now_s)

    def output(self, amount: int) -> bytes:  # noqa: ARG002
        """Nothing is said before."""
        return b""

    def flushed(self, socket_bytes: int, now_s: float) -> bool:  # noqa: ARG002
        """Nothing was."""
        return False

    def tick(self, now_s: float, accepted_bytes: int) -> None:  # noqa: ARG002
        """Close the connection of a client that says nothing for too long."""
        is_late = now_s - self._opened_s >= self._shared.limits.keepalive.handshake_s_max
        if self._draining_s is not None:
            is_late = is_late or now_s - self._draining_s >= UNANSWERED_SHUTDOWN_S
        if is_late:
            self.lost()

    def dismiss(self) -> None:
        """Close the connection at once: others need its place."""
        if self._driver is not None:
            self._driver.dismiss()

    def reauthenticate(self) -> None:
        """There are no calls."""

    def announce_shutdown(self, now_s: float, *, after_streams: bool = False) -> None:  # noqa: ARG002
        """End soon. The bytes of a call may be under way, so it gets as long as a GOAWAY would."""
        if self._draining_s is None:
            self._draining_s = now_s

    def end_calls(self, status: Status, message: str) -> None:
        """There are none."""

    def excess_line(self, now_s: float) -> None:
        """Nobody is known to have asked too much."""

    def leave_excess(self) -> None:
        """It stands in no line."""

    def queue_dismissal(self) -> None:
        """Nothing can be said."""

    def lost(self) -> None:
        """The connection is over. Idempotent."""
        self.closed = True
        self._shared.strangers.discard(self)

    def let_go(self, driver: Driver) -> None:  # noqa: ARG002
        """Forget the driver, which holds this object."""
        self._driver = None
        self._decide = _nothing


def _nothing(is_http2: bool, data: bytes, now_s: float) -> None:
    pass
