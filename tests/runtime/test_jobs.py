"""Jobs: work of one actor that takes several turns and has the actor to itself."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dbos_actors.errors import RefusedError, UnavailableError
from dbos_actors.runtime import AGAIN, ActorLimits, Job, JobCell, State, Turn
from tests.runtime.fakes import (
    AWAY,
    REFUSED,
    BugError,
    FakeCall,
    Recorder,
    Request,
    call,
    do_job_write,
    do_write,
    do_write_and_then,
    raise_bug,
    read,
    running,
    write,
)

# ------------------------------------------------------------------- jobs


async def test_a_job_has_the_actor_to_itself_and_settled_state() -> None:
    async with running() as actors:
        await actors.ready()
        one, job, two = write(1), call(do_job_write, "job"), write(2)
        actors.send(one, job, two)
        await wait_all_tasks_blocked()
        assert len(actors.store.queue) == 1
        actors.store.commit()
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.BUSY
        assert not two.answered
        await actors.settle()
        assert job.answer == "job"
        assert actors.store.value("a") == (1, ("job", "first"), ("job", "second"), 2)


async def test_a_job_whose_commit_is_refused_fails_and_the_actor_loads_again() -> None:
    async with running() as actors:
        await actors.ready()
        job, after = call(do_job_write, "job"), read()
        actors.send(job, after)
        await wait_all_tasks_blocked()
        actors.store.commit()
        await wait_all_tasks_blocked()
        actors.store.refuse()
        await actors.settle()
        assert job.answer is REFUSED
        assert after.answer == (("job", "first"),)


@pytest.mark.parametrize("ending", ["refusal", "crash"])
async def test_a_job_is_decided_again_when_a_turn_before_it_is_taken_back(ending: str) -> None:
    # Mutation: let a job that has not begun run on the state it was decided on.
    async with running() as actors:
        await actors.ready()
        decided_on: list[Any] = []

        def act(actor: Recorder, request: Request) -> Job:
            decided_on.append(actor.parts["main"])
            return do_job_write(actor, request)

        first = write(1) if ending == "refusal" else call(do_write_and_then(raise_bug), 1)
        job, after = call(act, "job"), write(2)
        actors.send(first, job, after)
        if ending == "refusal":
            actors.store.refuse()
        else:
            actors.store.commit()
        await actors.settle()
        there = () if ending == "refusal" else (1,)
        assert decided_on == [(1,), there]
        assert job.answer == "job"
        assert actors.store.value("a") == (*there, ("job", "first"), ("job", "second"), 2)


async def test_a_job_that_has_not_begun_fails_when_its_actor_is_quarantined() -> None:
    async with running(actor=ActorLimits(intensity=0)) as actors:
        await actors.ready()
        job = call(do_job_write, "job")
        actors.send(call(do_write_and_then(raise_bug), 1), job)
        actors.store.commit()
        assert isinstance(job.answer, UnavailableError)
        await wait_all_tasks_blocked()
        assert actors.cell().state is State.QUARANTINED


async def test_a_job_may_have_its_message_come_again_before_all_others() -> None:
    async with running() as actors:
        await actors.ready()
        jobs = 0

        def act(actor: Recorder, request: Request) -> Turn | Job:
            nonlocal jobs
            if jobs:
                return do_write(actor, request)
            jobs += 1

            async def prepare(cell: JobCell) -> Any:
                await trio.lowlevel.checkpoint()
                return AGAIN

            return Job(prepare)

        prepared, other = call(act, 1), write(2)
        actors.send(prepared, other)
        await actors.settle()
        assert (prepared.answer, other.answer) == (1, 2)
        assert actors.store.value("a") == (1, 2)


async def test_a_job_nobody_waits_for_any_more_does_not_begin() -> None:
    async with running() as actors:
        await actors.ready()
        job = call(do_job_write, "job")
        actors.send(write(1), job)
        job.answered = True
        await actors.settle()
        assert actors.store.value("a") == (1,)


@pytest.mark.parametrize(
    ("error", "kind"), [(BugError(), BugError), (RefusedError("no"), RefusedError), (AWAY, None)]
)
async def test_a_job_that_raises_fails_its_caller_alone(
    error: Exception, kind: type | None
) -> None:
    async with running() as actors:
        await actors.ready()

        async def run(cell: JobCell) -> Any:
            raise error

        job, after = call(lambda *_: Job(run)), read()
        actors.send(job, after)
        await actors.settle()
        assert isinstance(job.answer, kind or UnavailableError)
        assert after.answer == ()


async def test_a_jobs_answer_that_cannot_be_sent_does_not_end_the_supervisor() -> None:
    # Mutation: reply outside of the `try`.
    class Unsendable(FakeCall):
        def reply(self, message: Any) -> None:
            raise BugError

    async with running() as actors:
        await actors.ready()
        job, after = Unsendable(Request(do_job_write, tag="job")), read()
        actors.send(job, after)
        await actors.settle()
        assert isinstance(job.answer, BugError)
        assert len(after.answer) == 2


async def test_a_reload_during_a_job_lets_it_finish_and_then_loads() -> None:
    async with running() as actors:
        await actors.ready()
        job, after = call(do_job_write, "job"), read()
        actors.send(job, after)
        await wait_all_tasks_blocked()
        actors.supervisor.reload_all()
        await actors.settle()
        assert job.answer == "job"
        assert len(after.answer) == 2


async def test_a_job_may_give_up_waiting_for_a_commit_that_happens_later() -> None:
    async with running() as actors:
        await actors.ready()
        job, after = call(do_job_write, "job"), read()
        actors.send(job, after)
        await wait_all_tasks_blocked()
        actors.store.queue[0].give_up(AWAY)
        await wait_all_tasks_blocked()
        assert job.answer is AWAY
        assert not after.answered
        actors.store.commit()
        await wait_all_tasks_blocked()
        assert after.answer == (("job", "first"),)
