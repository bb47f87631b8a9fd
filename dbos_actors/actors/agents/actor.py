"""The agent actor: one agent's record, runs and results, as turns over the store.

The actor owns its agent's record and the runs it has in memory: the unfinished
ones and some finished ones (`RunCache`). Both are kept as the bytes that Redis
keeps, a fifth of a decoded message's size, and are copied into responses as
they are. Finished runs that have left memory are fetched when asked for.
Results are never in memory: that a result id is new is decided by HSETNX,
inside the commit.

Messages are the contract's own requests, validated before they are sent here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from dbos_actors.actors.agents.change_clock import score_of
from dbos_actors.actors.agents.context import MODULE, RUN, AgentContext, readable
from dbos_actors.actors.agents.deletion import FinishDeletion, forget_agent
from dbos_actors.actors.agents.heartbeats import (
    BEATEN,
    BeatenRecord,
    beaten,
    not_registered,
    taken_apart,
)
from dbos_actors.actors.agents.kept import Kept
from dbos_actors.actors.agents.run_retention import ForgetRuns, forget_runs
from dbos_actors.actors.agents.silence import (
    RUNS_FAILED_AT_ONCE,
    Lapse,
    Written,
    lapse_in_steps,
    marked_silent,
)
from dbos_actors.actors.answers import found, guarded
from dbos_actors.api.messages import (
    Agent,
    DeleteAgentRequest,
    DeleteAgentResponse,
    GetAgentRequest,
    GetAgentResponse,
    GetModuleStateRequest,
    GetModuleStateResponse,
    HeartbeatRequest,
    ModuleState,
    RegisterAgentRequest,
    RegisterAgentResponse,
    SetModuleStateRequest,
    SetModuleStateResponse,
    StoreResultRequest,
    StoreResultResponse,
)
from dbos_actors.domain import agents, results, runs
from dbos_actors.errors import UnavailableError
from dbos_actors.runtime import AGAIN, DEFERRED, ActorCell, Job, JobCell, Turn
from dbos_actors.store import pack, pack_argument, pack_head
from dbos_actors.store.keys import escaped

REGISTERED: Final = RegisterAgentResponse(success=True).SerializeToString()
STATE_SET: Final = SetModuleStateResponse(success=True).SerializeToString()
STORED: Final = StoreResultResponse(success=True).SerializeToString()
DUPLICATE: Final = StoreResultResponse(success=True, duplicate=True).SerializeToString()
DELETED: Final = DeleteAgentResponse(success=True).SerializeToString()

# Parts of the state besides runs, which are strings.
_RECORD: Final = 0
_KNOWN: Final = 1
_BEATEN: Final = 2

# More unfinished runs than this are not loaded at once but one by one as they are
# reported, so that an agent that never finishes any cannot fill memory or stall a load.
_RUNS_LOADED_AT_ONCE = 1_000

_SILENT: Final = "the agent fell silent"


class AgentActor:
    """One incarnation of an agent actor; a `runtime.Behaviour`."""

    __slots__ = (
        "_agent_id",
        "_beaten",
        "_cell",
        "_complete",
        "_context",
        "_is_deleting",
        "_kept",
        "_known",
        "_last_numbers",
        "_name",
        "_record",
        "_result_heads",
        "_runs",
        "_unfinished_resident",
    )

    def __init__(self, agent_id: str, cell: ActorCell, context: AgentContext) -> None:
        self._agent_id = agent_id
        self._name = escaped(agent_id)
        self._cell = cell
        self._context = context
        self._kept = Kept(cell, context.store, self._name, context.limits)
        self._record: bytes | None = None
        # The same as a heartbeat has written it; None if something else wrote it last.
        self._beaten: BeatenRecord | None = None
        # The record that the last RegisterAgent made, and what the next one needs of it.
        self._last_numbers: tuple[bytes, agents.Numbers] | None = None
        # How the two commands that store a result begin.
        self._result_heads: tuple[bytes, bytes] | None = None
        # Whether the store has the agent among those that have anything stored.
        self._known = False
        # Whether a deletion has begun that is to be finished before anything else.
        self._is_deleting = False
        # Whether `_runs` has every unfinished run.
        self._unfinished_resident = True
        # None is a run known not to exist, while the messages that asked have their turns.
        self._runs: dict[str, bytes | None] = {}
        # Whether all states of the agent are in `_runs`, so that an unknown one is new.
        self._complete = False

    # ------------------------------------------------------- the actor's state

    async def load(self) -> None:
        store, commands = self._context.store, self._context.commands
        record, known, deleting, count, unfinished = await store.read(
            *commands.load(self._agent_id, self._name.encode())
        )
        self._record = record
        self._known = bool(known)
        self._kept.loaded(is_known=self._known, states=count, unfinished=len(unfinished))
        if deleting:
            # Its runs are of no use, and no message waits for any of them (`missing`).
            self._is_deleting = self._complete = True
            return
        if unfinished and len(unfinished) <= _RUNS_LOADED_AT_ONCE:
            parts = [RUN + request_id.decode() for request_id in unfinished]
            states = store.keys.states + self._name
            (values,) = await store.read(pack("HMGET", states, *parts))
            self._runs = {
                part: value for part, value in zip(parts, values, strict=True) if value is not None
            }
        self._unfinished_resident = len(self._runs) == len(unfinished)
        self._complete = len(self._runs) == count

    def missing(self, request: Any) -> str | None:
        kind = type(request)
        if kind is SetModuleStateRequest:
            part = part_of(request.state)
        elif kind is GetModuleStateRequest:
            part = RUN + request.request_id
        else:
            return None
        return None if self._complete or part in self._runs else part

    def fetch(self, part: Hashable, arrived: Callable[[UnavailableError | None], None]) -> None:
        assert isinstance(part, str)

        def on_replies(replies: Sequence[Any] | UnavailableError) -> None:
            if isinstance(replies, UnavailableError):
                arrived(replies)
                return
            record = replies[0]
            self._runs[part] = record
            arrived(None)
            # Only now, since the cache may make it leave at once: who asked has had their turns.
            if self._runs.get(part, b"") is None:
                del self._runs[part]
            elif self._cell.behaviour is self and self._runs.get(part) is record:
                self._context.runs.keep(self, part, len(replies[0]))

        store = self._context.store
        command = pack("HGET", store.keys.states + self._name, part)
        store.submit_read([command], on_replies, reply_bytes=None)

    def apply(self, part: Hashable, value: Any) -> None:
        if part is _RECORD:
            self._record, self._beaten = value, None
            return
        if part is _BEATEN:
            self._record, self._beaten = value.record, value
            return
        if part is _KNOWN:
            self._known = value
            self._context.known.add(self._agent_id)
            return
        assert isinstance(part, str)
        self._runs[part] = value[0]
        # Until this is committed, and for good if the run goes on, it cannot leave.
        self._context.runs.forget(self, part)

    def evict(self, part: str) -> None:
        """Drop a finished run from memory; it is in Redis."""
        self._runs.pop(part, None)
        self._complete = False

    def released(self) -> None:
        for part in self._runs:
            self._context.runs.forget(self, part)
        self._runs = {}
        self._complete = False

    # ----------------------------------------------------------------- turns

    def handle(self, request: Any) -> Turn | Job:
        if self._is_deleting and type(request) is not DeleteAgentRequest:
            return Job(partial(self._forget_agent, AGAIN))
        turn = _HANDLERS[type(request)](self, request)
        if not self._known and isinstance(turn, Turn) and turn.commands:
            self._context.known.require_room(self._agent_id)
            turn.also(
                pack("SADD", self._context.store.keys.agents_known, self._agent_id), _KNOWN, True
            )
        return turn

    def register(self, request: RegisterAgentRequest) -> Turn:
        context = self._context
        current = self._numbers()
        update = agents.heartbeat(current, request.agent, now_s=context.now_s())
        record = update.record.SerializeToString()
        commands = [context.commands.keep_agent.of_two(b"", self._agent_id.encode(), record)]
        if current is None:
            commands.append(pack("ZADD", context.store.keys.agents_index, 0, self._agent_id))
        if update.event is not None:
            commands.append(context.log_event(update.event))
        is_new = current is None or current.alive is not update.record.alive
        then = self._presence_changed if is_new else None
        # Of no effect unless the turn makes this the record: `_numbers` compares.
        self._last_numbers = record, agents.numbers_of(update.record)
        return Turn(REGISTERED, commands=commands, changes=((_RECORD, record),), then=then)

    def _numbers(self) -> agents.Numbers | None:
        """What a heartbeat needs of the record; decoded only if this actor did not write it."""
        record, last = self._record, self._last_numbers
        if last is not None and last[0] is record:
            return last[1]
        return None if record is None else agents.numbers_of(Agent.FromString(record))

    def heartbeat(self, request: HeartbeatRequest) -> Turn:
        record = self._record
        if record is None:
            return Turn(not_registered(self._agent_id))
        context = self._context
        update = beaten(self._beaten or taken_apart(record), request, now_s=context.now_s())
        if update is None:
            return Turn(BEATEN)
        after, event = update
        commands = [context.commands.keep_agent.of_two(b"", self._agent_id.encode(), after.record)]
        if event is None:
            return Turn(BEATEN, commands=commands, changes=((_BEATEN, after),))
        commands.append(context.log_event(event))
        changes = ((_BEATEN, after),)
        return Turn(BEATEN, commands=commands, changes=changes, then=self._presence_changed)

    def _presence_changed(self, turn: Turn, replies: Sequence[object] | None) -> Any:  # noqa: ARG002
        """The record that a turn has written is committed: count the agent by it."""
        for part, value in turn.changes:
            if part is _RECORD or part is _BEATEN:
                record = value if part is _RECORD else value.record
                alive = Agent.FromString(record).alive
                self._context.known.registered(self._agent_id, alive=alive)
        return turn.answer

    def get(self, request: GetAgentRequest) -> Turn:  # noqa: ARG002 - it names this actor
        if self._record is None:
            return Turn(GetAgentResponse(error=f"agent {self._agent_id!r} is not registered"))
        return Turn(found(self._record))

    def set_state(self, request: SetModuleStateRequest) -> Turn:
        context = self._context
        reported = request.state
        part = part_of(reported)
        data = self._runs.get(part)
        current = None if data is None else ModuleState.FromString(data)
        judge = runs.report if part[0] == RUN else runs.report_module
        report = judge(current, reported, now_s=context.now_s())
        if not report.changed:
            return Turn(STATE_SET)
        if current is None:
            record = report.record
            instead = self._kept.before_state(record.module_name, unfinished=report.began)
            if instead is not None:
                return instead
        commands, change = self._changed(part, report, is_new=current is None)
        return Turn(STATE_SET, commands=commands, changes=(change,), then=self._states_changed)

    def _changed(
        self, part: str, report: runs.Report, *, is_new: bool
    ) -> tuple[list[bytes], tuple[str, tuple[bytes, bool, int]]]:
        """What to write about a changed state, and what it becomes in memory.

        That is its record, whether it is finished, and what is reserved of `ChangeClock`.
        """
        context = self._context
        known = context.commands
        name = self._name.encode()
        record = report.record
        data = record.SerializeToString()
        module = record.module_name
        place_us = context.changes.next_us()
        score = score_of(place_us)
        mark_us = context.changes.mark_us(place_us)
        commands = known.place_state(name, part.encode(), data, module_name=module, score=score)
        if mark_us:
            commands.append(context.changes.marked(mark_us))
        if is_new:
            commands.append(known.enter_module.of(name, module.encode()))
        if report.event is not None:
            commands.append(context.log_event(report.event))
        if part[0] == MODULE:
            return commands, (part, (data, True, mark_us))
        request_id = record.request_id
        request_key = escaped(request_id).encode()
        commands.append(known.enter_request.of_two(request_key, score, self._agent_id.encode()))
        if report.began:
            commands.append(known.enter_unfinished.of(name, request_id.encode()))
        elif report.finished and not is_new:
            commands.append(known.leave_unfinished.of(name, request_id.encode()))
        return commands, (part, (data, runs.is_finished(record), mark_us))

    def _states_changed(self, turn: Turn, replies: Sequence[object] | None) -> Any:  # noqa: ARG002
        context = self._context
        for part, value in turn.changes:
            if part is _RECORD:  # of an agent that fell silent
                context.known.registered(self._agent_id, alive=False)
            if not isinstance(part, str):
                continue
            if part[0] == RUN:
                context.directory.changed(part[1:], self._agent_id)
            record: bytes
            record, finished, mark_us = value
            if mark_us:
                context.changes.reserved(mark_us)
            # A later turn may have changed it again, and keeps it then.
            if finished and self._runs.get(part) is record and self._cell.behaviour is self:
                context.runs.keep(self, part, len(record))
        return turn.answer

    def get_state(self, request: GetModuleStateRequest) -> Turn:
        part = RUN + request.request_id
        record = self._runs.get(part)
        if record is None:
            return Turn(no_such_run(request.request_id, self._agent_id))
        self._context.runs.used(self, part)
        return Turn(found(record))

    def store_result(self, request: StoreResultRequest) -> Turn:
        context = self._context
        result = request.result
        result_id = result.id
        if context.limits.results and (instead := self._kept.before_result(result_id)) is not None:
            return instead
        now_s = context.now_s()
        record = results.accept(result, now_s=now_s, server_id=context.server_id)
        heads = self._result_heads
        if heads is None:
            keys = context.store.keys
            heads = self._result_heads = (
                pack_head(4, "HSETNX", keys.results + self._name),
                pack_head(5, "ZADD", keys.results_at + self._name, "NX"),
            )
        field = result_id.encode()
        member = pack_argument(field)
        commands = [
            b"%b%b$%d\r\n%b\r\n" % (heads[0], member, len(record), record),
            heads[1] + pack_argument(b"%d" % result.received_at) + member,
        ]
        if context.event_results:
            event = results.stored(result, now_s=now_s)
            key = context.store.keys.results + self._name
            commands.insert(0, context.log_event_of_new_result(event, key, field))
        return Turn(STORED, commands=commands, then=self._result_committed)

    def _result_committed(self, turn: Turn, replies: Sequence[object] | None) -> Any:
        """New, a repeat, or a conflict: Redis has decided, and its answer may be lost."""
        context = self._context
        # The command of the event, if there is one, comes first.
        if replies is not None and replies[1 if context.event_results else 0] == 1:
            context.statistics.results_stored += 1
            return STORED
        known_repeat = replies is not None
        call = turn.call
        result = call.request.result
        store = context.store

        def compare(stored: Sequence[Any] | UnavailableError) -> None:
            if isinstance(stored, UnavailableError):
                call.fail(stored)
            elif stored[0] is None or results.same_measurement(stored[0], result):
                if known_repeat:
                    context.statistics.results_duplicate += 1
                call.reply(DUPLICATE if known_repeat else STORED)
            else:
                context.statistics.results_duplicate += 1
                context.statistics.results_conflicting += 1
                event = context.log_event(results.conflict(result, now_s=context.now_s()))
                self._cell.submit(Turn(DUPLICATE, commands=[event]), call)

        command = pack("HGET", store.keys.results + self._name, result.id)
        answer = guarded(call, compare)
        store.submit_read([command], answer, reply_bytes=None, deadline_s=call.deadline)
        return DEFERRED

    # -------------------------------------------------------------- liveness

    def lapse(self, request: Lapse) -> Turn | Job:  # noqa: ARG002 - it names this actor
        """The agent has fallen silent: it is not alive, and its unfinished runs fail."""
        unfinished = [
            (part, state)
            for part, state in (
                (part, readable(ModuleState, data))
                for part, data in self._runs.items()
                if part[0] == RUN
            )
            if state is not None and not runs.is_finished(state)
        ]
        if not self._unfinished_resident or len(unfinished) > RUNS_FAILED_AT_ONCE:
            return Job(
                lambda cell: lapse_in_steps(
                    cell,
                    self._context,
                    self._name,
                    failed=self._failed,
                    marked=self._marked_silent,
                )
            )
        commands, changes = self._failed(unfinished)
        record_commands, record_changes = self._marked_silent()
        return Turn(
            None,
            commands=commands + record_commands,
            changes=changes + record_changes,
            then=self._states_changed,
        )

    def _failed(self, unfinished: Iterable[tuple[str, ModuleState]]) -> Written:
        now_s = self._context.now_s()
        commands: list[bytes] = []
        changes: list[tuple[Hashable, Any]] = []
        for part, state in unfinished:
            report = runs.fail_unfinished(state, _SILENT, now_s=now_s)
            written, change = self._changed(part, report, is_new=False)
            commands += written
            changes.append(change)
        return commands, changes

    def _marked_silent(self) -> Written:
        commands, record = marked_silent(self._context, self._agent_id, self._record)
        return commands, [] if record is None else [(_RECORD, record)]

    # -------------------------------------------------- retention, deletion

    def forget_runs(self, request: ForgetRuns) -> Job:
        """Delete old finished runs; the answer is how many. The module's own states stay."""
        return Job(lambda cell: forget_runs(cell, self._context, self._agent_id, request))

    def delete(self, request: DeleteAgentRequest) -> Job:  # noqa: ARG002 - it names this actor
        return Job(partial(self._forget_agent, DELETED))

    def finish_deletion(self, request: FinishDeletion) -> Turn:  # noqa: ARG002
        """Nothing: where a deletion has begun, `handle` does not get here before it is finished."""
        return Turn(None)

    async def _forget_agent(self, answer: Any, cell: JobCell) -> Any:
        context = self._context
        try:
            await forget_agent(cell, context, self._agent_id, was_known=self._known)
        except BaseException:
            context.interrupted(self._agent_id)
            raise
        return answer


_HANDLERS: Final[dict[type, Callable[[AgentActor, Any], Turn | Job]]] = {
    RegisterAgentRequest: AgentActor.register,
    HeartbeatRequest: AgentActor.heartbeat,
    GetAgentRequest: AgentActor.get,
    SetModuleStateRequest: AgentActor.set_state,
    GetModuleStateRequest: AgentActor.get_state,
    StoreResultRequest: AgentActor.store_result,
    DeleteAgentRequest: AgentActor.delete,
    FinishDeletion: AgentActor.finish_deletion,
    ForgetRuns: AgentActor.forget_runs,
    Lapse: AgentActor.lapse,
}


def part_of(state: ModuleState) -> str:
    """The part of an agent's state that a report is about."""
    return RUN + state.request_id if state.request_id else MODULE + state.module_name


def no_such_run(request_id: str, agent_id: str = "") -> GetModuleStateResponse:
    """The answer about a run that nobody has reported."""
    where = f" of agent {agent_id!r}" if agent_id else ""
    return GetModuleStateResponse(error=f"no run {request_id!r}{where}")
