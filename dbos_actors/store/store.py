"""The store as its users see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from trio_util import AsyncValue

from dbos_actors.clock import Clock
from dbos_actors.store.committer import Committer
from dbos_actors.store.event_ids import EventIds
from dbos_actors.store.keys import Keys
from dbos_actors.store.listeners import Follower, Listeners
from dbos_actors.store.own_commit import OwnCommit
from dbos_actors.store.reader import OnReplies, Reader
from dbos_actors.store.resp import pack_each
from dbos_actors.store.settings import StoreState, StoreStatistics, StoreWarning
from dbos_actors.store.submission import Submission
from dbos_actors.store.wait_timeouts import WaitTimeouts


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
        listeners: Listeners,
        serving_at: Callable[[Sequence[str]], None],
    ) -> None:
        self.keys = keys
        self.submit: Callable[[Submission], None] = committer.submit
        """Queue a submission. Raises `OverloadedError`, `UnavailableError` once the store is
        closed or taken over and while writes are `forbidden`, and `ValueError` for a deletion of
        more than 4,000 arguments in one command; nothing is queued then."""
        self.next_event_id: Callable[[], bytes] = event_ids.next_id
        """A stream id above all earlier ones, for an ``XADD`` in the very next submission."""
        self.serving_at = serving_at
        """Tell others, in the owner key, the addresses where this server serves. They are there
        from the next renewal of the lease on."""
        self._committer = committer
        self._reader = reader
        self._wait_timeouts = wait_timeouts
        self._state = state
        self._clock = clock
        self._listeners = listeners

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
        reply_bytes: int | None = 0,
        deadline_s: float | None = None,
    ) -> None:
        """Queue a read; ``on_replies`` is called once, later, with its replies or an error.

        ``reply_bytes``: how many bytes the replies have at most; 0: few for each command; None:
        it is one HGET of a record. ``deadline_s`` is on the monotonic clock. Raises
        `OverloadedError`, and `UnavailableError` once the store is closed; ``on_replies`` is not
        called then.
        """
        self._reader.submit(
            b"".join(commands),
            len(commands),
            on_replies,
            reply_bytes=reply_bytes,
            deadline_s=deadline_s,
        )

    def begin_commit(
        self,
        *commands: bytes,
        name: str,
        frees_memory: bool = False,
        gives_up: bool = True,
    ) -> OwnCommit:
        """Queue commands of the server's own; `OwnCommit.wait` waits for them. See `commit`."""
        commit = OwnCommit(commands, name=name, frees_memory=frees_memory, gives_up=gives_up)
        self.submit(commit)
        return commit

    async def commit(
        self,
        *commands: bytes,
        name: str,
        frees_memory: bool = False,
        gives_up: bool = True,
    ) -> Sequence[object] | None:
        """Commit ``commands``, which are no actor's, and wait until they are in the store.

        ``name`` says whose they are, in the log and for damaged keys. ``frees_memory`` as in
        `Submission.frees_memory`. ``gives_up``: wait for a Redis that is away only as long as
        callers do; if not, wait until the outcome is known.

        Returns the replies; None if they were lost with the connection.

        Raises:
            OverloadedError: the commit queue is full; nothing is queued.
            UnavailableError: the commands are not in the store and never will be; or it was
                given up, and they may get there yet.

        If cancelled, the commands may still be committed.
        """
        return await self.begin_commit(
            *commands, name=name, frees_memory=frees_memory, gives_up=gives_up
        ).wait()

    async def read(self, *commands: bytes) -> list[Any]:
        """The replies to ``commands``, which join the next batched round trip.

        Raises:
            UnavailableError: Redis is away for longer than callers wait, or refuses a command.
            OverloadedError: too many reads wait.
        """
        return await self._reader.read(b"".join(commands), len(commands))

    async def read_each(self, head: bytes, arguments: Sequence[bytes]) -> list[Any]:
        """The replies to one command for each of ``arguments``, which is its last one.

        ``head`` is the rest of it, from `pack_head`. Raises as `read` does.
        """
        return await self._reader.read(pack_each(head, arguments), len(arguments))

    def tell_within(self, outcomes: AbstractContextManager[object]) -> None:
        """Have ``outcomes`` entered whenever the outcomes of a commit or a read are told, and left
        when all of them are: the time to send the answers that they led to.
        """
        self._listeners.outcomes = outcomes

    def follow(self, follower: Follower | None) -> None:
        """Have ``follower`` called after each commit, with its submissions in their order, the
        replies to all their commands (None: lost with the connection), and whether these are all
        that has changed anything; None: no more.

        They are not all if a command failed inside the commit: then a submission that was refused
        may have had a part of its effect. What is lost later is told to `on_reload`. It must not
        raise, nor submit anything.
        """
        self._listeners.follower = follower

    def on_reload(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when Redis came back older than what can be sent again.

        Everything that waited has been refused; everyone has to start again from the store.
        """
        self._listeners.of_losses.append(callback)

    def commit_percentiles(self, *shares: float) -> list[float]:
        """Within how many seconds these shares of the last commits were answered."""
        return self._committer.latencies.percentiles(*shares)

    @property
    def memory_bytes(self) -> tuple[int, int]:
        """What Redis uses, and what it may use, as last seen; 0: no limit, or not known."""
        findings = self._committer.findings
        return findings.memory_bytes, findings.memory_max_bytes

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
            committed_bytes=counts.committed_bytes,
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
            queued_submissions=len(history.queue),
            queued_bytes=history.queue.size_bytes,
            replayable_batches=len(history.window),
            replayable_bytes=history.window.size_bytes,
            in_flight_submissions=history.in_flight_submissions,
            reads=reader.reads,
            read_round_trips=reader.round_trips,
            queued_reads=reader.queued,
        )
