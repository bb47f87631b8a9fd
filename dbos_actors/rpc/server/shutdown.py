"""How a connection is ended by its server, so that no call is lost that could be served.

A graceful end has these steps:
1. If calls of grpclib services are live, the server may wait until they are over. It then sends a
   PING behind their status, and waits for the answer or a second: some clients (grpclib) drop all
   calls at the first GOAWAY, so they have to read the status before.
2. The server sends the notice of a shutdown, and a PING (RFC 9113, 6.8). Calls that the client has
   sent meanwhile are still served.
3. When the client has answered the PING, or after `UNANSWERED_SHUTDOWN_S`, the server sends the
   final GOAWAY. Calls that are live by then finish; the engine then ends the connection.

A client that asks too much (ENHANCE_YOUR_CALM), or breaks the rules of HTTP/2, gets one GOAWAY, and
nothing more is read from it.
"""

from __future__ import annotations

from contextlib import suppress
from enum import Enum, auto
from typing import Final

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.keepalive import UNANSWERED_SHUTDOWN_S
from dbos_actors.rpc.server.outbox import Outbox
from dbos_actors.rpc.wire.http2 import ErrorCode, Http2Error

log = get_logger(__name__)

_NOTICE_PING: Final = b"dbosexit"
_STATUS_PING: Final = b"dbosends"


class _Wait(Enum):
    """What the notice of a shutdown waits for."""

    NOTHING = auto()
    STREAMS = auto()
    """Calls of grpclib services have to end."""
    FLUSH = auto()
    """The status of the last one has to be sent, and a PING behind it."""
    ANSWER = auto()
    """That PING has to be answered."""


_FLUSH: Final = _Wait.FLUSH  # looking a member up costs as much as a whole small function


class Shutdown:
    """The end of one connection."""

    __slots__ = ("_keepalive", "_notice_s", "_outbox", "_wait", "is_ending")

    is_ending: bool
    """Whether nothing more is read: the connection is over once its output is sent."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._keepalive = outbox.keepalive
        self._wait = _Wait.NOTHING
        self._notice_s: float | None = None
        self.is_ending = False

    @property
    def is_announced(self) -> bool:
        """Whether the notice was queued."""
        return self._notice_s is not None

    @property
    def waits_for_flush(self) -> bool:
        """Whether `flushed` is to be called when the socket has taken all output."""
        return self._wait is _FLUSH

    def announce(self, now_s: float) -> None:
        """Begin a graceful end with the notice."""
        self._notify(now_s)

    def announce_after_streams(self, now_s: float, live: int) -> None:
        """Begin a graceful end once the live calls of grpclib services, so many, are over."""
        if self._notice_s is not None:
            return
        if live:
            self._keepalive.draining(now_s)
            self._wait = _Wait.STREAMS
        elif self._wait is _Wait.NOTHING:
            self._notify(now_s)

    def streams_ended(self) -> None:
        """The last live call of a grpclib service is over."""
        if self._wait is _Wait.STREAMS:
            self._wait = _Wait.FLUSH

    def flushed(self) -> None:
        """The socket has taken the status of the last call: ask the client to answer behind it."""
        self._wait = _Wait.ANSWER
        with suppress(Http2Error):
            self._outbox.engine.ping(_STATUS_PING)

    def ping_acknowledged(self, payload: bytes, now_s: float) -> None:
        """The client has answered a PING, perhaps one of ours."""
        if payload == _NOTICE_PING:
            self._finish()
        elif payload == _STATUS_PING:
            self._notify(now_s)

    def tick(self, now_s: float) -> None:
        """To be called about once a second: do not wait for answers any longer."""
        if self._wait is _Wait.ANSWER:
            self._notify(now_s)
        if self._notice_s is not None and now_s >= self._notice_s + UNANSWERED_SHUTDOWN_S:
            self._finish()

    def calm_down(self, reason: str) -> None:
        """End the connection of a client that asks too much."""
        self.refuse(ErrorCode.ENHANCE_YOUR_CALM, reason)

    def refuse(self, code: ErrorCode, reason: str) -> None:
        """End the connection of a client that does what it must not."""
        if self.is_ending:
            return
        outbox = self._outbox
        log_limited(log.warning, "connection closed", reason=reason, peer=outbox.peer)
        with suppress(Http2Error):
            outbox.engine.shut_down(code, reason.encode("ascii"))
        self.is_ending = True
        outbox.wants_flush()

    def _notify(self, now_s: float) -> None:
        self._wait = _Wait.NOTHING
        if self._notice_s is not None:
            return
        self._notice_s = now_s
        self._keepalive.draining(now_s)
        outbox = self._outbox
        outbox.wants_flush()
        with suppress(Http2Error):
            outbox.engine.announce_shutdown()
            outbox.engine.ping(_NOTICE_PING)

    def _finish(self) -> None:
        self._notice_s = float("inf")
        outbox = self._outbox
        with suppress(Http2Error):
            outbox.engine.shut_down()
        outbox.wants_flush()
