"""Batched reads, on a connection of their own.

All reads that wait go out as one pipeline; while it is in flight others gather.
What they see is never older than what has been acknowledged:
- nothing is read while the commit connection is lost or in doubt;
- each batch begins with the commit key, which shows that it was answered by a
  store with everything that was acknowledged when the batch was sent. If not (a
  replica behind the same address, which lags), the committer is told to look;
- when the commit connection is replaced, so is this one, and what was in flight
  on it is read again.

A batch is bounded in commands and in the bytes of its replies. Who reads one record does not know
its size. Such a read counts as large as a record may be. When more of them wait than a batch has
room for, the batch asks for their sizes, and the next batches read them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

import trio
from trio_util import AsyncValue

from dbos_actors.clock import Clock
from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.loggers import get_logger
from dbos_actors.store.batch import Wire
from dbos_actors.store.committer import Committer, backoff_s
from dbos_actors.store.connection import (
    AuthenticationError,
    Connection,
    ConnectionLostError,
    answered_within,
)
from dbos_actors.store.listeners import Listeners
from dbos_actors.store.resp import ReplyError, first_error
from dbos_actors.store.settings import StoreSettings, StoreState
from dbos_actors.store.wait_timeouts import WaitTimeouts

logger = get_logger(__name__)

_CLOSED: Final = StoreState.CLOSED  # not to be looked up for every read

OnReplies = Callable[[Sequence[object] | UnavailableError], None]

_HGET_HEAD: Final = b"*3\r\n$4\r\nHGET\r\n"
_HSTRLEN_HEAD: Final = b"*3\r\n$7\r\nHSTRLEN\r\n"

RECORD_BYTES_MAX: Final = 4 << 20
"""As large as a record counts if the settings do not say: the largest message by default."""

# Error replies of a server that cannot show its data yet: the read is repeated.
NOT_READY = ("LOADING", "MASTERDOWN", "BUSY ")


class Read:
    """Some commands that wait for their replies."""

    __slots__ = (
        "count",
        "deadline_s",
        "done",
        "is_sized",
        "on_replies",
        "payload",
        "reply_bytes",
        "since_s",
    )

    def __init__(
        self,
        payload: bytes,
        count: int,
        on_replies: OnReplies,
        *,
        reply_bytes: int,
        is_sized: bool,
        deadline_s: float | None,
        since_s: float,
    ) -> None:
        self.payload = payload
        self.count = count
        # Of all replies together, at most.
        self.reply_bytes = reply_bytes
        # If not, it is one HGET, and Redis can tell how many bytes it will bring.
        self.is_sized = is_sized
        self.on_replies = on_replies
        self.deadline_s = deadline_s
        self.since_s = since_s
        # Answered, or nobody waits any more.
        self.done = False

    def give_up(self, error: UnavailableError) -> None:
        self.finish(error)

    def finish(self, outcome: Sequence[object] | UnavailableError) -> None:
        """Deliver the outcome, once."""
        if self.done:
            return
        self.done = True
        try:
            self.on_replies(outcome)
        except Exception:  # one reader's bug is not the others'
            logger.exception("reader_raised")


class Reader:
    """Collects reads and sends them a batch at a time."""

    def __init__(
        self,
        *,
        committer: Committer,
        wire: Wire,
        connect: Callable[[], Awaitable[Connection]],
        settings: StoreSettings,
        clock: Clock,
        random: Random,
        state: AsyncValue,
        wait_timeouts: WaitTimeouts,
        listeners: Listeners,
    ) -> None:
        self.reads = 0
        self.round_trips = 0
        self._committer = committer
        self._wire = wire
        self._connect = connect
        self._settings = settings
        self._record_bytes = settings.argument_bytes or RECORD_BYTES_MAX
        self._clock = clock
        self._random = random
        self._state = state
        self._wait_timeouts = wait_timeouts
        self._listeners = listeners
        listeners.of_absences.append(self.away)
        self._queue: deque[Read] = deque()
        self._queued_commands = 0
        self._batch: list[Read] = []
        # In flight too: their sizes are asked for.
        self._sizing: list[Read] = []
        self._work = trio.Event()
        self._connection: Connection | None = None
        self._generation = -1
        # Reads cannot be served for now, and are told to give up in due time.
        self._away = False

    @property
    def queued(self) -> int:
        """Reads that wait or are in flight."""
        return len(self._queue) + len(self._batch) + len(self._sizing)

    @property
    def oldest_queued_s(self) -> float:
        """When the oldest read that was not sent yet was asked for; infinity: there is none."""
        return self._queue[0].since_s if self._queue else math.inf

    # ------------------------------------------------------------- callers

    def submit(
        self,
        payload: bytes,
        count: int,
        on_replies: OnReplies,
        *,
        reply_bytes: int | None = 0,
        deadline_s: float | None = None,
    ) -> Read:
        """Queue a read of ``count`` packed commands, which are joined in ``payload``.

        ``on_replies`` is called later, once, with its replies or an error. ``reply_bytes``: how
        many bytes these have at most; 0: few for each command; None: it is one HGET of a record.

        Raises:
            OverloadedError: too many wait; nothing is queued.
            UnavailableError: the store is closed.
        """
        limit = self._settings.read_queue_commands
        if self._queued_commands + count > limit:
            self._forget_done()
            if self._queued_commands + count > limit:
                raise OverloadedError("the read queue", limit=limit, unit="commands")
        if self._state.value is _CLOSED:
            raise UnavailableError("the store is closed")
        since_s = self._clock.monotonic_s()
        read = Read(
            payload,
            count,
            on_replies,
            reply_bytes=self._record_bytes if reply_bytes is None else reply_bytes,
            is_sized=reply_bytes is not None,
            deadline_s=deadline_s,
            since_s=since_s,
        )
        self._queue.append(read)
        self._queued_commands += count
        self._work.set()
        if self._away:
            self._wait_timeouts.enrol(read, read.since_s)
        return read

    async def read(self, payload: bytes, count: int) -> list[object]:
        """The replies to ``count`` packed commands, which join the next batch.

        If cancelled, they are not delivered.

        Raises:
            UnavailableError: Redis is away for longer than callers wait, or refuses a command.
            OverloadedError: too many reads wait.
        """
        done = trio.Event()
        outcomes: list[Sequence[object] | UnavailableError] = []

        def on_replies(outcome: Sequence[object] | UnavailableError) -> None:
            outcomes.append(outcome)
            done.set()

        read = self.submit(payload, count, on_replies)
        try:
            await done.wait()
        except trio.Cancelled:
            read.done = True
            raise
        (outcome,) = outcomes
        if isinstance(outcome, UnavailableError):
            raise outcome
        return list(outcome)

    # ------------------------------------------------------------- the loop

    async def run(self) -> None:
        """Read until cancelled."""
        failures = 0
        try:
            while True:
                await self._wait_for_work()
                await self._state.wait_value(StoreState.CONNECTED)
                try:
                    await self._read_batch()
                except (ConnectionLostError, AuthenticationError) as error:
                    failures += 1
                    logger.info("read_connection_lost", reason=str(error))
                    self.away(str(error))
                    await self._drop_connection()
                    await trio.sleep(backoff_s(failures, self._settings, self._random))
                else:
                    failures = 0
        finally:
            with trio.CancelScope(shield=True):
                await self._drop_connection()

    def close(self) -> None:
        """Nothing is read any more: fail what waits."""
        waiting = [*self._batch, *self._sizing, *self._queue]
        self._batch, self._sizing = [], []
        self._queue.clear()
        self._queued_commands = 0
        for read in waiting:
            read.finish(UnavailableError("the store is closed"))

    def away(self, reason: str) -> None:
        """Nothing can be read until further notice: everything that waits gives up in due time."""
        self._wait_timeouts.reason = reason
        if self._away:
            return
        self._away = True
        for read in (*self._batch, *self._sizing, *self._queue):
            if not read.done:
                self._wait_timeouts.enrol(read, read.since_s)

    def _forget_done(self) -> None:
        """Make room: those that have given up need not be read."""
        self._queue = deque(read for read in self._queue if not self._is_done(read))
        self._queued_commands = sum([read.count for read in self._queue])

    async def _wait_for_work(self) -> None:
        while not self.queued:
            self._work = trio.Event()
            await self._work.wait()

    async def _read_batch(self) -> None:
        connection = await self._current_connection()
        self._take()
        batch, sizing = self._batch, self._sizing
        if not batch and not sizing:
            return
        sequence = self._committer.history.sequence
        errors = connection.error_count
        with answered_within(self._settings.reply_timeout_s):
            parts = [self._wire.read_command, *[read.payload for read in batch]]
            for read in sizing:
                parts += (_HSTRLEN_HEAD, read.payload[len(_HGET_HEAD) :])
            count = 1 + sum([read.count for read in batch]) + len(sizing)
            value, *replies = await connection.call(b"".join(parts), count)
        if self._generation != self._committer.generation or not self._committer.history.in_sync:
            raise ConnectionLostError("the commit connection was lost meanwhile")
        self._expect_current(self._wire.key_value(value), sequence)
        failed = connection.error_count != errors
        if failed:
            _expect_ready(replies)
        self._batch, self._sizing = [], []
        if sizing:
            self._sized(sizing, replies[-len(sizing) :])
        if self._away:
            self._away = False
            self._wait_timeouts.clear()
        self.reads += len(batch)
        self.round_trips += 1
        self._deliver(batch, replies, failed=failed)

    def _take(self) -> None:
        """Fill the batch: with what was in flight on a broken connection, then with more.

        What has no size yet, and finds no room for the largest, is asked for its size.
        """
        queue = self._queue
        again = [*self._batch, *self._sizing]
        queue.extendleft(reversed(again))
        self._queued_commands += sum([read.count for read in again])
        batch: list[Read] = []
        sizing: list[Read] = []
        self._batch, self._sizing = batch, sizing
        commands, room = self._settings.read_commands, self._settings.read_bytes
        while queue:
            read = queue[0]
            is_sizing = bool(batch) and read.reply_bytes > room and not read.is_sized
            fits = read.count <= commands and (is_sizing or read.reply_bytes <= room)
            if (batch or sizing) and not fits:
                break
            queue.popleft()
            self._queued_commands -= read.count
            if self._is_done(read):
                continue
            commands -= read.count
            if is_sizing:
                sizing.append(read)
            else:
                batch.append(read)
                room -= read.reply_bytes

    def _sized(self, reads: list[Read], sizes: Sequence[object]) -> None:
        """Read these next, now that their sizes are known."""
        for read, size in zip(reads, sizes, strict=True):
            read.is_sized = True
            # A key of a wrong type has no size; the read itself will tell.
            read.reply_bytes = size if isinstance(size, int) else 0
        self._queue.extendleft(reversed(reads))
        self._queued_commands += len(reads)

    def _is_done(self, read: Read) -> bool:
        if read.done:
            self._wait_timeouts.ended(read)
        return read.done

    def _deliver(self, batch: list[Read], replies: list[object], *, failed: bool) -> None:
        first = 0
        with self._listeners.outcomes:
            for read in batch:
                after = first + read.count
                own = replies[first:after]
                outcome: Sequence[object] | UnavailableError = own
                if failed and (error := first_error(own)):
                    logger.error("read_failed", reason=str(error))
                    outcome = UnavailableError(f"Redis refused the read: {error}")
                first = after
                read.finish(outcome)
        if self._wait_timeouts.has_given_up:
            for read in batch:
                self._wait_timeouts.ended(read)

    # ---------------------------------------------------------- connections

    async def _current_connection(self) -> Connection:
        generation = self._committer.generation
        if self._connection is not None and self._generation == generation:
            return self._connection
        await self._drop_connection()
        connection = self._connection = await self._connect()
        self._generation = generation
        return connection

    def _expect_current(self, value: bytes | None, sequence: int) -> None:
        """Raises `ConnectionLostError` if a store with this commit key lacks the commit."""
        if not self._committer.history.includes(value, sequence):
            self._committer.suspect()
            raise ConnectionLostError(
                "what is read lacks what was acknowledged: it is another server than the one that "
                "is written to, a replica that lags perhaps"
            )

    async def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()


def _expect_ready(replies: Sequence[object]) -> None:
    error = first_error(replies)
    if isinstance(error, ReplyError) and str(error).startswith(NOT_READY):
        raise ConnectionLostError(str(error))
