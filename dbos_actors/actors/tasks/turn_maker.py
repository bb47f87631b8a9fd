"""How a change of the task book becomes a turn of the actor: journal entry, events, commands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final

from dbos_actors.actors.event_log import EventLog
from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.actors.tasks.context import SchedulerContext
from dbos_actors.actors.tasks.rewind import RewindableTurn
from dbos_actors.api.messages import Task
from dbos_actors.domain import events
from dbos_actors.domain.tasks.book import TaskBook
from dbos_actors.domain.tasks.change import Change, Outcome
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.domain.tasks.states import Status
from dbos_actors.runtime import Turn

CHANGE: Final = 0
"""The part of the actor's state that a `Change` is for: the book."""


class TurnMaker:
    """Begins changes of one book, and makes turns of them."""

    __slots__ = ("_commands", "_log", "book", "context")

    def __init__(self, context: SchedulerContext, commands: TaskCommands, book: TaskBook) -> None:
        self.context = context
        self.book = book
        self._commands = commands
        self._log = EventLog(context.store, events_max=context.events_max)

    def make(
        self,
        change: Change,
        answer: Any,
        *,
        commands: Iterable[bytes] = (),
        changes: Sequence[tuple[Hashable, Any]] = (),
        then: Callable[[Turn, Sequence[object] | None], Any] | None = None,
        frees_memory: bool = False,
    ) -> Turn:
        """The turn that makes ``change``; its own ``commands`` come first in it."""
        if not change:
            return Turn(answer)
        entry = self.book.seal(change)
        written = [*commands, self._commands.journal(change.sequence, entry)]
        written += self._events(change)
        turn = RewindableTurn(
            answer,
            commands=written,
            changes=((CHANGE, change), *changes),
            then=then,
            frees_memory=frees_memory,
        )
        turn.change, turn.rewind = change, self.context.rewind
        return turn

    def _events(self, change: Change) -> Iterable[bytes]:
        now_s = int(change.now.wall_s)
        appended = self._log.appended
        return [
            appended(_event(outcome, now_s))
            for outcome in change.outcomes
            if outcome.status is not Status.GONE
        ]

    def keep(self, task: Task, *, scheduled_at: int, created_at: int) -> bytes:
        """The command that writes a task as it is scheduled, at these times in Unix seconds."""
        kept = Task(
            id=task.id,
            agent_id=task.agent_id,
            module_name=task.module_name,
            payload=task.payload,
            scheduled_at=scheduled_at,
            created_at=created_at,
        )
        return self._commands.keep(kept)

    def event(self, name: str, record: TaskRecord, message: str, now_s: int) -> bytes:
        """The command that appends an event about one task; part of the turn made next."""
        about = {
            "task_id": record.task_id,
            "agent_id": record.agent_id,
            "module_name": record.module_name,
        }
        return self._log.appended(events.event(name, message, about, now_s))

    def begin(self) -> Change:
        return self.book.begin(self.context.clock.now())


def _event(outcome: Outcome, now_s: int) -> bytes:
    """What `events.event` would make of it, in a third of the time: there is one per task."""
    quoted = events.quoted
    task_id = quoted(outcome.task_id)
    agent_id = quoted(outcome.agent_id)
    status = outcome.status.text
    has_error = outcome.error and outcome.status is not Status.COMPLETED
    error = f',"error":{quoted(outcome.error)}' if has_error else ""
    return (
        f'{{"type":"{events.TASK_PREFIX}{status}",'
        f'"message":"task {task_id[1:-1]} of agent {agent_id[1:-1]} is {status}",'
        f'"metadata":{{"task_id":{task_id},"agent_id":{agent_id},'
        f'"module_name":{quoted(outcome.module_name)},'
        f'"lateness_ms":"{outcome.lateness_ms}","deliveries":"{outcome.deliveries}"{error}}},'
        f'"timestamp":{now_s}}}'
    ).encode()
