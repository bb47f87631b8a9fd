"""What a client raises: one family, whichever library carries its calls.

Every error is a `ClientError`. Those of a call that failed on its way are also what grpclib raises
for the same reason (`GRPCError`, `StreamTerminatedError`, `OSError`, `TimeoutError`), so programs
that catch these go on working.
"""

from __future__ import annotations

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError


class ClientError(Exception):
    """Root of everything that a client raises."""


class RefusedError(ClientError):
    """The service refuses what was asked for, or does not find it; the text says why."""


class FieldError(ClientError, TypeError):
    """A field of a request has a value of the wrong type; the text names both."""


class CallError(ClientError, GRPCError):
    """A call ended with an error status. Raised for what has no class of its own below."""

    def __str__(self) -> str:
        return f"{self.status.name}: {self.message or 'no reason was given'}"


class UnavailableError(CallError):
    """The service cannot be reached, or cannot serve now. The outcome is unknown.

    The same call may be made again. The helpers of this package do so by themselves.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Status.UNAVAILABLE, message)


class NoServerError(UnavailableError, OSError):
    """Nobody answers at the address."""


class ConnectionLostError(UnavailableError, StreamTerminatedError):
    """The connection broke during the call."""


class DeadlineError(CallError, TimeoutError):
    """The call took longer than it may. The outcome is unknown."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.DEADLINE_EXCEEDED, message)


def call_error(error: BaseException) -> CallError | None:
    """The error of this family for one that a channel raised; None for any other."""
    match error:
        case CallError():
            return error
        case GRPCError(status=Status.UNAVAILABLE):
            return UnavailableError(error.message or "")
        case GRPCError(status=Status.DEADLINE_EXCEEDED):
            return DeadlineError(error.message or "")
        case GRPCError():
            return CallError(error.status, error.message, error.details)
        case StreamTerminatedError():
            return ConnectionLostError(str(error))
        case TimeoutError():
            return DeadlineError("no answer in time")
        case OSError():
            return NoServerError(str(error))
    return None
