"""The composition root: the whole supervision tree of one server.

    open_supervisor
    |-- store            connection, committer, lease, readers
    |-- tasks            the scheduler: its actor, its clock, snapshots, audits
    |-- agents           one task per resident agent
    |-- deletions        those that were interrupted, finished before the server serves
    |-- liveness         one timer over all agents, if there is a heartbeat timeout
    |-- retention        sweeps, if anything is to be deleted by age or bytes
    |-- service          listings under way
    |-- rpc server       listeners, one task per connection
    `-- pages            metrics over HTTP, if there is a port for them

Started in this order and stopped in the other. Nothing below knows what is
above; each part is handed what it needs. A part that fails takes all of it
down, since none can do without another; what may fail alone (an actor, a
connection, the link to Redis) is supervised inside its part.
"""

from __future__ import annotations

import random as random_module
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from trio_util import compose_values

from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.watching.watchers import Watchers
from dbos_actors.assembly import (
    TASKS_HEALTH,
    Front,
    Operators,
    listen,
    make_front,
    make_operators,
    start_pages,
    start_rpc,
    store_of,
)
from dbos_actors.assembly.actors import make_actors, start_actors
from dbos_actors.clock import Clock, SystemClock
from dbos_actors.errors import raise_sole_cause
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.health import OVERALL, Health
from dbos_actors.rpc.server.listeners import Listener
from dbos_actors.runtime import Supervisor
from dbos_actors.service.methods import SERVICE
from dbos_actors.settings import Settings, load_settings
from dbos_actors.store import (
    Connector,
    Store,
    StoreState,
)

logger = get_logger(__name__)

_STREAMS_SHARE = 0.8
"""Of a drain's grace, after which streams give up what they wait for."""


class RunningServer:
    """A server that serves; see `open_supervisor`."""

    def __init__(
        self,
        *,
        store: Store,
        agents: Supervisor,
        tasks: Scheduler,
        watchers: Watchers,
        front: Front,
        operators: Operators,
        addresses: Sequence[str],
        metrics_address: str | None,
    ) -> None:
        self.store = store
        self.agents = agents
        self.tasks = tasks
        self.watchers = watchers
        self.rpc = front.rpc
        self.addresses = tuple(addresses)
        """Where it listens: ``host:port`` or ``unix:path``."""
        self.metrics_address = metrics_address
        """Where the pages for operators are, ``host:port``, if anywhere."""
        self._operators = operators
        self._service = front.service
        self._health = front.health
        self._stopped = trio.Event()

    @property
    def address(self) -> str:
        """The first of `addresses`."""
        return self.addresses[0]

    @property
    def metrics_port(self) -> int | None:
        """The port of `metrics_address`."""
        if self.metrics_address is None:
            return None
        return int(self.metrics_address.rpartition(":")[2])

    def reload(self) -> None:
        """Read tokens and certificates again now, not only when their files are looked at next."""
        self._operators.reload()

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish and commit for up to ``grace_s``, then stop.

        Streams that may last for ever settle what they have taken, and end; a little before the
        grace does, so that they are told why, and that what was leased to them and not sent is
        returned. If cancelled, the server stops at once.
        """
        now_s = trio.current_time()
        deadline = now_s + grace_s
        self._health.close()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    self._end_streams, trio.current_time() + grace_s * _STREAMS_SHARE
                )
                await self.rpc.drain(grace_s)
                nursery.cancel_scope.cancel()
            with trio.move_on_at(deadline):
                await self.tasks.wait_released()
        finally:
            self._stopped.set()

    async def _end_streams(self, overdue_s: float) -> None:
        with trio.move_on_at(overdue_s):
            await self._service.drain()
            await trio.sleep_forever()
        await self._service.drain(overdue=True)

    async def wait_stopped(self) -> None:
        """Wait until the server has been drained."""
        await self._stopped.wait()


@asynccontextmanager
async def open_supervisor(
    settings: Settings | None = None,
    *,
    connector: Connector | None = None,
    clock: Clock | None = None,
    random: random_module.Random | None = None,
    listeners: Sequence[Listener] | None = None,
    take_over: bool = False,
) -> AsyncIterator[RunningServer]:
    """Start the whole supervision tree; it serves inside the ``async with`` block.

    ``settings`` default to the environment's. ``connector`` (to Redis), ``clock``, ``random``
    and ``listeners`` replace what the settings say or the system provides; listeners are closed
    at the end. Several servers can run in one program, each with a Redis of its own. Leaving the
    block stops it at once; call `RunningServer.drain` before for a graceful end.

    Raises `ConfigurationError` (of which `CannotListenError` is one), `StoreUnreachableError`,
    `OwnedElsewhereError`, `UnsafeStoreError` or `UnusableStoreError` at start, and
    `FencedError` out of the block when another server has taken the store over. Tasks
    that cannot be read back are refused, and all else is served.
    """
    settings = settings or load_settings()
    clock = clock or SystemClock()
    random = random or random_module.Random()  # noqa: S311 - jitter
    operators = make_operators(settings, clock)
    try:
        async with (
            store_of(settings, connector, clock, random, take_over=take_over) as store,
            trio.open_nursery() as nursery,
        ):
            actors = make_actors(settings, store, clock, random)
            front = make_front(
                settings, store, actors, operators=operators, clock=clock, random=random
            )
            await start_actors(actors, nursery)
            await nursery.start(front.service.run)
            if listeners is None:
                listeners = await listen(settings, operators.tls)
            addresses = await start_rpc(front.rpc, listeners, operators, store, nursery)
            nursery.start_soon(_tell_health, store, actors.tasks, front.health)
            metrics_address = await start_pages(
                settings, nursery, operators=operators, store=store, actors=actors, front=front
            )
            try:
                yield RunningServer(
                    store=store,
                    agents=actors.agents,
                    tasks=actors.tasks,
                    watchers=actors.watchers,
                    front=front,
                    operators=operators,
                    addresses=addresses,
                    metrics_address=metrics_address,
                )
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_sole_cause(group)


async def _tell_health(store: Store, tasks: Scheduler, health: Health) -> None:
    """The service serves while its store does, writes included; its tasks if they are readable."""
    with compose_values(
        state=store.state, forbidden=store.forbidden, readable=tasks.readable
    ) as values:
        async for now in values.eventual_values():
            serving = now.state is StoreState.CONNECTED and now.forbidden is None
            health.set(serving, OVERALL, SERVICE.full_name)
            health.set(serving and now.readable, TASKS_HEALTH)
