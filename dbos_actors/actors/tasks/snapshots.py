"""Snapshots of the task book, so that a recovery need not replay the whole journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from dbos_actors.actors.tasks.actor import SchedulerActor
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.context import SchedulerContext
from dbos_actors.actors.tasks.host import ActorHost
from dbos_actors.actors.tasks.settings import SchedulerSettings
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.errors import OverloadedError, UnavailableError
from dbos_actors.loggers import get_logger
from dbos_actors.store import OwnCommit, StoreState

logger = get_logger(__name__)

_CHECK_EVERY_S = 1.0

_SNAPSHOT_RETRY_S = 30.0
_SLICES_UNDER_WAY = 4
"""Slices of a snapshot that wait for their commit: a million tasks need 500 of them."""


class Snapshots:
    """Takes a snapshot when the journal after the last one has become long."""

    def __init__(
        self, host: ActorHost, context: SchedulerContext, settings: SchedulerSettings
    ) -> None:
        self._host = host
        self._store = context.store
        self._stored = context.stored
        self._clock = context.clock
        self._commands = TaskCommands(context.store.keys)
        self._settings = settings
        self.taken = 0
        self.chunks = 0
        self.slice_s_max = 0.0
        """The longest time that was spent on one slice without a pause."""

    async def run(self) -> None:
        """Take a snapshot whenever one is due, until cancelled."""
        while True:
            await trio.sleep(_CHECK_EVERY_S)
            actor = self._host.actor
            if actor is None or self._store.state.value is not StoreState.CONNECTED:
                continue
            if not self._is_snapshot_due(actor.book):
                continue
            try:
                await self.take()
            except (UnavailableError, OverloadedError) as error:
                logger.warning("snapshot_failed", error=str(error))
                await trio.sleep(_SNAPSHOT_RETRY_S)

    def _is_snapshot_due(self, book: TaskBook) -> bool:
        settings = self._settings
        entries_max = max(settings.journal_entries_min, len(book) // 2)
        bytes_max = max(settings.journal_bytes_min, self._stored.snapshot_bytes)
        return self.journal_entries(book) > entries_max or self._stored.journal_bytes > bytes_max

    def journal_entries(self, book: TaskBook) -> int:
        """How many entries the journal has after the snapshot."""
        return book.sequence - self._stored.sequence

    async def take(self) -> None:
        """Write the book beside the snapshot in force, slice by slice, then switch.

        One at a time. Raises `UnavailableError` or `OverloadedError`; then the old one stays
        in force.
        """
        actor = self._host.actor
        if actor is None:
            raise UnavailableError("the scheduler is starting again")
        stored, sequence = self._stored, actor.book.sequence
        generation, journal_bytes = stored.generation + 1, stored.journal_bytes
        size_bytes = await self._write_chunks(actor, generation)
        await self._submit(self._commands.switch(generation, sequence)).wait()
        self._host.require(actor)
        stored.generation = generation
        stored.sequence = sequence
        stored.snapshot_bytes = size_bytes
        stored.journal_bytes -= journal_bytes
        self.taken += 1
        logger.info("snapshot_taken", tasks=len(actor.book), sequence=sequence)

    async def _write_chunks(self, actor: SchedulerActor, generation: int) -> int:
        """Write a snapshot of a generation; its size in bytes."""
        size_bytes = 0
        is_first = True
        chunks = snapshot_chunks(actor.book, self._settings.snapshot_rows)
        written: deque[OwnCommit] = deque()
        while True:
            # One step without a pause, so that a chunk follows in the store what it contains.
            began_s = self._clock.monotonic_s()
            self._host.require(actor)
            chunk = next(chunks, None)
            if chunk is None:
                break
            size_bytes += len(chunk)
            commands = self._commands.add_chunk(generation, chunk, is_first=is_first)
            written.append(self._submit(commands))
            self.slice_s_max = max(self.slice_s_max, self._clock.monotonic_s() - began_s)
            self.chunks += 1
            is_first = False
            await trio.lowlevel.checkpoint()
            if len(written) == _SLICES_UNDER_WAY:
                await written.popleft().wait()
        for writing in written:
            await writing.wait()
        # All chunks are committed and the actor is still the same: so is all they contain.
        self._host.require(actor)
        return size_bytes

    def _submit(self, commands: Sequence[bytes]) -> OwnCommit:
        """Begin a commit of the snapshot's.

        It is no commit of the actor's: when Redis has no room for it, the book is still right.
        What becomes of it has to be known, so it is waited for while Redis is away.
        """
        writing = self._store.begin_commit(*commands, name="the tasks' snapshot", gives_up=False)
        self._stored.writing = writing
        return writing
