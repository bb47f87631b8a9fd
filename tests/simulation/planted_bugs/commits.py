"""Planted bugs in commits: what is sent to Redis, and what is sent again."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from dbos_actors.errors import FencedError
from dbos_actors.store.batch import Answer, Wire
from dbos_actors.store.commit_history import CommitHistory, Phase
from dbos_actors.store.effects import Effects
from dbos_actors.store.replay_window import ReplayWindow
from dbos_actors.store.resp import pack
from tests.simulation.planted_bugs.registry import planted


@planted
def a_batch_is_not_a_transaction() -> Any:
    """No MULTI: what a cut connection leaves of it is half a batch."""

    async def send(self: Wire, connection: Any, batch: Any, after: bytes) -> Answer:
        payload = batch.body + pack("SET", self._commit_key, after) + self._watch_and_read
        count = batch.command_count
        replies = await connection.call(payload, count + 3)
        return Answer(replies[-1], replies=replies[:count])

    return patch.object(Wire, "_send_transaction", send)


@planted
def a_command_that_fails_in_a_commit_is_acknowledged() -> Any:
    """Redis does not roll back: what is told of as stored is half there."""
    return patch.object(CommitHistory, "_take_failures", lambda *_: None)


@planted
def ownership_is_not_checked_by_commits() -> Any:
    """No WATCH: a server that was taken over from goes on writing."""
    original = Wire.__init__

    def no_watch(self: Wire, **arguments: Any) -> None:
        original(self, **arguments)
        key = arguments["commit_key"]
        self._watch_and_read = pack("UNWATCH") + pack("GET", key)
        self._exec = pack("EXEC") + self._watch_and_read

    return patch.object(Wire, "__init__", no_watch)


@planted
def another_owner_is_not_noticed() -> Any:
    """A fenced server takes the other's commit key for its own."""
    place = CommitHistory._place

    def place_anyway(
        self: CommitHistory, value: bytes | None, now_s: float, effects: Effects
    ) -> None:
        try:
            place(self, value, now_s, effects)
        except FencedError:
            self._phase = Phase.KNOWN
            self._value = value or b""
            self._position = self._acknowledged

    return patch.object(CommitHistory, "_place", place_anyway)


@planted
def what_redis_lost_is_not_sent_again() -> Any:
    place = CommitHistory._place

    def forget(self: CommitHistory, value: bytes | None, now_s: float, effects: Effects) -> None:
        place(self, value, now_s, effects)
        self._position = max(self._position, self._acknowledged)

    return patch.object(CommitHistory, "_place", forget)


@planted
def a_commit_in_doubt_is_sent_again_unchecked() -> Any:
    """After a lost connection: as if the batch in flight had not been executed."""
    place = CommitHistory._place

    def as_if_not_executed(
        self: CommitHistory, value: bytes | None, now_s: float, effects: Effects
    ) -> None:
        in_flight = self._unacknowledged()
        entries = list(in_flight.entries) if in_flight is not None else []
        place(self, value, now_s, effects)
        if in_flight is not None and effects.committed and effects.committed == entries:
            self.queue.put_back(entries)
            effects.committed = []

    return patch.object(CommitHistory, "_place", as_if_not_executed)


@planted
def a_commit_in_doubt_counts_as_executed() -> Any:
    lost = CommitHistory.connection_lost

    def assume(self: CommitHistory) -> None:
        batch = self._unacknowledged()
        if batch is not None:
            for submission, _ in batch.entries:
                submission.committed(None)
            batch.entries = []
        lost(self)

    return patch.object(CommitHistory, "connection_lost", assume)


@planted
def batches_leave_the_replay_window_at_once() -> Any:
    def drop(self: ReplayWindow, position: int, accepted_s: float) -> None:
        while self._batches and self._batches[0].sequence <= position:
            self.size_bytes -= self._batches.popleft().size_bytes

    return patch.object(ReplayWindow, "trim", drop)


@planted
def batches_are_sent_again_in_the_wrong_order() -> Any:
    place = CommitHistory._place

    def shuffled(self: CommitHistory, value: bytes | None, now_s: float, effects: Effects) -> None:
        place(self, value, now_s, effects)
        missing = [b for b in self.window._batches if b.sequence > self._position]
        if len(missing) >= 2:
            bodies = [(b.body, b.form, b.command_count, b.lease) for b in reversed(missing)]
            for batch, (body, form, count, lease) in zip(missing, bodies, strict=True):
                batch.body, batch.form, batch.command_count, batch.lease = body, form, count, lease

    return patch.object(CommitHistory, "_place", shuffled)
