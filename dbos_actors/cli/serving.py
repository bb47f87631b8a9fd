"""One server from its start to its end: store, supervision tree, signals, exit status.

The embedded store is opened first and closed last, so every commit of a drain is in it.
The first SIGTERM or SIGINT drains (before the server is ready it ends the attempt), a second
one stops at once. From the first signal on everything together takes `Settings.drain_grace_s`:
most of it is for running calls, the rest for the last commits and for the embedded store.
SIGHUP has tokens and certificates read again.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from enum import IntEnum
from typing import Protocol

import trio

from dbos_actors.cli.garbage import tend_memory
from dbos_actors.errors import (
    ConfigurationError,
    FencedError,
    NotRedisError,
    OwnedElsewhereError,
    StoreRefusesError,
    StoreTlsError,
    StoreUnreachableError,
    UnsafeStoreError,
    UnusableStoreError,
)
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.descriptors import raise_descriptor_limit
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.settings import Settings
from dbos_actors.store.connector import Connector, connector_for
from dbos_actors.store.embedded import EmbeddedStoreError, open_embedded

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Between two attempts to get hold of Redis with --wait-for-redis: soon enough when everything
# starts at once, seldom enough not to fill a log.
_REDIS_WAIT_MIN_S = 0.25
_REDIS_WAIT_MAX_S = 5.0

# Of the grace, for running calls. Of the rest the store takes two thirds to commit what waits
# (`dbos_actors.server`), and the embedded Valkey what is left to write its file and end.
_CALLS_SHARE = 0.7

_log = get_logger(__name__)


class Exit(IntEnum):
    """Exit statuses; part of the command's interface."""

    DRAINED = 0
    FAILED = 1
    """A bug, or a second signal that cut the drain short."""
    REFUSED = 2
    """It cannot serve so: settings, Redis, address or directory. One line says which."""
    FENCED = 3
    """Another server has taken over. To start again would be to fight over the store."""
    DAMAGED = 4
    """``check`` has found damage, or ``repair`` has left some."""


class Server(Protocol):
    """What is needed of `dbos_actors.server.RunningServer`."""

    @property
    def addresses(self) -> Sequence[str]: ...

    @property
    def metrics_address(self) -> str | None: ...

    def reload(self) -> None: ...

    async def drain(self, grace_s: float) -> None: ...


class OpenServer(Protocol):
    """What is needed of `dbos_actors.server.open_supervisor`."""

    def __call__(
        self, settings: Settings, *, connector: Connector, take_over: bool
    ) -> AbstractAsyncContextManager[Server]: ...


class StoppedAtOnceError(Exception):
    """A second signal cut the drain short."""


class _Signals:
    """What SIGTERM and SIGINT have asked for. SIGHUP is passed on to the server."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self.stop = trio.Event()
        self.stop_by_s = math.inf
        """When everything must have ended, on `trio.current_time`'s scale."""
        self.starting = trio.CancelScope()
        self.serving: Server | None = None
        """The server, once it is ready."""

    async def watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload()
                else:
                    self._stop(signal.Signals(number).name)

    def _stop(self, name: str) -> None:
        if self.stop.is_set():
            _log.warning("stopping_at_once", signal=name)
            self.stop_by_s = trio.current_time()
            raise StoppedAtOnceError
        _log.info("stopping", signal=name)
        self.stop_by_s = trio.current_time() + self._grace_s
        self.stop.set()
        if self.serving is None:
            self.starting.cancel()

    def _reload(self) -> None:
        """Nothing to do before the server is ready: its files have only just been read."""
        _log.info("reloading", signal="SIGHUP")
        if self.serving is not None:
            self.serving.reload()


async def serve(
    settings: Settings,
    *,
    open_supervisor: OpenServer,
    announce: Callable[[str], None],
    take_over: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    ``announce`` is called once, with the ``ready`` line, when the server can serve. Raises, alone
    or in an `ExceptionGroup`, what `exit_of` reads.
    """
    raise_descriptor_limit(ServerLimits().connections_max)
    signals = _Signals(settings.drain_grace_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(signals.watch)
        with signals.starting:
            async with AsyncExitStack() as stack:
                connector = await _open_store(stack, settings, signals)
                supervisor = await _open_supervisor(
                    stack, settings, open_supervisor, connector, take_over=take_over
                )
                await nursery.start(tend_memory)
                signals.serving = supervisor
                announce(_ready_line(supervisor, connector))
                await signals.stop.wait()
                await supervisor.drain(settings.drain_grace_s * _CALLS_SHARE)
        nursery.cancel_scope.cancel()
    _log.info("stopped")


def _ready_line(supervisor: Server, connector: Connector) -> str:
    line = f"ready address={','.join(supervisor.addresses)} redis={connector.address}"
    metrics = supervisor.metrics_address
    return line if metrics is None else f"{line} metrics={metrics}"


async def _open_store(stack: AsyncExitStack, settings: Settings, signals: _Signals) -> Connector:
    if not settings.embedded:
        return connector_for(settings.redis_addr)
    embedded = await stack.enter_async_context(
        open_embedded(
            settings.data_dir,
            durability=settings.durability,
            stop_by=lambda: signals.stop_by_s,
        )
    )
    return connector_for(embedded.address)


async def _open_supervisor(
    stack: AsyncExitStack,
    settings: Settings,
    open_supervisor: OpenServer,
    connector: Connector,
    *,
    take_over: bool,
) -> Server:
    delay_s = _REDIS_WAIT_MIN_S
    while True:
        try:
            return await stack.enter_async_context(
                open_supervisor(settings, connector=connector, take_over=take_over)
            )
        except Exception as error:
            causes = list(leaves(error))
            if not (settings.wait_for_redis and all(map(_may_pass, causes))):
                raise
            _log.warning("redis_not_free", cause=str(causes[0]), retry_s=delay_s)
        await trio.sleep(delay_s)
        delay_s = min(2 * delay_s, _REDIS_WAIT_MAX_S)


def _may_pass(cause: BaseException) -> bool:
    """Whether waiting can help: a Redis that starts, or a server whose lease will run out."""
    lasts = isinstance(cause, StoreRefusesError | StoreTlsError | NotRedisError)
    return isinstance(cause, StoreUnreachableError | OwnedElsewhereError) and not lasts


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in ``error``, however deep in groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def exit_of(error: BaseException, settings: Settings) -> tuple[Exit, str | None]:
    """The exit status of an error out of `serve`, and what to tell the operator.

    The text is None for an error nobody foresaw: it belongs in the log, with its traceback.
    """
    causes = list(leaves(error))
    for cause in causes:
        if isinstance(cause, FencedError):
            return Exit.FENCED, str(cause) or "another server has taken over the store"
    told = [_refusal(cause, settings) for cause in causes]
    if any(text is None for text in told):
        if all(isinstance(cause, StoppedAtOnceError) for cause in causes):
            return Exit.FAILED, "stopped at once by a second signal"
        return Exit.FAILED, None
    return Exit.REFUSED, "; ".join(text for text in told if text)


def _refusal(cause: BaseException, settings: Settings) -> str | None:
    match cause:
        case StoreUnreachableError():
            return f"{cause}. {cause.advice}"
        case OwnedElsewhereError() if not settings.embedded:
            return f"{cause}. Stop it first, use --take-over, or let --wait-for-redis wait for it"
        case (
            ConfigurationError()
            | EmbeddedStoreError()
            | OwnedElsewhereError()
            | UnsafeStoreError()
            | UnusableStoreError()
        ):
            return str(cause)
    return None
