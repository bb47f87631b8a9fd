"""What the calls of a connection have in common in how they are answered, whatever their protocol.

`Responder` tells a call who its client is. `UnaryAnswers` also turns what went wrong in a unary
call into its end; each protocol has a way of its own to write that.
"""

from __future__ import annotations

from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.flow_accounts import RequestAccount
from dbos_actors.rpc.server.outbox import Outbox
from dbos_actors.rpc.wire.status import INTERNAL_ERROR, Fields

log = get_logger(__name__)


class Responder:
    """Answers calls of one connection."""

    __slots__ = ("_outbox", "_requests", "_shared")

    def __init__(self, outbox: Outbox, requests: RequestAccount) -> None:
        self._outbox = outbox
        self._requests = requests
        self._shared = outbox.shared

    @property
    def peer(self) -> str:
        """The client, such as ``ipv4:127.0.0.1:50312``."""
        return self._outbox.peer

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The certificate by which the client has authenticated itself, with mutual TLS."""
        return self._outbox.peer_certificate


class UnaryAnswers(Responder):
    """Answers unary calls."""

    __slots__ = ()

    def end(
        self,
        call: Any,
        status: Status,
        message: str | None = None,
        fields: Fields | None = None,
    ) -> None:
        """Answer with a status alone."""
        raise NotImplementedError

    def fail(self, call: Any, error: Exception) -> None:
        """Queue the status of an error for an unanswered call."""
        self.end(call, *self._shared.status(error, call.path))

    def expire(self, call: Any) -> None:
        """Queue DEADLINE_EXCEEDED for an unanswered call."""
        self.end(call, Status.DEADLINE_EXCEEDED, "deadline exceeded")

    def raised(self, call: Any, error: BaseException) -> None:
        """What served a call has raised an error: it is the failure of its call alone.

        To be called where the error is handled, since it is logged unless it has a status.
        """
        if isinstance(error, GRPCError):
            if not call.answered:
                self.fail(call, error)
            return
        log_limited(log.exception, "handler failed", path=call.path, peer=self.peer)
        if not call.answered:
            self.end(call, Status.INTERNAL, INTERNAL_ERROR)

    def _release(self, call: Any) -> None:
        """What came of a request and was not used is given back."""
        buffer, call.buffer = call.buffer, None
        self._requests.release(call, 0 if buffer is None else len(buffer))
