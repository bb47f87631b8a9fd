"""Actors under any sequence of messages, commits, refusals, crashes and departures.

The model is small, because the store is strict: a write that does not extend
what is committed fails there (`FakeStore`). What is left to check is what the
callers see, that order is kept, and that nothing is left behind.

Trio runs in a thread of its own for each example, with a clock that only the
rules move; each rule acts in it and lets every task run until all are blocked.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import outcome
import trio
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.errors import OverloadedError, RefusedError, UnavailableError
from dbos_actors.runtime import (
    DEFERRED,
    ActorCell,
    ActorLimits,
    Job,
    State,
    SupervisorLimits,
    Turn,
    TurnOwner,
)
from tests.runtime.fakes import (
    AWAY,
    MAIN,
    Actors,
    BugError,
    FakeCall,
    FakeStore,
    Recorder,
    Request,
    do_crash,
    do_job_write,
    do_read,
    do_refuse,
    do_write,
    do_write_and_then,
    event_command,
    raise_bug,
)

KEYS = st.sampled_from(["a", "b", "c"])
PARTS = st.sampled_from([MAIN, MAIN, "p", "q"])
LIMITS = SupervisorLimits(
    actor=ActorLimits(mailbox_messages=8, intensity=2, period_s=10.0, quarantine_s=30.0),
    max_resident=2,
    idle_s=60.0,
)


class TrioThread:
    """A Trio run in another thread, in which functions are run one at a time."""

    def __init__(self, main: Callable[[Callable[[], None]], Any], clock: MockClock) -> None:
        self._main = main
        self._clock = clock
        self._started = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        # What each step returned or raised, and None when the run has ended.
        self._results: queue.SimpleQueue[outcome.Outcome[Any] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        def started() -> None:
            self._token = trio.lowlevel.current_trio_token()
            self._started.set()

        try:
            trio.run(self._main, started, clock=self._clock)
        except BaseException as error:  # noqa: BLE001 - raised again where the test runs
            self._error = error
        finally:
            self._started.set()
            self._results.put(None)

    def step(self, act: Callable[[], Any]) -> Any:
        """Run ``act`` and then every task until all are blocked."""

        async def run() -> None:
            result = outcome.capture(act)
            await wait_all_tasks_blocked()
            self._results.put(result)

        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(trio.lowlevel.spawn_system_task, run)
        result = self._results.get(timeout=10)
        if result is None:
            self.join()
            raise AssertionError("the actors ended")
        return result.unwrap()

    def end(self, stop: Callable[[], None]) -> None:
        """Run ``stop`` and wait for the run to end; raises what it ended with."""
        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(stop)
        self.join()

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


class ActorsMachine(RuleBasedStateMachine):
    """What may happen to actors, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.store = FakeStore()
        self.actors = Actors(self.store, LIMITS)
        self.clock = MockClock()
        self.stop: trio.Event | None = None
        self.calls: list[tuple[str, FakeCall]] = []
        self.given_up: dict[int, int] = {}
        self.problems: list[Any] = []
        self.logs = capture_logs()
        self.logs.__enter__()
        self.trio = TrioThread(self._run_actors, self.clock)

    async def _run_actors(self, started: Callable[[], None]) -> None:
        self.stop = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.actors.supervisor.run)
            started()
            await self.stop.wait()
            nursery.cancel_scope.cancel()

    # ------------------------------------------------------------ callers

    def _send(self, key: str, act: Callable[[Recorder, Request], Turn | Job], part: str) -> None:
        tag = len(self.calls)
        call = FakeCall(Request(act, part, tag), on_answer=lambda c: self._answered(key, c))
        self.calls.append((key, call))
        self.actors.send(call, to=key)

    def _answered(self, key: str, call: FakeCall) -> None:
        """What a caller is told is true at that moment and stays so."""
        request = call.request
        answer = call.answer
        committed = self.store.value(key, request.part)
        if isinstance(answer, Exception) or answer is None:
            problem = False
        elif request.act is do_read:
            problem = committed[: len(answer)] != answer
            problem |= not (self.store.is_current or self.store.committing)
        elif request.act is do_job_write:
            problem = committed[-2:] != ((request.tag, "first"), (request.tag, "second"))
        else:
            problem = request.tag not in committed
        if problem:
            # Not raised: who answers would take it for a bug of the actor's.
            self.problems.append((key, call, committed))

    @rule(key=KEYS, part=PARTS)
    def a_caller_writes(self, key: str, part: str) -> None:
        self.trio.step(lambda: self._send(key, do_write, part))

    @rule(key=KEYS, part=PARTS)
    def a_caller_reads(self, key: str, part: str) -> None:
        self.trio.step(lambda: self._send(key, do_read, part))

    @rule(
        key=KEYS,
        parts=st.lists(PARTS, min_size=2, max_size=12),
        acts=st.lists(
            st.sampled_from([do_write, do_write, do_read, do_crash, do_job_write]),
            min_size=1,
            max_size=4,
        ),
    )
    def a_burst_arrives(
        self,
        key: str,
        parts: list[str],
        acts: list[Callable[[Recorder, Request], Turn | Job]],
    ) -> None:
        def send() -> None:
            for position, part in enumerate(parts):
                self._send(key, acts[position % len(acts)], part)

        self.trio.step(send)

    @rule(key=KEYS, part=PARTS, act=st.sampled_from([do_crash, do_refuse]))
    def a_handler_raises(
        self, key: str, part: str, act: Callable[[Recorder, Request], Turn]
    ) -> None:
        self.trio.step(lambda: self._send(key, act, part))

    @rule(key=KEYS, part=PARTS)
    def a_turn_will_raise_after_its_commit(self, key: str, part: str) -> None:
        self.trio.step(lambda: self._send(key, do_write_and_then(raise_bug), part))

    @rule(key=KEYS, part=PARTS)
    def a_turn_will_commit_an_event_before_it_answers(self, key: str, part: str) -> None:
        def act(actor: Recorder, request: Request) -> Turn:
            def then(turn: Turn, replies: Sequence[object] | None) -> Any:
                event = Turn(request.tag, commands=[event_command(request.tag)])
                actor.cell.submit(event, turn.call)
                return DEFERRED

            return do_write_and_then(then)(actor, request)

        self.trio.step(lambda: self._send(key, act, part))

    @rule(key=KEYS, part=PARTS)
    def a_caller_asks_for_a_job(self, key: str, part: str) -> None:
        self.trio.step(lambda: self._send(key, do_job_write, part))

    @rule(key=KEYS, part=PARTS)
    def a_turn_sends_a_message_to_its_own_actor(self, key: str, part: str) -> None:
        def act(actor: Recorder, request: Request) -> Turn:
            self._send(key, do_write, part)
            return Turn(None) if part == MAIN else do_refuse(actor, request)

        self.trio.step(lambda: self._send(key, act, part))

    @rule(key=KEYS, part=PARTS)
    def a_caller_sends_again_the_moment_it_is_answered(self, key: str, part: str) -> None:
        def send() -> None:
            tag = len(self.calls)
            call = FakeCall(Request(do_write, part, tag))
            call.on_answer = lambda _: self._send(key, do_read, part)
            self.calls.append((key, call))
            self.actors.send(call, to=key)

        self.trio.step(send)

    @rule(index=st.integers(0, 30))
    @precondition(lambda self: any(not call.answered for _, call in self.calls))
    def a_caller_goes_away(self, index: int) -> None:
        waiting = [call for _, call in self.calls if not call.answered]
        call = waiting[index % len(waiting)]
        call.answered = True
        call.answers.append(None)
        self.given_up[id(call)] = self.given_up.get(id(call), 0) + 1

    # ----------------------------------------------------------- the store

    @rule(turns=st.integers(1, 6), lose_replies=st.booleans())
    @precondition(lambda self: self.store.queue)
    def a_batch_is_committed(self, turns: int, lose_replies: bool) -> None:
        self.trio.step(lambda: self.store.commit(turns, lose_replies=lose_replies))

    @rule(turns=st.integers(1, 6))
    @precondition(lambda self: self.store.queue)
    def a_batch_is_refused(self, turns: int) -> None:
        self.trio.step(lambda: self.store.refuse(turns))

    @rule(index=st.integers(0, 30))
    @precondition(lambda self: self.store.queue)
    def a_turn_is_given_up(self, index: int) -> None:
        turn = self.store.queue[index % len(self.store.queue)]
        call = turn.call
        if isinstance(call, FakeCall):
            self.given_up[id(call)] = self.given_up.get(id(call), 0) + 1
        self.trio.step(lambda: turn.give_up(AWAY))

    @rule()
    def the_store_catches_up(self) -> None:
        self._settle()

    @rule(is_current=st.booleans())
    def the_store_is_in_doubt_or_not(self, is_current: bool) -> None:
        self.store.is_current = is_current

    @rule()
    def the_commit_queue_has_no_room_for_the_next_turn(self) -> None:
        self.store.refuses_next = True

    @rule(error=st.sampled_from([AWAY, BugError()]))
    def the_next_load_will_fail(self, error: Exception) -> None:
        self.store.next_load_error = error

    @rule()
    def loads_take_long(self) -> None:
        if self.store.loads_may_finish.is_set():
            self.store.loads_may_finish = trio.Event()

    @rule()
    def loads_finish(self) -> None:
        self.trio.step(self.store.loads_may_finish.set)

    @rule(index=st.integers(0, 30), error=st.sampled_from([None, None, None, AWAY]))
    @precondition(lambda self: self.store.fetches)
    def a_part_arrives(self, index: int, error: UnavailableError | None) -> None:
        self.trio.step(lambda: self.store.arrive(index % len(self.store.fetches), error))

    @rule(key=KEYS, part=st.sampled_from(["p", "q"]))
    def a_part_leaves_memory(self, key: str, part: str) -> None:
        cell = self.actors.supervisor.get(key)
        if cell is not None and not cell.uncommitted:
            self.actors.actor(key).parts.pop(part, None)

    # ------------------------------------------------- the actors' lives

    @rule()
    def every_actor_is_to_load_again(self) -> None:
        self.trio.step(self.actors.supervisor.reload_all)

    @rule(key=KEYS)
    def an_actor_is_asked_to_leave(self, key: str) -> None:
        cell = self.actors.supervisor.get(key)
        if cell is not None:
            self.trio.step(cell.passivate)

    @rule(seconds=st.sampled_from([1.0, 5.0, 31.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.trio.step(lambda: self.clock.jump(seconds))

    # ----------------------------------------------------------- invariants

    @invariant()
    def nobody_is_told_what_is_not_committed(self) -> None:
        assert not self.problems
        assert not self.store.problems

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        for _, call in self.calls:
            assert len(call.answers) <= 1 + self.given_up.get(id(call), 0)

    @invariant()
    def accepted_writes_are_in_the_order_they_were_sent(self) -> None:
        for value in self.store.data.values():
            tags = [tag[0] if isinstance(tag, tuple) else tag for tag in value]
            assert tags == sorted(tags)

    @invariant()
    def the_bounds_hold(self) -> None:
        statistics = self.actors.supervisor.statistics()
        # One more: a job that had not begun and has its place in the mailbox again.
        assert statistics.mailbox_messages_max <= LIMITS.actor.mailbox_messages + 1
        assert statistics.resident <= LIMITS.max_resident

    @invariant()
    def what_is_uncommitted_is_in_the_queue(self) -> None:
        queued: dict[TurnOwner, int] = {}
        for turn in self.store.queue:
            queued[turn.owner] = queued.get(turn.owner, 0) + 1
        for cell in self._cells():
            assert cell.uncommitted == queued.get(cell, 0)

    @invariant()
    def no_idle_actor_has_messages_waiting(self) -> None:
        for cell in self._cells():
            if cell.state is State.READY:
                assert not cell.mailbox
                if cell.waiting:
                    assert any(fetch.actor is cell.behaviour for fetch in self.store.fetches)

    def _cells(self) -> list[ActorCell]:
        return list(self.actors.supervisor._cells.values())

    # --------------------------------------------------------------- the end

    def teardown(self) -> None:
        try:
            self._settle()
            self._check_the_end()
        finally:
            assert self.stop is not None
            self.trio.end(self.stop.set)
            self.logs.__exit__(None, None, None)

    def _settle(self) -> None:
        self.store.is_current = True
        self.store.refuses_next = False
        self.store.next_load_error = None
        self.trio.step(self.store.loads_may_finish.set)
        while self.store.queue or self.store.fetches:
            if self.store.fetches:
                self.trio.step(self.store.arrive)
            else:
                self.trio.step(self.store.commit)

    def _check_the_end(self) -> None:
        self.nobody_is_told_what_is_not_committed()
        self.nobody_is_answered_twice()
        self.accepted_writes_are_in_the_order_they_were_sent()
        for key, call in self.calls:
            assert call.answered, "left without an answer"
            answer, request = call.answer, call.request
            if isinstance(answer, Exception):
                kinds = (RefusedError, OverloadedError, UnavailableError, BugError)
                assert isinstance(answer, kinds)
            elif request.act is do_write and answer is not None:
                assert request.tag in self.store.value(key, request.part), "lost"
        assert self.actors.supervisor.statistics().mailbox_bytes == 0
        for cell in self._cells():
            assert cell.uncommitted == 0
            assert cell.waiting == 0
            assert cell.state in (State.READY, State.QUARANTINED)
            if cell.state is State.READY:
                for part, value in self.actors.actor(cell.key).parts.items():
                    assert value == self.store.value(cell.key, part), "memory is not the store's"
        for _ in range(5):
            self.trio.step(lambda: self.clock.jump(LIMITS.idle_s))
        assert self.actors.supervisor.statistics().resident == 0
        nursery = self.actors.supervisor._nursery
        assert nursery is not None
        assert not nursery.child_tasks
        assert all(actor.is_released for actor in self.actors.made)


TestActors = ActorsMachine.TestCase
TestActors.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
