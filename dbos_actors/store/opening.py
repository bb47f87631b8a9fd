"""How the store is opened and closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import trio
from trio_util import AsyncValue

from dbos_actors.clock import Clock
from dbos_actors.errors import (
    NotRedisError,
    StoreRefusesError,
    StoreTlsError,
    StoreUnreachableError,
    UnavailableError,
    UnsafeStoreError,
    raise_sole_cause,
)
from dbos_actors.store.batch import Wire
from dbos_actors.store.commit_history import CommitHistory, HistoryLimits, Phase
from dbos_actors.store.committer import Committer, backoff_s
from dbos_actors.store.connection import (
    AuthenticationError,
    Connection,
    ConnectionLostError,
    ForeignReplyError,
    TlsError,
    answered_within,
    handshake,
)
from dbos_actors.store.connector import Connector
from dbos_actors.store.event_ids import EventIds, last_event_id
from dbos_actors.store.keys import Keys
from dbos_actors.store.listeners import Listeners
from dbos_actors.store.ownership import RefusedByRedisError, take_ownership, this_process
from dbos_actors.store.reader import Reader
from dbos_actors.store.resp import pack
from dbos_actors.store.safety import Findings, Requirements, inspect
from dbos_actors.store.settings import StoreSettings, StoreState
from dbos_actors.store.store import Store
from dbos_actors.store.wait_timeouts import WaitTimeouts

CLIENT_NAME = "dbos-actors"

# Errors of a Redis that will serve soon.
NOT_YET = ("LOADING", "BUSY ", "MASTERDOWN", "TRYAGAIN")


@asynccontextmanager
async def open_store(
    connector: Connector, *, settings: StoreSettings, clock: Clock, random: Random
) -> AsyncIterator[Store]:
    """Take ownership of the store and serve it for the length of the context.

    Leaving the context commits what is queued and releases the lease, within
    `StoreSettings.close_timeout_s`; what is left then is refused, or given up if its outcome is
    unknown.

    Raises:
        StoreUnreachableError: nobody answers there.
        NotRedisError, StoreTlsError, StoreRefusesError: kinds of it, for who answers otherwise.
        OwnedElsewhereError: another live server owns the store.
        UnsafeStoreError: see `StoreSettings.durability` and `StoreSettings.require_safe`.
        UnusableStoreError: the data are of a later program, or the keys that say so are damaged.
        FencedError: from within the context, at any time: another server has taken the store.
            The body is cancelled, and nothing submitted is answered any more.
    """
    opening = _Opening(connector, settings=settings, clock=clock, random=random)
    parts = await opening.open()
    try:
        async with trio.open_nursery() as nursery:
            committing = _Committing(parts.committer)
            nursery.start_soon(committing.run)
            nursery.start_soon(parts.committer.watch)
            for wait_timeouts in parts.wait_timeouts:
                nursery.start_soon(wait_timeouts.run)
            nursery.start_soon(parts.reader.run)
            try:
                yield parts.store
            finally:
                await committing.finish(settings.close_timeout_s)
                _close(parts)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_sole_cause(group)


class _Committing:
    """The committer's task, which outlives a cancelled body by the time it takes to close."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._scope = trio.CancelScope(shield=True)
        self._finished = trio.Event()

    async def run(self) -> None:
        """Commit until finished. Raises `FencedError`."""
        try:
            with self._scope:
                await self._committer.run()
        finally:
            self._finished.set()

    async def finish(self, timeout_s: float) -> None:
        """Commit what waits and release the lease, if that can be done in time; then stop."""
        self._committer.release()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(timeout_s):
                await self._finished.wait()
            self._scope.cancel()
            await self._finished.wait()


def _close(parts: _Parts) -> None:
    """Tell whoever still waits. A fenced server says nothing more."""
    history = parts.committer.history
    in_flight, queued = history.close()
    parts.state.value = StoreState.CLOSED
    if history.phase is Phase.FENCED:
        return
    error = UnavailableError("the store is closed")
    for submission, _ in in_flight:
        parts.wait_timeouts[0].give_up(submission, error)
    for submission, _ in queued:
        submission.refused(error)
    parts.reader.close()


@dataclass(frozen=True, slots=True)
class _Parts:
    """An open store and what runs it."""

    store: Store
    committer: Committer
    reader: Reader
    # Of writes and of reads.
    wait_timeouts: tuple[WaitTimeouts, WaitTimeouts]
    state: AsyncValue


class _Opening:
    """What it takes to open a store, in order."""

    def __init__(
        self, connector: Connector, *, settings: StoreSettings, clock: Clock, random: Random
    ) -> None:
        self._connector = connector
        self._settings = settings
        self._clock = clock
        self._random = random
        self._keys = Keys(settings.partition)
        self._requirements = Requirements(
            durability=settings.durability,
            require_safe=settings.require_safe,
            argument_bytes=settings.argument_bytes,
            argument_setting=settings.argument_setting,
        )
        self._owner = this_process(address=settings.server_address, random=random)
        # Somebody listens there; before that there is nothing to wait for.
        self._answered = False

    async def open(self) -> _Parts:
        """Retries a Redis that answers but does not serve yet; see `open_store` for errors."""
        give_up_at_s = self._clock.monotonic_s() + self._settings.wait_timeout_s
        failures = 0
        while True:
            try:
                return await self._attempt()
            except AuthenticationError as error:
                raise StoreRefusesError(self._connector.address, str(error)) from error
            except RefusedByRedisError as error:
                if not str(error).startswith(NOT_YET):
                    raise StoreRefusesError(self._connector.address, str(error)) from error
                cause: Exception = error
            except TlsError as error:
                raise StoreTlsError(self._connector.address, str(error)) from error
            except ForeignReplyError as error:
                raise NotRedisError(self._connector.address, str(error)) from error
            except ConnectionLostError as error:
                cause = error
                if not self._answered:
                    break
            failures += 1
            if self._clock.monotonic_s() >= give_up_at_s:
                break
            await trio.sleep(backoff_s(failures, self._settings, self._random))
        raise StoreUnreachableError(self._connector.address, str(cause)) from cause

    async def connect(self) -> Connection:
        """A connection that is authenticated and ready; closed here if it does not get there."""
        connector = self._connector
        with answered_within(self._settings.connect_timeout_s):
            connection = Connection(await connector.connect())
            self._answered = True
            try:
                await handshake(
                    connection,
                    username=connector.username,
                    password=connector.password,
                    database=connector.database,
                    client_name=CLIENT_NAME,
                )
            except BaseException:
                with trio.CancelScope(shield=True):
                    await connection.aclose()
                raise
        return connection

    async def _attempt(self) -> _Parts:
        connection = await self.connect()
        try:
            with answered_within(self._settings.connect_timeout_s):
                return await self._set_up(connection)
        except BaseException:
            with trio.CancelScope(shield=True):
                await connection.aclose()
            raise

    async def _set_up(self, connection: Connection) -> _Parts:
        settings = self._settings
        keys = self._keys
        lease_ms = round(settings.lease_s * 1000)
        findings = await inspect(connection, self._requirements)
        if findings.violation is not None:
            raise UnsafeStoreError(findings.violation)
        accepted, _ = await connection.call(pack("MULTI") + pack("EXEC"), 2)
        if accepted != b"OK":
            raise RefusedByRedisError(f"it does not run transactions: {accepted}")
        now_s = self._clock.monotonic_s()
        base, epoch = await take_ownership(
            connection,
            keys=keys,
            owner=self._owner,
            lease_ms=lease_ms,
            take_over=settings.take_over,
            random=self._random,
        )
        last_id = await last_event_id(connection, keys.events)
        wire = Wire(
            commit_key=keys.commit,
            owner_key=keys.owner,
            owner=self._owner.to_json(),
            lease_ms=lease_ms,
        )
        history = CommitHistory(
            base=base, epoch=epoch, limits=self._limits(), now_s=now_s, commit_key=keys.commit
        )
        if await wire.arm(connection) != history.key_value:
            # The next attempt finds out who was faster.
            raise ConnectionLostError("another server starts at the same time")
        return self._assemble(connection, history, wire, EventIds(self._clock, last_id), findings)

    def _tell_address(self, wire: Wire, addresses: Sequence[str]) -> None:
        wire.owner = replace(self._owner, address=",".join(addresses)).to_json()

    def _limits(self) -> HistoryLimits:
        settings = self._settings
        return HistoryLimits(
            batch_submissions=settings.batch_submissions,
            batch_bytes=settings.batch_bytes,
            queue_bytes=settings.queue_bytes,
            replay_s=settings.replay_s,
            replay_bytes=settings.replay_bytes,
            lease_s=settings.lease_s,
            renewal_s=settings.renewal_s,
            refuse_loss=settings.refuse_loss,
        )

    def _wait_timeouts(self) -> WaitTimeouts:
        return WaitTimeouts(
            wait_timeout_s=self._settings.wait_timeout_s,
            clock=self._clock,
            address=self._connector.address,
        )

    def _assemble(
        self,
        connection: Connection,
        history: CommitHistory,
        wire: Wire,
        event_ids: EventIds,
        findings: Findings,
    ) -> _Parts:
        state = AsyncValue(StoreState.CONNECTED)
        listeners = Listeners()
        to_write = self._wait_timeouts()
        to_read = self._wait_timeouts()
        committer = Committer(
            history=history,
            wire=wire,
            connection=connection,
            connect=self.connect,
            settings=self._settings,
            clock=self._clock,
            random=self._random,
            requirements=self._requirements,
            findings=findings,
            state=state,
            wait_timeouts=to_write,
            marks_key=self._keys.to_check,
            listeners=listeners,
        )
        reader = Reader(
            committer=committer,
            wire=wire,
            connect=self.connect,
            settings=self._settings,
            clock=self._clock,
            random=self._random,
            state=state,
            wait_timeouts=to_read,
            listeners=listeners,
        )
        store = Store(
            keys=self._keys,
            committer=committer,
            reader=reader,
            wait_timeouts=(to_write, to_read),
            event_ids=event_ids,
            state=state,
            clock=self._clock,
            listeners=listeners,
            serving_at=partial(self._tell_address, wire),
        )
        return _Parts(store, committer, reader, (to_write, to_read), state)
