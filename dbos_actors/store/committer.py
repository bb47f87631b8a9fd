"""The one task that writes: it sends what the history decides and applies the effects."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

import trio
from trio_util import AsyncValue

from dbos_actors.backoff import BackoffPolicy
from dbos_actors.clock import Clock
from dbos_actors.loggers import get_logger
from dbos_actors.sleeper import Sleeper
from dbos_actors.store.batch import Batch, Wire
from dbos_actors.store.commit_history import CommitHistory, Phase
from dbos_actors.store.connection import (
    AuthenticationError,
    Connection,
    ConnectionLostError,
    answered_within,
)
from dbos_actors.store.damage import Marks, failures
from dbos_actors.store.effects import Effects
from dbos_actors.store.latencies import Latencies
from dbos_actors.store.listeners import Listeners
from dbos_actors.store.safety import Findings, Requirements, inspect
from dbos_actors.store.settings import StoreSettings, StoreState
from dbos_actors.store.submission import Submission
from dbos_actors.store.wait_timeouts import WaitTimeouts

logger = get_logger(__name__)

# Looking a member of an enumeration up costs as much as a small function: not on the way of
# every call.
_CONNECTED: Final = StoreState.CONNECTED
_AWAY: Final = StoreState.AWAY
_KNOWN: Final = Phase.KNOWN

# How exactly renewals and stalls are timed; a tenth of the shortest of those times, or less.
WATCH_S = 0.05

# The shortest wait for the window, lest rounding make it none; a twentieth of a portion's time.
HELD_S_MIN = 0.001


def backoff_s(attempt: int, settings: StoreSettings, random: Random) -> float:
    """How long to wait after the ``attempt``-th failure in a row, from 1.

    No time after the first one. Later pauses are of any length up to a limit that doubles: half
    the limit, with a jitter of all of it.
    """
    policy = BackoffPolicy(
        at_once=True,
        first_s=settings.backoff_s / 2,
        factor=2.0,
        max_s=settings.backoff_max_s / 2,
        jitter=1.0,
    )
    return policy.pause_s(attempt, random)


class Committer(Sleeper):
    """Runs the history against Redis. Its task sleeps while there is nothing to send.

    ``generation`` rises whenever the commit connection is replaced: whoever reads on another
    connection then has to replace that one too, lest the two lead to different servers.
    """

    def __init__(
        self,
        *,
        history: CommitHistory,
        wire: Wire,
        connection: Connection,
        connect: Callable[[], Awaitable[Connection]],
        settings: StoreSettings,
        clock: Clock,
        random: Random,
        requirements: Requirements,
        findings: Findings,
        state: AsyncValue,
        wait_timeouts: WaitTimeouts,
        marks_key: str,
        listeners: Listeners,
    ) -> None:
        """``connection`` watches the commit key, which has the history's value.

        ``findings`` are those of `inspect`, on that connection.
        Damaged keys are listed in ``marks_key``.
        ``listeners``: what is entered while submissions are told their outcomes, and who is called
        when Redis goes away, and when it has lost commits for good.
        """
        super().__init__()
        self.history = history
        self.generation = 0
        self.reconnects = 0
        self.commit_seconds = 0.0
        self.latencies = Latencies()
        self.findings = findings
        self.forbidden = AsyncValue(None)
        """Why writes are refused: Redis is not as a setting demands; None: they are not."""
        self._wire = wire
        self._connection = connection
        self._connect = connect
        self._settings = settings
        self._clock = clock
        self._random = random
        self._requirements = requirements
        self._inspect_at_s = clock.monotonic_s() + settings.inspection_s
        self._state = state
        self._wait_timeouts = wait_timeouts
        self._marks = Marks(marks_key, clock=clock, submit=self.submit)
        self._listeners = listeners
        # Why the connection was closed from outside the loop.
        self._lost_because: str | None = None
        # When the batch in flight was sent; infinity: none is.
        self._sent_s = math.inf
        # In a row; a commit that Redis accepts ends the row, a connection alone does not.
        self._failures = 0

    @property
    def is_current(self) -> bool:
        """Whether memory may be shown: nothing is in doubt and nobody can have taken the store."""
        history = self.history
        return history.in_sync and self._clock.monotonic_s() < history.lease_until_s

    def submit(self, submission: Submission) -> None:
        """Queue a submission. Raises `OverloadedError`, or `UnavailableError` when closed."""
        now_s = self._clock.monotonic_s()
        self.history.submit(submission, now_s)
        if self._sleeper is not None:
            self.wake()
        if self._state.value is not _CONNECTED:
            self._wait_timeouts.enrol(submission, now_s)

    def release(self) -> None:
        """Commit what is queued, give the lease up, and end."""
        self.history.releasing = True
        self.wake()

    def suspect(self) -> None:
        """Someone saw the store in a state that does not fit: check it."""
        self.history.check_wanted = True
        self.wake()

    async def run(self) -> None:
        """Commit until the history is closed.

        Raises:
            FencedError: another server has taken the store; nobody was told anything since.
        """
        try:
            while not self.history.closed:
                try:
                    await self._serve()
                except ConnectionLostError as error:
                    self.history.connection_lost()
                    self._go_away(str(error))
                    self._failures += 1
                    await self._connection.aclose()
                    if not self.history.closed:
                        await self._reconnect()
        finally:
            with trio.CancelScope(shield=True):
                await self._connection.aclose()

    async def watch(self) -> None:
        """Keep the time for the loop, which has no timeouts of its own; until cancelled.

        Renewals fall due, and a Redis may stop answering though the connection stands.
        """
        settings = self._settings
        while True:
            await trio.sleep(WATCH_S)
            now_s = self._clock.monotonic_s()
            waited_s = now_s - self._sent_s
            if waited_s >= settings.reply_timeout_s:
                self._lost_because = "no answer to a commit"
                await self._connection.aclose()
            elif waited_s >= settings.stall_s:
                self._go_away("no answer to a commit")
            elif self._sleeper is not None and now_s >= min(
                self.history.wake_s, self._inspect_at_s
            ):
                self.wake()
                self._marks.flush()

    # ------------------------------------------------------------- the loop

    async def _serve(self) -> None:
        history = self.history
        clock = self._clock
        while history.phase is _KNOWN:
            now_s = clock.monotonic_s()
            if now_s >= self._inspect_at_s:
                self._adopt(await self._inspect(self._connection))
            batch = history.next_batch(now_s)
            if batch is None:
                if history.held:
                    await trio.sleep(max(HELD_S_MIN, history.wake_s - now_s))
                else:
                    await self.sleep()
                continue
            await self._exchange(batch)

    async def _exchange(self, batch: Batch) -> None:
        history = self.history
        connection = self._connection
        self._lost_because = None
        self._sent_s = sent_s = self._clock.monotonic_s()
        try:
            answer = await self._wire.send(
                connection,
                batch,
                before=history.key_value,
                after=history.value_at(batch.sequence),
            )
        except ConnectionLostError as error:
            if self._lost_because is None:
                raise
            raise ConnectionLostError(self._lost_because) from error
        finally:
            self._sent_s = math.inf
        now_s = self._clock.monotonic_s()
        effects = history.answered(batch, answer, now_s)
        if answer.replies is not None:
            self.commit_seconds += now_s - sent_s
            self.latencies.add(now_s - sent_s)
            self._failures = 0
        self._apply(effects)
        if effects.reconnect is not None:
            logger.warning("commit_refused", reason=effects.reconnect)
            raise ConnectionLostError(effects.reconnect)
        if self._state.value is _AWAY and history.in_sync:
            self._come_back()

    async def _inspect(self, connection: Connection) -> Findings:
        """Look whether Redis is as the settings demand, before more is written to it."""
        with answered_within(self._settings.reply_timeout_s):
            findings = await inspect(connection, self._requirements)
        self._inspect_at_s = self._clock.monotonic_s() + self._settings.inspection_s
        return findings

    def _adopt(self, findings: Findings) -> None:
        """Refuse writes, or accept them again, and tell operators what has changed."""
        before, self.findings = self.findings, findings
        for warning in findings.warnings:
            if warning not in before.warnings:
                logger.warning("unsafe_redis", name=warning.name, text=warning.text)
        if before.warnings and not findings.warnings:
            logger.info("safe_redis")
        if findings.violation == before.violation:
            return
        if findings.violation is None:
            logger.info("writes_accepted")
        else:
            logger.error("writes_refused", reason=findings.violation)
        self._apply(self.history.forbid(findings.violation))
        self.forbidden.value = findings.violation

    # ------------------------------------------------------------- effects

    def _apply(self, effects: Effects) -> None:
        """Tell everyone; one who raises is a bug, which must not cost the others their answer."""
        with self._listeners.outcomes:
            self._tell_committed(effects)
            if effects.error is not None:
                self._refuse(effects)
        follower = self._listeners.follower
        if follower is not None and (effects.committed or effects.damage):
            follower(effects.committed, effects.replies, not effects.damage)
        if effects.damage:
            self._marks.add(effects.damage)
        if self._wait_timeouts.has_given_up:
            for submission, _ in (*effects.committed, *effects.refused):
                self._wait_timeouts.ended(submission)
        if effects.lost_batches:
            logger.error(
                "commits_lost",
                commits=effects.lost_batches,
                text="Redis came back empty, or older than what could be sent again: what these "
                "commits wrote, and was acknowledged, is gone",
            )
            self._listeners.on_loss()

    def _tell_committed(self, effects: Effects) -> None:
        replies = effects.replies
        first = 0
        for submission, _ in effects.committed:
            try:
                if replies is None:
                    submission.committed(None)
                else:
                    after = first + len(submission.commands)
                    submission.committed(replies[first:after])
                    first = after
            except Exception:
                logger.exception("submission_raised")

    def _refuse(self, effects: Effects) -> None:
        logger.warning(
            "submissions_refused",
            submissions=len(effects.refused),
            owners=len(effects.owners),
            reason=str(effects.error),
        )
        for submission, _ in effects.refused:
            try:
                submission.refused(effects.error_for(submission.owner))
            except Exception:
                logger.exception("submission_raised")
        for owner in effects.owners:
            try:
                owner.store_refused(effects.error_for(owner))
            except Exception:
                logger.exception("owner_raised")

    # ------------------------------------------------------------ away, back

    def _go_away(self, reason: str) -> None:
        self._wait_timeouts.reason = reason
        if self._state.value is not StoreState.CONNECTED:
            return
        logger.warning("store_away", reason=reason)
        self._state.value = StoreState.AWAY
        for submission, since_s in self.history.waiting():
            self._wait_timeouts.enrol(submission, since_s)
        self._listeners.on_away(reason)

    def _come_back(self) -> None:
        logger.info("store_back")
        self._wait_timeouts.clear()
        self._state.value = StoreState.CONNECTED

    async def _reconnect(self) -> None:
        """Connect, with pauses, and find out what became of the batch in flight."""
        refusals = self.history.counts.losses_refused
        while True:
            await trio.sleep(backoff_s(self._failures, self._settings, self._random))
            try:
                self._connection, findings, value, failed = await self._armed_connection()
            except (ConnectionLostError, AuthenticationError) as error:
                self._wait_timeouts.reason = str(error)
                self._failures += 1
                continue
            effects = self.history.key_read(value, self._clock.monotonic_s(), failed)
            self._apply(effects)
            if effects.reconnect is None:
                break
            if self.history.counts.losses_refused == refusals + 1:
                logger.error("older_redis_refused", reason=effects.reconnect)
            self._wait_timeouts.reason = effects.reconnect
            self._failures += 1
            await self._connection.aclose()
        self.generation += 1
        self.reconnects += 1
        self._adopt(findings)
        if self.history.in_sync:
            self._come_back()

    async def _armed_connection(
        self,
    ) -> tuple[Connection, Findings, bytes | None, Sequence[tuple[int, str]]]:
        """A new connection that watches the commit key, what an inspection found, the key's
        value, and what is known to have failed of the commit whose replies were lost.
        """
        connection = await self._connect()
        try:
            with answered_within(self._settings.connect_timeout_s):
                findings = await self._inspect(connection)
                value = await self._wire.arm(connection)
                in_doubt = self.history.executed_in_doubt(value)
                failed = await failures(connection, in_doubt) if in_doubt is not None else ()
                return connection, findings, value, failed
        except BaseException:
            with trio.CancelScope(shield=True):
                await connection.aclose()
            raise
