"""What is committed, what waits, and what to do about an answer or a lost connection. Pure.

The history decides; `committer` talks to Redis and tells each submission its outcome. The
history of a partition is a chain: ``base`` (what the commit key held before
this server took ownership), then the sequence numbers of this server's epoch.

    window: [ confirmed ... | acknowledged, lost by Redis ... | in flight ]
                            ^ position                        ^ acknowledged

Invariants:
- Sequence numbers in the replay window are contiguous; only the last may be in flight.
- ``position`` is what the store is known to contain. What lies after it in the
  window is sent, in order, before anything new.
- No submission is sent in two batches, unless the first one provably was not
  executed. Submissions of one owner never change their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from dbos_actors.errors import FencedError, OverloadedError, UnavailableError, UnusableStoreError
from dbos_actors.store.batch import Answer, Batch, Entry, Form, Lease, check_for_script
from dbos_actors.store.commit_key import CommitKey
from dbos_actors.store.effects import Counts, Effects, owners_of, without
from dbos_actors.store.replay_window import ReplayWindow
from dbos_actors.store.submission import Submission
from dbos_actors.store.submission_queue import ENTRY_BYTES, SubmissionQueue

# The error of a server that is no longer the primary: a new connection may lead to the one that is.
READ_ONLY = "READONLY"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLimits:
    """See `StoreSettings` for the meaning and origin of each."""

    batch_submissions: int
    batch_bytes: int
    queue_bytes: int
    replay_s: float
    replay_bytes: int
    lease_s: float
    renewal_s: float
    refuse_loss: bool = False


class Phase(Enum):
    """What is known about the store."""

    # The connection is lost: the commit key must be read before anything else.
    UNKNOWN = auto()
    KNOWN = auto()
    FENCED = auto()
    CLOSED = auto()


# Looking a member of an enumeration up costs as much as a small function: not on the way of
# every call.
_KNOWN: Final = Phase.KNOWN
_FENCED: Final = Phase.FENCED
_CLOSED: Final = Phase.CLOSED


class CommitHistory:
    """The commit history of one partition as its owner sees it."""

    def __init__(
        self,
        *,
        base: bytes | None,
        epoch: int,
        limits: HistoryLimits,
        now_s: float,
        commit_key: str = "commit",
    ) -> None:
        """Start right after ownership was taken, by a commit ``epoch:0`` sent at ``now_s``.

        ``base`` is what the commit key held before it; ``commit_key`` names it in errors.
        """
        key = CommitKey(commit_key, epoch=epoch, base=base)
        self.epoch = epoch
        self.value_at: Final = key.value_at
        """The commit key after a commit of this epoch, by its sequence number."""
        self.counts = Counts()
        self.check_wanted = False
        """Set to have the ownership checked even if nothing waits."""
        self.releasing = False
        """Set to give the lease up once the queue is empty."""
        self.forbidden: str | None = None
        """Why writes are refused; see `forbid`."""
        self._phase = Phase.KNOWN
        self._key = key
        self._limits = limits
        first = Batch(Form.SCRIPT, sequence=0, entries=[], lease=Lease.RENEW)
        first.confirmed_s = now_s
        self.window: Final = ReplayWindow(
            first, replay_s=limits.replay_s, replay_bytes=limits.replay_bytes, now_s=now_s
        )
        """What was sent and can be sent again. Others only look at it."""
        # The queue waits although nothing is in flight: the replay window allows no more.
        self._held = False
        self._position = 0
        self._acknowledged = 0
        # The commit key as last seen: what the next commit starts from. Empty: there is none.
        self._value = self.value_at(0)
        # A CHECK or a RENEWAL that is in flight; it has no place in the history.
        self._aside: Batch | None = None
        self.queue: Final = SubmissionQueue()
        """What was not sent yet. Others only look at it."""
        # The commit key lacks what was lost for good: the next commit, be it empty, says where
        # the store stands, for those who compare the key before they read.
        self._key_is_behind = False
        self._renewed_s = now_s
        self._renew_at_s = now_s + limits.renewal_s
        self._sent_s = now_s

    # ------------------------------------------------------------- queries

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def closed(self) -> bool:
        """Whether nothing will be sent any more, because the store was closed in order."""
        return self._phase is _CLOSED

    @property
    def in_sync(self) -> bool:
        """Whether the store is known to contain everything acknowledged."""
        return self._phase is _KNOWN and self._position >= self._acknowledged

    @property
    def lease_until_s(self) -> float:
        """Until when no server that respects the lease can have taken the store."""
        return self._renewed_s + self._limits.lease_s

    @property
    def wake_s(self) -> float:
        """When `next_batch` may return something although nothing was submitted."""
        if not self._held or self.window.is_full:
            # Only an accepted write makes room in a full window; a renewal is one.
            return self._renew_at_s
        return min(self.window.portion_at_s(self.queue.size_bytes), self._renew_at_s)

    @property
    def held(self) -> bool:
        """Whether the queue waits, not for an answer, but for the window: look at `wake_s`."""
        return self._held

    @property
    def sequence(self) -> int:
        """Of the last acknowledged commit."""
        return self._acknowledged

    @property
    def key_value(self) -> bytes:
        """The commit key as last seen: what the next batch must find."""
        return self._value

    @property
    def oldest_queued_s(self) -> float:
        """When the oldest submission that was not sent yet was made; infinity: there is none."""
        return self.queue.oldest_s

    @property
    def in_flight_submissions(self) -> int:
        return sum(1 for _ in self._in_flight())

    def includes(self, value: bytes | None, sequence: int | None = None) -> bool:
        """Whether a store with this commit key is ours and contains everything acknowledged, or
        all up to the commit ``sequence``.
        """
        return self._key.includes(value, self._acknowledged if sequence is None else sequence)

    def waiting(self) -> Iterator[Entry]:
        """Every submission that is neither committed nor refused, oldest first."""
        yield from self._in_flight()
        yield from self.queue

    def _unacknowledged(self) -> Batch | None:
        """The batch that is in flight, or was when the connection broke."""
        window = self.window
        return window.newest if window.newest_sequence > self._acknowledged else None

    def _in_flight(self) -> Iterable[Entry]:
        if self._aside is not None:
            return self._aside.entries
        newest = self.window.newest
        return () if newest is None else newest.entries

    # -------------------------------------------------------------- events

    def submit(self, submission: Submission, now_s: float) -> None:
        """Queue a submission.

        Raises:
            OverloadedError: the queue is full, or its turn would come after its deadline; nothing
                is queued.
            UnavailableError: the store is no longer ours, or closed, or writes are forbidden.
            ValueError: it frees memory with a command that has too many arguments for that.
        """
        if submission.frees_memory:
            check_for_script(submission.commands)
        size_bytes = submission.size_bytes + ENTRY_BYTES
        queue = self.queue
        if queue.size_bytes + size_bytes > self._limits.queue_bytes:
            raise OverloadedError("the commit queue", limit=self._limits.queue_bytes, unit="bytes")
        if self._phase is _FENCED or self._phase is _CLOSED:
            raise UnavailableError("this server no longer owns the store")
        if self.forbidden is not None and submission.commands:
            raise UnavailableError(self.forbidden)
        if self._held and submission.deadline_s is not None:
            self._expect_in_time(submission.deadline_s, size_bytes)
        queue.append((submission, now_s), size_bytes)

    def _expect_in_time(self, deadline_s: float, size_bytes: int) -> None:
        """Raise `OverloadedError` if what waits already takes longer than the caller will wait."""
        turn_s = self.window.all_at_s(self.queue.size_bytes + size_bytes)
        if turn_s > deadline_s:
            raise OverloadedError(
                "the window of writes kept to be sent again (DBOS_REPLAY_BYTES)",
                limit=self._limits.replay_bytes,
                unit="bytes",
            )

    def next_batch(self, now_s: float) -> Batch | None:
        """What to send now; None: nothing, until a submission or `wake_s`.

        The caller sends it at once and reports with `answered` or `connection_lost`.
        """
        assert self._phase is _KNOWN
        self._sent_s = now_s
        window = self.window
        if window.newest_sequence > self._position:
            self.counts.repeated += 1
            return window.after(self._position)
        if self._key_is_behind:
            self._key_is_behind = False
            return window.append(Batch(Form.SCRIPT, sequence=0, entries=[], lease=Lease.RENEW))
        if now_s >= self._renew_at_s:
            return self._beside(Form.RENEWAL, [])
        if self.queue:
            allowed = window.allowed_bytes(now_s, self.queue.size_bytes)
            if allowed:
                return self._cut(allowed)
            if self.queue.begins_with_a_barrier:
                return self._cut(0.0)
            self._held = True
            return None
        if self.releasing:
            return window.append(Batch(Form.SCRIPT, sequence=0, entries=[], lease=Lease.RELEASE))
        if self.check_wanted:
            return self._beside(Form.CHECK, [])
        return None

    def _cut(self, allowed_bytes: float) -> Batch:
        """Make a batch of what waits; see `SubmissionQueue.cut`."""
        limits = self._limits
        entries, freeing = self.queue.cut(
            batch_bytes=limits.batch_bytes,
            allowed_bytes=allowed_bytes,
            submissions=limits.batch_submissions,
        )
        self._held = self._held and bool(self.queue)
        if freeing is None:
            return self._beside(Form.CHECK, entries)
        form = Form.SCRIPT if freeing else Form.TRANSACTION
        return self.window.append(Batch(form, sequence=0, entries=entries))

    def _beside(self, form: Form, entries: list[Entry]) -> Batch:
        """What is no commit: it is not sent again, and the commit key stays as it is."""
        if form is Form.CHECK:
            self.check_wanted = False
        self._aside = Batch(form, sequence=self._acknowledged, entries=entries)
        return self._aside

    def answered(self, batch: Batch, answer: Answer, now_s: float) -> Effects:
        """Redis has answered the batch that was sent last.

        Raises:
            FencedError: another server has taken the store.
        """
        effects = Effects()
        self._aside = None
        if batch.form is Form.RENEWAL:
            self._renew(answer, now_s, effects)
        elif answer.refusal is not None:
            self._refuse(batch, answer, effects)
        elif batch.form is Form.CHECK:
            if (answer.commit or b"") == self._value:
                effects.committed = batch.entries
                effects.replies = []
            else:
                self.queue.put_back(batch.entries)
        elif answer.replies is not None:
            self._confirm(batch, answer.replies, effects)
            if answer.failed_commands:
                self._take_failures(batch, answer.failed_commands, effects)
        if (answer.commit or b"") != self._value:
            self._place(answer.commit, now_s, effects)
        self.counts.submissions_committed += len(effects.committed)
        return effects

    def connection_lost(self) -> None:
        """Whether the batch in flight was executed is unknown."""
        if self._phase is _KNOWN:
            self._phase = Phase.UNKNOWN
        if self._aside is not None:
            self.queue.put_back(self._aside.entries)
            self._aside = None

    def executed_in_doubt(self, value: bytes | None) -> Batch | None:
        """The batch whose replies were lost, if this value of the commit key says that it was
        executed: whether all its commands succeeded is for the caller to find out.
        """
        batch = self._unacknowledged()
        return batch if batch is not None and value == self.value_at(batch.sequence) else None

    def key_read(
        self, value: bytes | None, now_s: float, failed: Sequence[tuple[int, str]] = ()
    ) -> Effects:
        """A new connection watches the commit key, which has this value.

        ``failed`` are the commands of `executed_in_doubt` that cannot have succeeded, by index,
        and why.

        Raises:
            FencedError: another server has taken the store.
        """
        effects = Effects()
        self._phase = Phase.KNOWN
        in_doubt = self.executed_in_doubt(value)
        self._place(value, now_s, effects)
        if failed and in_doubt is not None:
            self._take_failures(in_doubt, failed, effects)
        self.counts.submissions_committed += len(effects.committed)
        return effects

    def forbid(self, reason: str | None) -> Effects:
        """Refuse all writes that are not acknowledged, for this reason. None: accept them again.

        Nothing may be in flight. What is acknowledged is still sent again, and reads go on.
        """
        effects = Effects()
        self.forbidden = reason
        if reason is None:
            return effects
        if self._unacknowledged() is not None:
            # It was in flight when the connection broke, and is not in the store.
            self.queue.put_back(self.window.pop().entries)
        owners = self.queue.writers()
        if owners:
            effects.error = UnavailableError(reason)
            effects.owners = list(owners.values())
            effects.refused += self.queue.remove_of(owners)
            self.counts.submissions_refused += len(effects.refused)
        return effects

    def close(self) -> tuple[list[Entry], list[Entry]]:
        """Accept nothing more.

        Returns what is in flight, outcome unknown, and what was never sent.
        """
        in_flight, queued = list(self._in_flight()), self.queue.clear()
        if self._phase is not _FENCED:
            self._phase = Phase.CLOSED
        return in_flight, queued

    # ------------------------------------------------------------ decisions

    def _confirm(self, batch: Batch, replies: list[object], effects: Effects) -> None:
        """The store has ``batch``, which was the next one."""
        self._position = batch.sequence
        self._value = self.value_at(batch.sequence)
        batch.confirmed_s = self._sent_s
        if batch.sequence > self._acknowledged:
            self._acknowledged = batch.sequence
            self.counts.commits += 1
            self.counts.committed_bytes += batch.size_bytes
            effects.committed = batch.entries
            effects.replies = replies
            batch.entries = []
            if batch.lease is Lease.RELEASE:
                self._phase = Phase.CLOSED
        self.window.trim(self._position, self._sent_s)

    def _renew(self, answer: Answer, now_s: float, effects: Effects) -> None:
        """A RENEWAL is answered: renewed, refused, or (no replies) the commit key has changed."""
        if answer.refusal is not None:
            self.counts.renewals_failed += 1
            self._renew_at_s = now_s + self._limits.renewal_s
            if answer.refusal.startswith(READ_ONLY):
                effects.reconnect = answer.refusal
        elif answer.replies is not None:
            self._renewed_s = self._sent_s
            self._renew_at_s = self._sent_s + self._limits.renewal_s
            self.window.trim(self._position, self._sent_s)

    def _refuse(self, batch: Batch, answer: Answer, effects: Effects) -> None:
        """Redis has executed nothing of ``batch``."""
        reason = str(answer.refusal)
        if batch.sequence <= self._acknowledged:
            # Acknowledged long ago: the only way out is to try until it is accepted.
            effects.reconnect = reason
            return
        self.window.pop()
        self.counts.refused += 1
        if reason.startswith(READ_ONLY):
            effects.reconnect = reason
        if batch.lease is Lease.RENEW:
            self._key_is_behind = True
            effects.reconnect = reason
            return
        if batch.lease is Lease.RELEASE:
            self._phase = Phase.CLOSED
            return
        owners = owners_of(batch, answer.refused_commands)
        effects.error = UnavailableError(f"Redis refused the commit: {reason}")
        effects.owners = list(owners.values())
        innocent, effects.refused = without(batch.entries, owners)
        # What they have queued was decided upon what is not in the store.
        effects.refused += self.queue.remove_of(owners)
        self.queue.put_back(innocent)
        self.counts.submissions_refused += len(effects.refused)

    def _take_failures(
        self, batch: Batch, failed: Sequence[tuple[int, str]], effects: Effects
    ) -> None:
        """``batch`` is in the store but for these commands."""
        effects.take_failures(batch, failed)
        effects.refused += self.queue.remove_of(effects.errors)
        self.counts.commands_failed += len(effects.damage)
        self.counts.submissions_refused += len(effects.refused)

    def _place(self, value: bytes | None, now_s: float, effects: Effects) -> None:
        """The commit key has this value: find where in our history the store is."""
        window = self.window
        newest, oldest = window.newest, window.oldest
        try:
            position = self._key.position_of(value)
            if position > window.newest_sequence:
                raise self._key.fenced(value)
        except (FencedError, UnusableStoreError):
            self._phase = Phase.FENCED
            raise
        if position > self._acknowledged:
            assert newest is not None
            effects.committed, newest.entries = newest.entries, []
            effects.replies = None
            self._acknowledged = position
            self.counts.commits += 1
            if newest.lease is Lease.RELEASE:
                self._phase = Phase.CLOSED
        # The store must have this one for what can be sent again to follow on it.
        needed = self._acknowledged if oldest is None else oldest.sequence - 1
        if position < needed and self._limits.refuse_loss:
            self._phase = Phase.UNKNOWN
            self.counts.losses_refused += 1
            effects.reconnect = (
                f"it came back {_older(value)} than what can be sent again, "
                "and DBOS_REFUSE_LOST_COMMITS is set"
            )
            return
        if position < needed:
            self._lose(needed - position, effects)
            position = needed
        self._position = position
        self._value = value or b""
        window.restart(position, now_s)

    def _lose(self, batches: int, effects: Effects) -> None:
        """Acknowledged commits are gone for good; later decisions may depend on them."""
        effects.lost_batches = batches
        self._key_is_behind = True
        self.counts.batches_lost += batches
        self.counts.reloads += 1
        effects.error = UnavailableError("Redis came back without commits it had acknowledged")
        if self._unacknowledged() is not None:
            effects.refused += self.window.pop().entries
        effects.refused += self.queue.clear()
        owners = {id(submission.owner): submission.owner for submission, _ in effects.refused}
        effects.owners = list(owners.values())
        self.counts.submissions_refused += len(effects.refused)


def _older(value: bytes | None) -> str:
    return "empty, and so older" if value is None else "older"
