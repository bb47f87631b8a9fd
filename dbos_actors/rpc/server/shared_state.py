"""What the connections of one server share: its routes, limits, deadlines and counters.

`SharedState` is made once for each server. Connections count their calls in it, take from its
memory what exceeds their own allowances, and add themselves to its list when they have to be
flushed. It reads no clock and no socket: times are arguments, and connections are flushed through
the `Driver` of each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.authentication import Authenticator
from dbos_actors.rpc.server.connect_methods import connect_methods
from dbos_actors.rpc.server.excess import ExcessLines
from dbos_actors.rpc.server.interceptors import Interceptor
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.routes import Servable, make_routes
from dbos_actors.rpc.server.strangers import OpenCalls, Strangers
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import UnaryMethod
from dbos_actors.rpc.server.web_options import WebOptions
from dbos_actors.rpc.wire.deadlines import Deadlines
from dbos_actors.rpc.wire.status import INTERNAL_ERROR, Fields, StatusOf, details_fields

log = get_logger(__name__)


class Driver(Protocol):
    """Who moves a connection's bytes and runs its handlers."""

    def flush(self) -> None:
        """Send what can be sent now, without waiting."""
        ...

    def start(self, call: StreamCall) -> None:
        """Start the call's handler, in a task; `StreamCall.finished` when it has returned."""
        ...

    def tell_over(self, call: StreamCall) -> None:
        """Have the call's handler know by `StreamCall.tell_over` that the call is over."""
        ...

    def dismiss(self) -> None:
        """Close the connection at once: others need its place."""
        ...


class Flushable(Protocol):
    """What may have output: a connection, as its server sees it."""

    driver: Driver
    is_dirty: bool
    """Whether it is among those to be flushed."""


class AnswerRound:
    """A context manager for who answers many calls one after another, without a wait in between.

    At its end every connection on which calls were answered is flushed, once. One round at a time.
    """

    __slots__ = ("_shared",)

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared

    def __enter__(self) -> None:
        self._shared.in_round = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shared = self._shared
        shared.in_round = False
        if shared.dirty:
            shared.flush()


class SharedState:
    """What the connections of one server share."""

    __slots__ = (
        "authenticator",
        "calls_connect",
        "calls_denied",
        "calls_live",
        "calls_live_max",
        "calls_total",
        "calls_unauthenticated",
        "connect_methods",
        "deadlines",
        "dirty",
        "excess",
        "excess_total",
        "held_free",
        "in_round",
        "inflated_free",
        "limits",
        "open_calls_of_clients",
        "open_calls_of_strangers",
        "refused",
        "routes",
        "shed_total",
        "shedding",
        "status_of",
        "strangers",
        "streams_live",
        "unsent_free",
        "wake",
        "web",
        "web_refused",
    )

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryMethod],
        services: Collection[Servable] = (),
        open_services: Collection[Servable] = (),
        status_of: StatusOf,
        limits: ServerLimits,
        interceptors: Sequence[Interceptor] = (),
        authenticator: Authenticator | None = None,
        web: WebOptions | None = None,
    ) -> None:
        self.routes = make_routes(unary, services, open_services, interceptors)
        self.connect_methods = connect_methods(self.routes)
        self.web = web or WebOptions()
        self.refused = [interceptor.refused for interceptor in interceptors]
        self.authenticator = authenticator
        self.status_of = status_of
        self.limits = limits
        self.deadlines = Deadlines()
        self.calls_live = 0
        self.calls_live_max = limits.calls_live_max
        """The limit of `calls_live`, raised by those calls that have bounds of their own."""
        self.calls_total = 0
        self.calls_connect = 0
        self.web_refused = 0
        self.calls_unauthenticated = 0
        self.calls_denied = 0
        self.excess = ExcessLines()
        self.excess_total = 0
        """Calls that were refused because their client was beyond its quota."""
        self.open_calls_of_strangers = OpenCalls(limits.open_calls_strangers_max)
        self.open_calls_of_clients = OpenCalls(limits.open_calls_clients_max)
        self.strangers = Strangers()
        self.streams_live = 0
        """Those of the live calls that are not unary: they may be idle for days."""
        self.shedding = False
        """Whether unary calls are refused as they arrive: those before them wait too long."""
        self.shed_total = 0
        self.unsent_free = limits.unsent_bytes_shared
        self.held_free = limits.held_bytes_shared
        self.inflated_free = limits.inflated_bytes_shared
        self.dirty: list[Flushable] = []
        self.in_round = False
        """Whether an `AnswerRound` is under way, at whose end `flush` is called."""
        self.wake: Callable[[], None] = _nobody
        """Called when the first connection becomes dirty outside a round: whoever it wakes is to
        call `flush` soon."""

    def flush(self) -> None:
        """Flush every connection that was answered outside its own read."""
        dirty, self.dirty = self.dirty, []
        for connection in dirty:
            connection.is_dirty = False
            connection.driver.flush()

    def status(self, error: BaseException, path: str) -> tuple[Status, str | None, Fields]:
        """Status, message and details of an error that a call failed with.

        INTERNAL, and a line in the log, for one that has no valid status.
        """
        status: Any
        message: Any
        try:
            if isinstance(error, GRPCError):
                status, message = error.status, error.message
            elif isinstance(error, Exception):
                status, message = self.status_of(error)
            else:
                return Status.INTERNAL, INTERNAL_ERROR, []
            text = message if message is None else str(message)
            return Status(status), text, details_fields(error, status, text)
        except Exception:  # noqa: BLE001 - logged, and the failure of its call alone
            log_limited(
                log.exception, "no status for an error", path=path, error=type(error).__name__
            )
            return Status.INTERNAL, INTERNAL_ERROR, []


def _nobody() -> None:
    pass
