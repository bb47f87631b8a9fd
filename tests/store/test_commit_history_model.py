"""The history against a model of Redis that dies, forgets and refuses at any step."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dbos_actors.errors import FencedError, OverloadedError, UnavailableError, UnusableStoreError
from dbos_actors.store.batch import Answer, Batch, Form
from dbos_actors.store.commit_history import CommitHistory, HistoryLimits, Phase
from dbos_actors.store.effects import Effects
from dbos_actors.store.resp import pack

EPOCH = 7
BASE = b"3:40"
LIMITS = HistoryLimits(
    batch_submissions=4,
    batch_bytes=400,
    queue_bytes=8_000,
    replay_s=5.0,
    replay_bytes=10_000,
    lease_s=5.0,
    renewal_s=1.0,
)


class ModelOwner:
    def __init__(self, name: str) -> None:
        self.key = name
        self.refusals = 0

    def store_refused(self, error: UnavailableError) -> None:
        raise NotImplementedError


class ModelSubmission:
    """Knows its place in its owner's order; the store never calls it here, the test does."""

    def __init__(self, number: int, owner: ModelOwner, commands: int, *, freeing: bool) -> None:
        self.number = number
        self.owner = owner
        self.commands = [pack("SET", f"{number}", i) for i in range(commands)]
        self.size_bytes = sum(map(len, self.commands))
        self.deadline_s = None
        self.frees_memory = freeing
        self.outcomes: list[str] = []

    def committed(self, replies: object) -> None:
        raise NotImplementedError

    def refused(self, error: UnavailableError) -> None:
        raise NotImplementedError

    def give_up(self, error: UnavailableError) -> None:
        raise NotImplementedError


@dataclass
class ModelRedis:
    """The commit key and, for each commit that moved it, the commands that came with it."""

    key: bytes | None = BASE
    applied: list[tuple[bytes, bytes]] = field(default_factory=list)
    # When each of them was applied to the Redis that runs now.
    times_s: list[float] = field(default_factory=list)
    now_s: float = 0.0
    # Rises with every write to the key, as WATCH sees it.
    version: int = 0
    watched: int = 0

    def execute(self, batch: Batch, before: bytes, after: bytes) -> Answer:
        if batch.form is Form.CHECK:
            return Answer(self.key, replies=[])
        if batch.form is Form.RENEWAL:
            return Answer(self.key, replies=[] if (self.key or b"") == before else None)
        if batch.form is Form.SCRIPT:
            accepted = (self.key or b"") == before
        else:
            accepted = self.watched == self.version
        if accepted:
            self.write(after, batch.body)
        self.watched = self.version
        return Answer(self.key, replies=[b"OK"] * batch.command_count if accepted else None)

    def write(self, value: bytes | None, body: bytes = b"") -> None:
        self.key = value
        self.version += 1
        if value is not None:
            self.applied.append((value, body))
            self.times_s.append(self.now_s)

    def arm(self) -> bytes | None:
        self.watched = self.version
        return self.key

    def forget(self, commits: int) -> None:
        """Restart from an older state; 0 forgets none."""
        if commits:
            del self.applied[-commits:]
            del self.times_s[-commits:]
        self.key = self.applied[-1][0] if self.applied else BASE
        self.version += 1

    def numbers(self) -> list[int]:
        """Which submissions are applied, in order, once per command."""
        found: list[int] = []
        for _, body in self.applied:
            # Both forms hold the argument after SET, the submission's number, as a bulk string.
            parts = body.split(b"\r\n")
            found += [int(parts[i + 2]) for i, part in enumerate(parts) if part == b"SET"]
        return found


class LedgerMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.now_s = 100.0
        self.redis = ModelRedis(now_s=self.now_s)
        self.history = CommitHistory(base=BASE, epoch=EPOCH, limits=LIMITS, now_s=self.now_s)
        self.redis.write(b"%d:0" % EPOCH)
        self.redis.arm()
        self.owners = [ModelOwner("a"), ModelOwner("b"), ModelOwner("c")]
        self.submissions: list[ModelSubmission] = []
        self.fenced = False
        self.lost = 0
        # Redis lost more than it may.
        self.reckless = False

    # ----------------------------------------------------------- what comes in

    @rule(
        turns=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=6)
    )
    def submit(self, turns: list[tuple[int, int, bool]]) -> None:
        for owner, commands, freeing in turns:
            self._submit(owner, commands, freeing=freeing)

    def _submit(self, owner: int, commands: int, *, freeing: bool) -> None:
        number = len(self.submissions) + 1
        submission = ModelSubmission(number, self.owners[owner], commands, freeing=freeing)
        try:
            self.history.submit(submission, self.now_s)
        except OverloadedError:
            full = self.history.queue.size_bytes + submission.size_bytes > LIMITS.queue_bytes - 300
            assert full or self.history.held
        except UnavailableError:
            assert self.fenced
        else:
            self.submissions.append(submission)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.redis.now_s = self.now_s

    # ------------------------------------------------------------ a round trip

    def _can_send(self) -> bool:
        return not self.fenced and self.history.phase is Phase.KNOWN

    @precondition(_can_send)
    @rule(fault=st.sampled_from(["none", "none", "none", "before", "after"]))
    def exchange(self, fault: str) -> None:
        batch = self.history.next_batch(self.now_s)
        if batch is None:
            return
        if fault == "before":
            self.history.connection_lost()
            return
        before, after = self.history.key_value, self.history.value_at(batch.sequence)
        answer = self.redis.execute(batch, before, after)
        if fault == "after":
            self.history.connection_lost()
            return
        self._answer(batch, answer)

    @precondition(_can_send)
    @rule(guilty=st.integers(0, 5), reason=st.sampled_from(["OOM", "READONLY", "ERR"]))
    def refuse(self, guilty: int, reason: str) -> None:
        batch = self.history.next_batch(self.now_s)
        if batch is None:
            return
        if batch.form is Form.CHECK:
            self._answer(batch, Answer(self.redis.key, replies=[]))
            return
        refused = (guilty,) if guilty < batch.command_count else ()
        self._answer(
            batch, Answer(self.redis.key, refusal=f"{reason} no", refused_commands=refused)
        )

    @precondition(lambda self: not self.fenced and self.history.phase is Phase.UNKNOWN)
    @rule()
    def reconnect(self) -> None:
        self._apply(lambda: self.history.key_read(self.redis.arm(), self.now_s))

    # -------------------------------------------------------- what goes wrong

    @rule(seconds=st.sampled_from([0.0, 1.0, 2.0]))
    def redis_restarts(self, seconds: float) -> None:
        lost = [at_s for at_s in self.redis.times_s if at_s > self.now_s - seconds]
        self.redis.forget(len(lost))
        if not self.fenced:
            self.history.connection_lost()

    @rule(commits=st.integers(0, 12))
    def redis_comes_back_from_a_backup(self, commits: int) -> None:
        self.reckless = True
        self.redis.forget(commits)
        if not self.fenced:
            self.history.connection_lost()

    @rule()
    def redis_is_flushed(self) -> None:
        self.reckless = True
        self.redis.applied.clear()
        self.redis.times_s.clear()
        self.redis.write(None)

    @rule(epoch=st.sampled_from([4, 8, 70]))
    def another_server_takes_over(self, epoch: int) -> None:
        if epoch == 4 and any(int(v.split(b":")[0]) > 4 for v, _ in self.redis.applied):
            return  # it starts from what it finds
        self.redis.write(b"%d:0" % epoch)

    # ---------------------------------------------------------------- helpers

    def _answer(self, batch: Batch, answer: Answer) -> None:
        self._apply(lambda: self.history.answered(batch, answer, self.now_s))

    def _apply(self, event: object) -> None:
        assert callable(event)
        try:
            effects: Effects = event()
        except FencedError:
            self.fenced = True
            assert any(not value.startswith(b"7:") for value, _ in self.redis.applied)
            return
        for submission, _ in effects.committed:
            submission.outcomes.append("committed")  # type: ignore[attr-defined]
        if effects.replies is not None:
            commands = sum(len(submission.commands) for submission, _ in effects.committed)
            assert len(effects.replies) == commands
        refused = {id(submission.owner) for submission, _ in effects.refused}
        for submission, _ in effects.refused:
            submission.outcomes.append("refused")  # type: ignore[attr-defined]
        assert refused <= {id(owner) for owner in effects.owners}
        assert len(effects.owners) == len({id(owner) for owner in effects.owners})
        waiting = {id(submission.owner) for submission, _ in self.history.waiting()}
        assert not waiting & {id(owner) for owner in effects.owners}
        self.lost += effects.lost_batches
        assert self.reckless or not self.lost
        if effects.reconnect is not None:
            self.history.connection_lost()

    # -------------------------------------------------------------- invariants

    @invariant()
    def every_submission_has_one_outcome_or_still_waits(self) -> None:
        waiting = [submission for submission, _ in self.history.waiting()]
        assert len(waiting) == len({id(submission) for submission in waiting})
        for submission in self.submissions:
            if not self.fenced:  # then the last effects are nobody's business any more
                assert len(submission.outcomes) == (0 if submission in waiting else 1)
            assert len(submission.outcomes) <= 1

    @invariant()
    def the_queue_accounts_for_its_bytes(self) -> None:
        assert self.history.queue.size_bytes >= 0
        if not self.history.queue:
            assert self.history.queue.size_bytes == 0

    @invariant()
    def submissions_of_an_owner_wait_in_order(self) -> None:
        for owner in self.owners:
            numbers = [s.number for s, _ in self.history.waiting() if s.owner is owner]  # type: ignore[attr-defined]
            assert numbers == sorted(numbers)

    @invariant()
    def nothing_is_applied_twice_or_although_refused(self) -> None:
        applied = self.redis.numbers()
        commands = {s.number: len(s.commands) for s in self.submissions}
        assert all(applied.count(number) == commands[number] for number in set(applied))
        refused = {s.number for s in self.submissions if s.outcomes == ["refused"]}
        assert self.lost or not refused & set(applied)

    @invariant()
    def what_an_owner_wrote_is_applied_in_order(self) -> None:
        applied = self.redis.numbers()
        for owner in self.owners:
            own = {s.number for s in self.submissions if s.owner is owner}
            mine = [number for number in applied if number in own]
            assert mine == sorted(mine)

    def teardown(self) -> None:
        """Leave Redis alone: it ends up with everything acknowledged, or the loss is known."""
        if not hasattr(self, "history"):
            return
        for _ in range(1_000):
            if self.fenced:
                return
            if self.history.phase is Phase.UNKNOWN:
                self.reconnect()
            batch = None if self.fenced else self.history.next_batch(self.now_s)
            if batch is None and not self.history.queue:
                break
            if batch is not None:
                before, after = self.history.key_value, self.history.value_at(batch.sequence)
                self._answer(batch, self.redis.execute(batch, before, after))
            self.time_passes(0.2)
        else:
            raise AssertionError("does not come to rest")
        if self.fenced:
            return
        assert self.history.in_sync
        assert not list(self.history.waiting())
        self.every_submission_has_one_outcome_or_still_waits()
        if not self.lost:
            committed = [
                s.number
                for s in self.submissions
                if s.outcomes == ["committed"]
                for _ in s.commands
            ]
            assert sorted(self.redis.numbers()) == committed


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_commit_key_of_another_form_is_damaged() -> None:
    history = CommitHistory(base=None, epoch=1, limits=LIMITS, now_s=0.0)
    history.connection_lost()
    with pytest.raises(UnusableStoreError):
        history.key_read(b"hello", 0.0)


def test_a_queue_that_keeps_the_window_full_comes_to_rest() -> None:
    """Catches renewals that are kept: one a look fills the window for good."""
    machine = LedgerMachine()
    machine.start()
    for _ in range(6):
        machine.exchange("none")
    machine.redis_comes_back_from_a_backup(0)
    for turns in (
        [(1, True), (2, False), (3, True), (3, False), (3, True)],
        [(0, False), (0, False), (0, False), (1, True), (3, False)],
        [(1, True), (1, False), (1, True)],
        [(1, False), (1, True), (2, False), (3, True)],
        [(1, False)],
    ):
        machine.submit([(0, commands, freeing) for commands, freeing in turns])
    machine.teardown()
