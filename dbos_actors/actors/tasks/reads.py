"""Tasks read from Redis for callers: each as it was scheduled, and as the book knows it now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dbos_actors.actors.answers import found, guarded
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.messages import GetAgain, RedirectedCall
from dbos_actors.actors.tasks.responses import is_of, listed, overlaid
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import DamagedTaskError
from dbos_actors.errors import UnavailableError
from dbos_actors.runtime import DEFERRED, Call, Refusal, Turn
from dbos_actors.store import Store


class TaskReads:
    """Reads tasks and answers the calls that asked for them."""

    __slots__ = ("_commands", "_damaged", "_deliver", "_store")

    def __init__(
        self,
        store: Store,
        commands: TaskCommands,
        *,
        deliver: Callable[[Call], None],
        damaged: Callable[[list[TaskRecord]], None],
    ) -> None:
        """``deliver`` hands the actor a message; ``damaged`` is told of what cannot be read."""
        self._store = store
        self._commands = commands
        self._deliver = deliver
        self._damaged = damaged

    def answer_one(self, record: TaskRecord, turn: Turn, replies: object) -> Any:  # noqa: ARG002
        """Answer a turn's call with one task, read now."""
        call = turn.call

        def on_replies(replies: Any) -> None:
            if isinstance(replies, UnavailableError):
                call.fail(replies)
                return
            kept = replies[0][0]
            if kept is not None and is_of(kept, record):
                call.reply(found(overlaid(kept, record)))
            else:
                # Changed or deleted since, or damaged.
                self._deliver(RedirectedCall(call, GetAgain(record.task_id)))

        self._submit(call, [record], on_replies)
        return DEFERRED

    def answer_many(self, records: Sequence[TaskRecord], turn: Turn, replies: object) -> Any:  # noqa: ARG002
        """Answer a turn's call with these tasks, read now."""
        call = turn.call

        def on_replies(replies: Any) -> None:
            if isinstance(replies, UnavailableError):
                call.fail(replies)
                return
            response, damaged = listed(records, replies[0])
            self._damaged(damaged)
            call.reply(response)

        self._submit(call, records, on_replies)
        return DEFERRED

    def _submit(
        self, call: Call, records: Sequence[TaskRecord], on_replies: Callable[[Any], None]
    ) -> None:
        self._store.submit_read(
            [self._commands.fetch(records)],
            guarded(call, on_replies),
            reply_bytes=sum(record.size_bytes_max for record in records),
            deadline_s=call.deadline,
        )

    def in_commit(self, record: TaskRecord) -> Turn:
        """A turn that reads one task: as part of a commit, it sees what the book stands for."""
        return Turn(
            None, commands=[self._commands.fetch([record])], then=partial(_compared, record)
        )


def _compared(record: TaskRecord, _: Turn, replies: Sequence[Any] | None) -> bytes | Refusal:
    if replies is None:
        lost = "the connection to Redis was lost while the task was read"
        return Refusal(UnavailableError(lost))
    (kept,) = replies[0]
    if kept is None or not is_of(kept, record):
        return Refusal(DamagedTaskError(record.task_id))
    return found(overlaid(kept, record))
