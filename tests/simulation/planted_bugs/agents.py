"""Planted bugs in the actor of an agent: its commands, its runs, its deletion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from dbos_actors.actors.agents import actor as actor_module
from dbos_actors.actors.agents import heartbeats
from dbos_actors.actors.agents.actor import AgentActor
from dbos_actors.actors.agents.change_clock import ChangeClock
from dbos_actors.actors.agents.deletion import Deletions
from dbos_actors.actors.event_log import EventLog
from dbos_actors.api.messages import Agent, DeleteAgentRequest
from dbos_actors.domain import agents as domain_agents
from dbos_actors.domain import runs
from dbos_actors.domain.agents import Vitals
from dbos_actors.runtime import Supervisor, Waiter
from dbos_actors.runtime.actor_cell import ActorCell
from dbos_actors.runtime.turn import Turn
from dbos_actors.store.resp import pack, unpacked
from tests.simulation.planted_bugs.registry import planted, without


@contextmanager
def _handler(name: str, change: Callable[[Turn], None]) -> Iterator[None]:
    """Change what a handler of the agent actor returns."""
    from dbos_actors.actors.agents import actor as module  # noqa: PLC0415 - its table is patched

    original = getattr(AgentActor, name)

    def changed(self: AgentActor, request: Any) -> Any:
        turn = original(self, request)
        change(turn)
        return turn

    handlers = {k: changed if v is original else v for k, v in module._HANDLERS.items()}
    with patch.object(module, "_HANDLERS", handlers):
        yield


def _drop(name: bytes, key_part: bytes = b"") -> Callable[[Turn], None]:
    def change(turn: Turn) -> None:
        turn.commands = without(turn.commands, name, key_part)

    return change


@planted
def an_index_of_runs_is_forgotten() -> Any:
    return _handler("set_state", _drop(b"ZADD", b"states-of:"))


@planted
def a_repeated_result_is_told_of_as_stored() -> Any:
    def append(self: EventLog, event: bytes, *_: object) -> bytes:
        return self.appended(event)

    return patch.object(EventLog, "appended_if_new", append)


@planted
def a_finished_run_stays_unfinished() -> Any:
    return _handler("set_state", _drop(b"SREM"))


@planted
def a_duplicate_overwrites_the_first_result() -> Any:
    def overwrite(turn: Turn) -> None:
        _, key, result_id, record = unpacked(turn.commands[0])
        # The first reply decides what is answered; this one says: new.
        turn.commands = [
            pack("HSET", key, b"\0", b""),
            pack("HSET", key, result_id, record),
            pack("HDEL", key, b"\0"),
            *turn.commands[1:],
        ]

    return _handler("store_result", overwrite)


@planted
def a_result_is_written_in_two_steps() -> Any:
    """The index follows in a commit of its own."""
    original = AgentActor.store_result
    committed = AgentActor._result_committed

    def first_half(self: AgentActor, request: Any) -> Turn:
        turn = original(self, request)
        rest = list(turn.commands[-1:])
        turn.commands = turn.commands[:-1]

        def then(done: Turn, replies: Sequence[object] | None) -> Any:
            self._cell.submit(Turn(None, commands=rest), _Nobody())
            return committed(self, done, replies)

        turn.then = then
        return turn

    from dbos_actors.actors.agents import actor as module  # noqa: PLC0415 - its table is patched

    handlers = {k: first_half if v is original else v for k, v in module._HANDLERS.items()}
    return patch.object(module, "_HANDLERS", handlers)


class _Nobody:
    """A call nobody waits for."""

    answered = True
    deadline = None
    request = None

    def reply(self, message: Any) -> None: ...

    def fail(self, error: Exception) -> None: ...


@planted
def the_version_is_not_raised() -> Any:
    original = runs.report

    def report(current: Any, reported: Any, *, now_s: int) -> Any:
        answer = original(current, reported, now_s=now_s)
        if answer.changed and current is not None and current.version > 1:
            answer.record.version = current.version
        return answer

    return patch.object(runs, "report", report)


@planted
def a_repeated_outcome_is_taken_as_a_change() -> Any:
    table = {
        was: {
            state: runs.Step.PROGRESS if step is runs.Step.REPEAT else step
            for state, step in row.items()
        }
        for was, row in runs.TRANSITIONS.items()
    }
    return patch.object(runs, "TRANSITIONS", table)


@planted
def a_deletion_forgets_the_request_ids() -> Any:
    commit = ActorCell.commit

    async def without_zrem(self: ActorCell, *commands: bytes, frees_memory: bool = False) -> None:
        kept = without(commands, b"ZREM", b":request:")
        await commit(self, *kept, frees_memory=frees_memory)

    return patch.object(ActorCell, "commit", without_zrem)


@planted
def an_interrupted_deletion_is_not_finished() -> Any:
    """Neither at the next start, nor by the server in which it failed."""

    async def nothing(*_: Any, task_status: Any = None) -> None:
        task_status.started()

    return patch.object(Deletions, "run", nothing)


@planted
def an_interrupted_deletion_ends_a_later_life() -> Any:
    """The next start deletes an agent that has come back; until then its actor takes messages."""
    load = AgentActor.load

    async def load_anyway(self: AgentActor) -> None:
        await load(self)
        if self._is_deleting:
            self._is_deleting = self._complete = self._unfinished_resident = False

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(AgentActor, "load", load_anyway),
            patch.object(Deletions, "interrupted", lambda *_: None),
            patch.object(Deletions, "_try", _delete),
        ):
            yield

    return plant()


async def _delete(self: Deletions, agents: Supervisor, agent_id: str, pause_s: float) -> None:
    waiter = Waiter(DeleteAgentRequest(agent_id=agent_id))
    agents.deliver(agent_id, waiter)
    await waiter.wait()


@planted
def changes_are_in_the_order_of_the_wall_clock() -> Any:
    """A run that changes after a step back is put where a listing has been already."""
    return patch.object(ChangeClock, "next_us", lambda self: int(self._clock.wall_s() * 1e6))


@planted
def a_heartbeat_takes_the_last_numbers_reported() -> Any:
    """A copy that comes late turns `last_seen` and `total_heartbeats` back."""

    def last(_: Vitals, *, last_seen: int, total_heartbeats: int, now_s: int) -> Vitals:
        return Vitals(last_seen, total_heartbeats, alive=True)

    return patch.object(domain_agents, "beat", last)


@planted
def a_heartbeat_forgets_the_configuration() -> Any:
    original = heartbeats.taken_apart

    def without(record: bytes) -> Any:
        agent = Agent.FromString(record)
        agent.ClearField("config")
        return original(agent.SerializeToString())

    return patch.object(actor_module, "taken_apart", without)
