"""The connections of a channel: who makes them, when, and which call starts on which.

Rules:
- A call is started on the current connection if that has room. Otherwise it waits; calls that wait
  are started in the order in which they came. At most one call waits per task that makes calls.
- A connection that is going away takes no further calls. The next call has a new connection made,
  while the calls of the old one finish there.
- After a failed attempt to connect there is a pause (`BackoffPolicy`). Calls that do not wait for
  a server fail at once meanwhile.
- What the callers of one moment have to send goes to the socket together. A call that is alone is
  sent at once.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from random import Random

import trio
from grpclib.const import Status

from dbos_actors.backoff import Backoff
from dbos_actors.clock import Clock
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.client.connection import ClientConnection
from dbos_actors.rpc.client.link import ClientDriver, Connector
from dbos_actors.rpc.client.options import ChannelOptions
from dbos_actors.rpc.wire.peers import peer_name
from dbos_actors.rpc.wire.tls import AlpnError
from dbos_actors.sleeper import Sleeper

log = get_logger(__name__)


class ChannelState(Enum):
    """gRPC's connectivity states."""

    IDLE = auto()
    """No connection, and no call that needs one."""
    CONNECTING = auto()
    READY = auto()
    TRANSIENT_FAILURE = auto()
    """The last attempt has failed, and the next one is not due yet."""
    SHUTDOWN = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server that a channel connects to."""

    name: str
    """Its address, for errors and logs."""
    connector: Connector
    authority: bytes
    """What ``:authority`` says."""
    tls: ssl.SSLContext | None
    hostname: str
    """The name that its certificate must have."""


class Connections:
    """A channel's connections, and the calls that wait for one. Its tasks run in ``nursery``."""

    def __init__(
        self, target: Target, options: ChannelOptions, clock: Clock, random: Random
    ) -> None:
        self.nursery: trio.Nursery | None = None
        self.made_total = 0
        """Connections whose server has greeted."""
        self._target = target
        self._options = options
        self._clock = clock
        self._backoff = Backoff(options.backoff, random)
        self._keepalive_s = options.keepalive_s
        self._closed = False
        self._waiting: dict[ClientCall, None] = {}
        self._current: _Connection | None = None
        self._all: dict[_Connection, None] = {}
        self._connecting = False
        self._retry_s = -inf
        self._failure = ""
        self._dirty: list[_Connection] = []
        self._flusher = Sleeper()

    # ----------------------------------------------------------------- state

    @property
    def state(self) -> ChannelState:
        """What a call made now would meet."""
        if self._closed:
            return ChannelState.SHUTDOWN
        if self._current is not None and not self._current.protocol.draining:
            return ChannelState.READY
        if self._clock.monotonic_s() < self._retry_s:
            return ChannelState.TRANSIENT_FAILURE
        return ChannelState.CONNECTING if self._connecting else ChannelState.IDLE

    @property
    def calls_waiting(self) -> int:
        """Calls that wait for a connection, or for room on it."""
        return len(self._waiting)

    @property
    def calls_live(self) -> int:
        """Streams open on the connections."""
        return sum(connection.protocol.live for connection in self._all)

    @property
    def open(self) -> int:
        """Connections that exist: the current one, and those that are going away."""
        return len(self._all)

    def close(self) -> None:
        """End every call, CANCELLED, and say goodbye on every connection."""
        self._closed = True
        for call in list(self._waiting):
            call.finish(Status.CANCELLED, "the channel is closed")
        for connection in list(self._all):
            connection.protocol.shut_down()
            connection.protocol.lost("the channel is closed", Status.CANCELLED)

    def give_up(self, reason: str) -> None:
        """End the calls that have a connection, UNAVAILABLE, and say goodbye on every one."""
        for connection in list(self._all):
            connection.protocol.shut_down()
            connection.protocol.lost(reason, Status.UNAVAILABLE)

    # ----------------------------------------------------------------- calls

    def start(self, call: ClientCall) -> None:
        """Start a call, or let it wait, or end it if there is no server for it now."""
        connection = self._usable()
        if self._closed:
            call.finish(Status.CANCELLED, "the channel is closed")
        elif connection is not None:
            if not self._waiting and connection.protocol.can_start:
                connection.protocol.start(call, self._clock.monotonic_s())
            else:
                self._waiting[call] = None
        elif not call.wait_for_ready and self._clock.monotonic_s() < self._retry_s:
            call.finish(Status.UNAVAILABLE, self._failure)
        else:
            self._waiting[call] = None
            self._require_connection()

    def forget(self, call: ClientCall) -> None:
        """The call is over: if it waits, it waits no more."""
        self._waiting.pop(call, None)

    def _usable(self) -> _Connection | None:
        """The current connection, unless it is going away."""
        connection = self._current
        if connection is not None and connection.protocol.draining:
            connection = self._current = None
        return connection

    def _start_waiting(self) -> None:
        """Start the calls that wait, as far as there is room."""
        connection = self._usable()
        if connection is None:
            if self._waiting and not self._closed:
                self._require_connection()
            return
        protocol, now_s = connection.protocol, self._clock.monotonic_s()
        while self._waiting and protocol.can_start:
            call = next(iter(self._waiting))
            del self._waiting[call]
            protocol.start(call, now_s)

    # ------------------------------------------------------------ connecting

    def _require_connection(self) -> None:
        if not self._connecting:
            assert self.nursery is not None
            self._connecting = True
            self.nursery.start_soon(self._connect)

    async def _connect(self) -> None:
        """Try until there is a connection, or nobody wants one any more."""
        clock = self._clock
        try:
            while self._waiting:
                pause_s = self._retry_s - clock.monotonic_s()
                if pause_s > 0:
                    await trio.sleep(pause_s)
                    continue
                began_s = clock.monotonic_s()
                failure = await self._try_to_connect()
                if failure is None:
                    break
                self._attempt_failed(began_s, failure)
        finally:
            self._connecting = False
        self._start_waiting()

    def _attempt_failed(self, began_s: float, failure: str) -> None:
        """Pause before the next attempt; calls that do not wait for a server fail."""
        name = self._target.name
        self._retry_s = began_s + self._backoff.next_s()
        self._failure = f"cannot connect to {name}: {failure}"
        log_limited(log.info, "cannot connect", server=name, error=failure)
        for call in list(self._waiting):
            if not call.wait_for_ready:
                call.finish(Status.UNAVAILABLE, self._failure)

    async def _try_to_connect(self) -> str | None:
        """Why there is no connection now; None if there is one."""
        assert self.nursery is not None
        if len(self._all) >= self._options.connections_max:
            return f"{len(self._all)} connections wait for their last calls"
        try:
            with trio.fail_after(self._options.connect_s_max):
                await self.nursery.start(self._run_connection)
        except trio.TooSlowError:
            return f"no answer for {self._options.connect_s_max:g} s"
        except AlpnError:
            return "the server does not speak HTTP/2 over TLS"
        except (OSError, _ConnectionFailedError) as error:
            cause = error.__cause__
            if isinstance(cause, BaseExceptionGroup):  # of every address that a name has
                return f"{error} ({cause.exceptions[0]})"
            return str(error)
        except Exception as error:
            log.exception("connecting has failed", server=self._target.name)
            return repr(error)
        return None

    async def _run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """A connection's whole life. Raises only before it is ready.

        A connection that ends before it has carried a call counts as a failed attempt, although
        its server has greeted. Without the pause that follows, a server that greets and hangs up
        would be connected to again and again.
        """
        began_s = self._clock.monotonic_s()
        target = self._target
        sock = await target.connector()
        driver = ClientDriver(sock, self._clock)
        try:
            if target.tls is not None:
                await driver.shake_hands(target.tls, target.hostname)
            connection = _Connection(self, driver, task_status)
            connection.protocol = ClientConnection(
                connection,
                self._options,
                now_s=self._clock.monotonic_s(),
                scheme=b"http" if target.tls is None else b"https",
                authority=target.authority,
                peer=peer_name(sock),
                keepalive_s=self._keepalive_s,
            )
            self._all[connection] = None
            try:
                await driver.run(connection.protocol, keepalive_s=self._keepalive_s)
            finally:
                del self._all[connection]
                if self._current is connection:
                    self._current = None
            if not connection.was_ready:
                raise _ConnectionFailedError(connection.protocol.reason)
        finally:
            driver.close()
        if connection.protocol.used:
            self._backoff.reset()
        elif not self._closed and self._current is None:
            self._attempt_failed(began_s, connection.protocol.reason)
        self._start_waiting()

    # --------------------------------------------- what the connections tell

    def ready(self, connection: _Connection) -> None:
        """The server has greeted."""
        self.made_total += 1
        self._current = connection
        self._retry_s = -inf

    def changed(self, connection: _Connection) -> None:
        """A connection has room again, or takes no more calls."""
        if connection.protocol.too_many_pings and self._keepalive_s < inf:
            connection.protocol.too_many_pings = False
            self._keepalive_s *= 2
            log_limited(
                log.warning, "the server complains about pings", keepalive_s=self._keepalive_s
            )
        if connection is self._current:
            self._start_waiting()

    def has_output(self, connection: _Connection, *, at_once: bool) -> None:
        """Flush it: at once if its call is alone, else together with the others."""
        if connection.dirty:
            return
        if at_once and connection.protocol.live <= 1 and not self._waiting:
            connection.flush()
            return
        connection.dirty = True
        self._dirty.append(connection)
        self._flusher.wake()

    async def flush_dirty(self) -> None:
        """Flush connections, until cancelled.

        This task runs after every task that is runnable now, so that all they send is sent by one
        flush of each connection.
        """
        while True:
            if self._dirty:
                dirty, self._dirty = self._dirty, []
                for connection in dirty:
                    connection.dirty = False
                    connection.flush()
                await trio.lowlevel.checkpoint()
            else:
                await self._flusher.sleep()


class _Connection:
    """One connection: its protocol, its driver, and what the protocol tells its owner."""

    __slots__ = ("_driver", "_flushing", "_owner", "_task_status", "dirty", "protocol", "was_ready")

    def __init__(
        self, owner: Connections, driver: ClientDriver, task_status: trio.TaskStatus[None]
    ) -> None:
        self._owner = owner
        self._driver = driver
        self._task_status = task_status
        self._flushing = False
        self.was_ready = False
        self.dirty = False
        self.protocol: ClientConnection

    def flush(self) -> None:
        """Send what is to be sent."""
        self._flushing = True
        self._driver.flush()
        self._flushing = False

    def has_output(self) -> None:
        """As `ConnectionOwner`."""
        self._owner.has_output(self, at_once=not self._flushing)

    def may_start(self) -> None:
        """As `ConnectionOwner`."""
        if self.protocol.ready and not self.protocol.draining and not self.was_ready:
            self.was_ready = True
            self._owner.ready(self)
            self._task_status.started()
        self._owner.changed(self)


class _ConnectionFailedError(Exception):
    """A connection has ended before the server has greeted."""
