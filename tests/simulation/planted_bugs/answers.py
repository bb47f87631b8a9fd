"""Planted bugs in what a client is told: answers before the commit, reads of what may be undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from dbos_actors.errors import RefusedError, UnavailableError
from dbos_actors.runtime.actor_cell import ActorCell
from dbos_actors.runtime.turn import Turn
from dbos_actors.store.commit_history import CommitHistory
from dbos_actors.store.committer import Committer
from dbos_actors.store.reader import Reader
from tests.simulation.planted_bugs.registry import planted


@planted
def acknowledged_before_it_is_committed() -> Any:
    submit = Committer.submit

    def submit_and_answer(self: Committer, submission: Any) -> None:
        submit(self, submission)
        if isinstance(submission, Turn) and submission.commands and submission.then is None:
            submission.call.reply(submission.answer)

    return patch.object(Committer, "submit", submit_and_answer)


@planted
def acknowledged_when_it_is_refused() -> Any:
    refused = Turn.refused

    def reply(self: Turn, error: UnavailableError) -> None:
        if self.answer is not None:
            self.call.reply(self.answer)
        refused(self, error)

    return patch.object(Turn, "refused", reply)


@planted
def uncommitted_state_is_read() -> Any:
    return patch.object(ActorCell, "ahead", property(lambda _: 0, lambda *_: None))


@planted
def a_refusal_tells_of_uncommitted_state() -> Any:
    def refuse(self: ActorCell, call: Any, error: RefusedError) -> None:
        call.fail(error)

    return patch.object(ActorCell, "_refuse", refuse)


@planted
def reads_from_memory_do_not_check_the_lease() -> Any:
    return patch.object(Committer, "is_current", property(lambda _: True))


@planted
def a_store_that_came_back_older_is_read_before_it_is_rolled_forward() -> Any:
    """Neither of the two guards: what is in doubt is read, on connections nobody has checked."""

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(CommitHistory, "in_sync", property(lambda _: True)),
            patch.object(Reader, "_expect_current", lambda *_: None),
        ):
            yield

    return plant()


@planted
def reads_do_not_follow_the_commits_to_a_new_server() -> Any:
    """A read connection is kept when the commit connection is replaced, and not checked."""

    async def any_connection(self: Reader) -> Any:
        if self._connection is None:
            self._connection = await self._connect()
        self._generation = self._committer.generation
        return self._connection

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(Reader, "_current_connection", any_connection),
            patch.object(Reader, "_expect_current", lambda *_: None),
        ):
            yield

    return plant()
