"""The store as its users see it, and how it is opened and closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import structlog
import trio
from trio_util import AsyncValue

from dbos_actors.clock import Clock
from dbos_actors.errors import (
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
    answered_within,
    handshake,
)
from dbos_actors.store.connector import Connector
from dbos_actors.store.event_ids import EventIds, last_event_id
from dbos_actors.store.keys import Keys
from dbos_actors.store.ownership import RefusedByRedisError, take_ownership, this_process
from dbos_actors.store.reader import OnReplies, Reader
from dbos_actors.store.resp import pack
from dbos_actors.store.safety import Findings, Requirements, inspect
from dbos_actors.store.settings import StoreSettings, StoreState, StoreStatistics, StoreWarning
from dbos_actors.store.submission import Submission
from dbos_actors.store.wait_timeouts import WaitTimeouts

logger = structlog.get_logger(__name__)

CLIENT_NAME = "dbos-actors"

# Errors of a Redis that will serve soon.
NOT_YET = ("LOADING", "BUSY ", "MASTERDOWN", "TRYAGAIN")


class Store:
    """One partition of Redis, owned by this server. Made by `open_store`."""

    def __init__(
        self,
        *,
        keys: Keys,
        committer: Committer,
        reader: Reader,
        wait_timeouts: tuple[WaitTimeouts, WaitTimeouts],
        event_ids: EventIds,
        state: AsyncValue,
        clock: Clock,
        on_batch: list[Callable[[], None]],
        on_reload: list[Callable[[], None]],
    ) -> None:
        self.keys = keys
        self.submit: Callable[[Submission], None] = committer.submit
        """Queue a submission. Raises `OverloadedError`, `UnavailableError` once the store is
        closed or taken over and while writes are `forbidden`, and `ValueError` for a deletion of
        more than 4,000 arguments in one command; nothing is queued then."""
        self.next_event_id: Callable[[], bytes] = event_ids.next_id
        """A stream id above all earlier ones, for an ``XADD`` in the very next submission."""
        self._committer = committer
        self._reader = reader
        self._wait_timeouts = wait_timeouts
        self._state = state
        self._clock = clock
        self._on_batch = on_batch
        self._on_reload = on_reload

    @property
    def is_current(self) -> bool:
        """Whether what memory says is committed may be shown without asking Redis.

        Connected, nothing in doubt, and the lease is valid. If not, submit a barrier: it is
        committed when the store is known to be ours.
        """
        return self._committer.is_current

    @property
    def delay_s(self) -> float:
        """How long the oldest of what waits to be sent to Redis has waited; zero while Redis is
        away: that wait says nothing about how much there is to do.
        """
        if self._state.value is not StoreState.CONNECTED:
            return 0.0
        oldest_s = min(self._committer.history.oldest_queued_s, self._reader.oldest_queued_s)
        return max(0.0, self._clock.monotonic_s() - oldest_s)

    @property
    def warnings(self) -> tuple[StoreWarning, ...]:
        """What makes acknowledged writes unsafe in this Redis, as last seen."""
        return self._committer.findings.warnings

    @property
    def forbidden(self) -> AsyncValue:
        """Why writes are refused, or None: to read or to wait on. Names the setting."""
        return self._committer.forbidden

    @property
    def state(self) -> AsyncValue:
        """The `StoreState`, to read or to wait on (`trio_util.AsyncValue`)."""
        return self._state

    def submit_read(
        self,
        commands: Sequence[bytes],
        on_replies: OnReplies,
        *,
        deadline_s: float | None = None,
    ) -> None:
        """Queue a read; ``on_replies`` is called once, later, with its replies or an error.

        ``deadline_s`` is on the monotonic clock. Raises `OverloadedError`, and
        `UnavailableError` once the store is closed; ``on_replies`` is not called then.
        """
        self._reader.submit(commands, on_replies, deadline_s=deadline_s)

    async def read(self, *commands: bytes) -> list[Any]:
        """The replies to ``commands``, which join the next batched round trip.

        Raises:
            UnavailableError: Redis is away for longer than callers wait, or refuses a command.
            OverloadedError: too many reads wait.
        """
        return await self._reader.read(*commands)

    def on_batch(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called after each round of outcomes: the time to flush answers."""
        self._on_batch.append(callback)

    def on_reload(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when Redis came back older than what can be sent again.

        Everything that waited has been refused; everyone has to start again from the store.
        """
        self._on_reload.append(callback)

    def statistics(self) -> StoreStatistics:
        """Figures since the start, and what is held now."""
        committer, reader = self._committer, self._reader
        history = committer.history
        counts = history.counts
        return StoreStatistics(
            state=self._state.value,
            epoch=history.epoch,
            sequence=history.sequence,
            commits=counts.commits,
            commit_seconds=committer.commit_seconds,
            commits_repeated=counts.repeated,
            commits_refused=counts.refused,
            submissions_committed=counts.submissions_committed,
            submissions_refused=counts.submissions_refused,
            waits_given_up=sum(
                wait_timeouts.given_up_count for wait_timeouts in self._wait_timeouts
            ),
            command_errors=counts.commands_failed,
            batches_lost=counts.batches_lost,
            losses_refused=counts.losses_refused,
            reloads=counts.reloads,
            reconnects=committer.reconnects,
            lease_renewals_failed=counts.renewals_failed,
            warnings=len(committer.findings.warnings),
            writes_forbidden=history.forbidden is not None,
            queued_submissions=history.queued_submissions,
            queued_bytes=history.queued_bytes,
            kept_batches=history.kept_batches,
            kept_bytes=history.kept_bytes,
            in_flight_submissions=history.in_flight_submissions,
            reads=reader.reads,
            read_round_trips=reader.round_trips,
            queued_reads=reader.queued,
        )


@asynccontextmanager
async def open_store(
    connector: Connector, *, settings: StoreSettings, clock: Clock, random: Random
) -> AsyncIterator[Store]:
    """Take ownership of the store and serve it for the length of the context.

    Leaving the context commits what is queued and releases the lease, within
    `StoreSettings.close_timeout_s`; what is left then is refused, or given up if its outcome is
    unknown.

    Raises:
        StoreUnreachableError: nobody answers, or Redis refuses the user or the write.
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
        give_up_at_s = self._clock.monotonic_s() + self._settings.patience_s
        failures = 0
        while True:
            try:
                return await self._attempt()
            except AuthenticationError as error:
                cause: Exception = error
                break
            except RefusedByRedisError as error:
                cause = error
                if not str(error).startswith(NOT_YET):
                    break
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

    def _limits(self) -> HistoryLimits:
        settings = self._settings
        return HistoryLimits(
            batch_submissions=settings.batch_submissions,
            batch_bytes=settings.batch_bytes,
            queue_bytes=settings.queue_bytes,
            kept_s=settings.kept_s,
            kept_bytes=settings.kept_bytes,
            lease_s=settings.lease_s,
            renewal_s=settings.renewal_s,
            refuse_loss=settings.refuse_loss,
        )

    def _wait_timeouts(self, told: Callable[[], None]) -> WaitTimeouts:
        return WaitTimeouts(
            patience_s=self._settings.patience_s,
            clock=self._clock,
            told=told,
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
        on_batch: list[Callable[[], None]] = []
        on_reload: list[Callable[[], None]] = []

        def told() -> None:
            for callback in on_batch:
                callback()

        def reload() -> None:
            for callback in on_reload:
                callback()

        def away(reason: str) -> None:
            reader.away(reason)

        patience_to_write, patience_to_read = wait_timeouts = (
            self._wait_timeouts(told),
            self._wait_timeouts(told),
        )
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
            wait_timeouts=patience_to_write,
            marks_key=self._keys.to_check,
            told=told,
            on_away=away,
            on_reload=reload,
        )
        reader = Reader(
            committer=committer,
            wire=wire,
            connect=self.connect,
            settings=self._settings,
            clock=self._clock,
            random=self._random,
            state=state,
            wait_timeouts=patience_to_read,
            told=told,
        )
        store = Store(
            keys=self._keys,
            committer=committer,
            reader=reader,
            wait_timeouts=wait_timeouts,
            event_ids=event_ids,
            state=state,
            clock=self._clock,
            on_batch=on_batch,
            on_reload=on_reload,
        )
        return _Parts(store, committer, reader, wait_timeouts, state)
