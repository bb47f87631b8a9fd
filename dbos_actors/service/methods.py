"""The RPCs: check the request, route it to an actor or a query, answer.

Unary calls run in the transport's read loop and start no task, except the
listings, which read Redis in several steps. A refusal by the domain is answered
in-band, in the response's ``error``; for every other error `status_of` is the one table
from error to gRPC status.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from dbos_actors.access.quotas import AgentQuotas
from dbos_actors.actors.agents.actor import no_such_run
from dbos_actors.actors.agents.caches import RunDirectory
from dbos_actors.actors.agents.queries import Queries
from dbos_actors.actors.listings import ListingBudget, Room
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.watching.watchers import Watchers
from dbos_actors.api import messages
from dbos_actors.domain.limits import (
    Limits,
    check_agent,
    check_id,
    check_result,
    check_state,
    check_task,
    check_text,
)
from dbos_actors.domain.runs import check_filter_state
from dbos_actors.errors import (
    CursorError,
    DamagedKeyError,
    FieldLimitError,
    OverloadedError,
    RefusedError,
    ResponseTooLargeError,
    UnavailableError,
)
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.runtime import Call, Supervisor
from dbos_actors.service.draining import Draining
from dbos_actors.service.statistics import ServerReport
from dbos_actors.service.store_results import store_results
from dbos_actors.service.subscribe_tasks import subscribe_tasks
from dbos_actors.service.watch import watch

logger = get_logger(__name__)

SERVICE: Final = messages.DESCRIPTOR.services_by_name["DBOS"]

_LISTINGS_MAX = 1_000
"""At the same time, waiting ones included. What they hold in all is `ListingBudget`'s matter."""

Listing = Callable[[Any, Room], Awaitable[bytes]]
"""A query that answers with a list: its request, and what it may hold in memory meanwhile."""

_FILTER_STATES_MAX = 64
"""Names in a listing's state filter; runs have six states, modules a few of their own."""


def status_of(error: Exception) -> tuple[Status, str]:
    """The gRPC status of an error and the text the client may see."""
    match error:
        case DamagedKeyError():
            return Status.DATA_LOSS, str(error)
        case UnavailableError():
            return Status.UNAVAILABLE, str(error)
        case OverloadedError() | ResponseTooLargeError():
            return Status.RESOURCE_EXHAUSTED, str(error)
        case CursorError():
            return Status.OUT_OF_RANGE, str(error)
        case RefusedError():
            # Only of a method whose response has no place for it.
            return Status.FAILED_PRECONDITION, str(error)
        case GRPCError():
            return error.status, error.message or ""
    log_limited(logger.error, "internal_error", exc_info=error)
    return Status.INTERNAL, "internal error"


class DbosService:
    """The service's methods over its actors and queries."""

    def __init__(
        self,
        *,
        agents: Supervisor,
        tasks: Scheduler,
        queries: Queries,
        directory: RunDirectory,
        limits: Limits,
        listing_budget: ListingBudget,
        report: ServerReport,
        watchers: Watchers,
        quotas: AgentQuotas | None = None,
        heard: Callable[[str], None] | None = None,
    ) -> None:
        """``heard`` is called with the agent id of everything that agents report.

        ``quotas`` are those of agents: for what is reported or scheduled for them.
        """
        self._agents = agents
        self._tasks = tasks
        self._quotas = quotas
        self._heard = heard
        self._queries = queries
        self._directory = directory
        self._limits = limits
        self._nursery: trio.Nursery | None = None
        self._listing_budget = listing_budget
        self._listings = 0
        self._report_of_server = report
        self._watchers = watchers
        self._draining = Draining()

    async def drain(self, *, overdue: bool = False) -> None:
        """Have the streams that may last for ever settle what they have taken, and end.

        ``overdue``: now, whether that is settled or not. Returns when all have been told.
        """
        await self._draining.begun.come()
        if overdue:
            await self._draining.overdue.come()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the parent of the listings' tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._report_of_server.run)
            task_status.started()
            await trio.sleep_forever()

    def methods(self) -> dict[str, UnaryMethod]:
        """The unary methods by full path."""
        handlers: dict[str, Callable[[UnaryCall], None]] = {
            "RegisterAgent": self._register_agent,
            "Heartbeat": self._heartbeat,
            "GetAgent": self._get_agent,
            "ListAgents": self._list_agents,
            "DeleteAgent": self._delete_agent,
            "SetModuleState": self._set_module_state,
            "GetModuleState": self._get_module_state,
            "ListModuleStates": self._list_module_states,
            "StoreResult": self._store_result,
            "GetResult": self._get_result,
            "ListResults": self._list_results,
            "ScheduleTask": self._schedule_task,
            "GetTask": self._on_task,
            "ListTasks": self._list_tasks,
            "ListDueTasks": self._list_due_tasks,
            "LeaseTasks": self._lease_tasks,
            "ExtendLease": self._on_task,
            "AckTask": self._on_task,
            "NackTask": self._nack_task,
            "CancelTask": self._nack_task,
            "RequeueTask": self._requeue_task,
            "Statistics": self._statistics,
            "GetEvents": self._get_events,
        }
        return {
            f"/{SERVICE.full_name}/{name}": _method(name, handler)
            for name, handler in handlers.items()
        }

    def __mapping__(self) -> dict[str, Handler]:
        """The streaming methods, as a grpclib service."""
        return {
            f"/{SERVICE.full_name}/StoreResults": Handler(
                self._store_results,
                Cardinality.STREAM_STREAM,
                messages.StoreResultRequest,
                messages.StoreResultsResponse,
            ),
            f"/{SERVICE.full_name}/SubscribeTasks": Handler(
                self._subscribe_tasks,
                Cardinality.STREAM_STREAM,
                messages.SubscribeTasksRequest,
                messages.SubscribeTasksResponse,
            ),
            f"/{SERVICE.full_name}/Watch": Handler(
                self._watch,
                Cardinality.UNARY_STREAM,
                messages.WatchRequest,
                messages.WatchResponse,
            ),
        }

    def _report(self, agent_id: str, call: Call) -> None:
        if self._quotas is not None:
            self._quotas.take(agent_id, call.request.ByteSize())
        if self._heard is not None:
            self._heard(agent_id)
        self._agents.deliver(agent_id, call)

    # ---------------------------------------------------------------- agents

    def _register_agent(self, call: UnaryCall) -> None:
        self._report(check_agent(call.request, self._limits).id, call)

    def _heartbeat(self, call: UnaryCall) -> None:
        agent_id = call.request.agent_id
        check_id("agent_id", agent_id, self._limits)
        self._report(agent_id, call)

    def _get_agent(self, call: UnaryCall) -> None:
        agent_id = call.request.agent_id
        check_id("agent_id", agent_id, self._limits)
        self._agents.deliver(agent_id, call)

    def _delete_agent(self, call: UnaryCall) -> None:
        agent_id = call.request.agent_id
        check_id("agent_id", agent_id, self._limits)
        # Its tasks go too. Begun and not finished, the deletion would keep the agent away.
        self._tasks.require_readable()
        self._agents.deliver(agent_id, call)

    def _list_agents(self, call: UnaryCall) -> None:
        self._start_listing(self._queries.list_agents, call)

    # --------------------------------------------------------- module states

    def _set_module_state(self, call: UnaryCall) -> None:
        self._report(check_state(call.request, self._limits).agent_id, call)

    def _get_module_state(self, call: UnaryCall) -> None:
        request = call.request
        request_id = request.request_id
        check_id("request_id", request_id, self._limits)
        check_text("agent_id", request.agent_id, self._limits.id_bytes)
        agent_id = request.agent_id or self._directory.agent_of(request_id)
        if agent_id:
            self._agents.deliver(agent_id, call)
            return

        def route(found: str | Exception | None) -> None:
            if isinstance(found, Exception):
                call.fail(found)
            elif found is None:
                call.reply(no_such_run(request_id))
            else:
                self._agents.deliver(found, call)

        self._queries.last_changed_agent(request_id, route, deadline_s=call.deadline)

    def _list_module_states(self, call: UnaryCall) -> None:
        request = call.request
        check_id("agent_id", request.agent_id, self._limits)
        check_text("module_name", request.module_name, self._limits.name_bytes)
        if len(request.states) > _FILTER_STATES_MAX:
            raise FieldLimitError(
                "states", size=len(request.states), limit=_FILTER_STATES_MAX, unit="names"
            )
        for state in request.states:
            check_text("states", state, self._limits.name_bytes)
            check_filter_state("states", state)
        self._start_listing(self._queries.list_states, call)

    # --------------------------------------------------------------- results

    def _store_result(self, call: UnaryCall) -> None:
        self._report(check_result(call.request, self._limits).agent_id, call)

    def _get_result(self, call: UnaryCall) -> None:
        request = call.request
        check_id("agent_id", request.agent_id, self._limits)
        check_id("request_id", request.request_id, self._limits)

        def answer(outcome: Any) -> None:
            if isinstance(outcome, Exception):
                call.fail(outcome)
            else:
                call.reply(outcome)

        self._queries.get_result(request, answer, deadline_s=call.deadline)

    def _list_results(self, call: UnaryCall) -> None:
        request = call.request
        check_id("agent_id", request.agent_id, self._limits)
        check_text("module_name", request.module_name, self._limits.name_bytes)
        self._start_listing(self._queries.list_results, call)

    async def _store_results(
        self, stream: ServerStream[messages.StoreResultRequest, messages.StoreResultsResponse]
    ) -> None:
        await store_results(
            stream, limits=self._limits, deliver=self._report, draining=self._draining
        )

    # ----------------------------------------------------------------- tasks

    def _schedule_task(self, call: UnaryCall) -> None:
        check_task(call.request, self._limits)
        if self._quotas is not None:
            self._quotas.take(call.request.task.agent_id, call.request.ByteSize())
        self._tasks.deliver(call)

    def _on_task(self, call: UnaryCall) -> None:
        check_id("task_id", call.request.task_id, self._limits)
        self._tasks.deliver(call)

    def _nack_task(self, call: UnaryCall) -> None:
        check_text("reason", call.request.reason, self._limits.text_bytes)
        self._on_task(call)

    def _requeue_task(self, call: UnaryCall) -> None:
        check_id("task_id", call.request.task_id, self._limits)
        self._start_listing(self._tasks.requeue, call)

    def _choose_tasks(self, call: UnaryCall) -> None:
        self._check_filter(call.request)
        self._tasks.deliver(call)

    def _lease_tasks(self, call: UnaryCall) -> None:
        check_text("worker_id", call.request.worker_id, self._limits.name_bytes)
        check_text("request_key", call.request.request_key, self._limits.id_bytes)
        self._choose_tasks(call)

    def _list_tasks(self, call: UnaryCall) -> None:
        self._check_filter(call.request)
        self._start_listing(self._tasks.listings.list_tasks, call)

    def _list_due_tasks(self, call: UnaryCall) -> None:
        self._check_filter(call.request)
        if self._tasks.is_brief(call.request):
            self._tasks.deliver(call)
        else:
            self._start_listing(self._tasks.listings.list_due_tasks, call)

    def _check_filter(self, request: Any) -> None:
        check_text("agent_id", request.agent_id, self._limits.id_bytes)
        check_text("module_name", request.module_name, self._limits.name_bytes)

    async def _subscribe_tasks(
        self, stream: ServerStream[messages.SubscribeTasksRequest, messages.SubscribeTasksResponse]
    ) -> None:
        await subscribe_tasks(
            stream, limits=self._limits, tasks=self._tasks, draining=self._draining
        )

    # ---------------------------------------------------- statistics, events

    async def _watch(
        self, stream: ServerStream[messages.WatchRequest, messages.WatchResponse]
    ) -> None:
        await watch(stream, limits=self._limits, watchers=self._watchers, draining=self._draining)

    def _statistics(self, call: UnaryCall) -> None:
        call.reply(self._report_of_server.response())

    def _get_events(self, call: UnaryCall) -> None:
        check_text("agent_id", call.request.agent_id, self._limits.id_bytes)
        self._start_listing(self._queries.list_events, call)

    # -------------------------------------------------------------- listings

    def _start_listing(self, query: Listing, call: UnaryCall) -> None:
        assert self._nursery is not None, "a call before run()"
        if self._listings >= _LISTINGS_MAX:
            raise OverloadedError("the queue of listings", limit=_LISTINGS_MAX, unit="calls")
        self._listings += 1
        self._nursery.start_soon(self._run_listing, query, call)

    async def _run_listing(self, query: Listing, call: UnaryCall) -> None:
        deadline = math.inf if call.deadline is None else call.deadline
        try:
            with trio.CancelScope(deadline=deadline):
                async with self._listing_budget.room() as room:
                    if not call.answered:
                        call.reply(await query(call.request, room))
        except Exception as error:  # noqa: BLE001 - the call's outcome, whatever it is
            call.fail(error)
        finally:
            self._listings -= 1


def _method(name: str, handler: Callable[[UnaryCall], None]) -> UnaryMethod:
    """A unary method; what it or an actor refuses is answered in its response's ``error``."""
    descriptor = SERVICE.methods_by_name[name]
    request_type = getattr(messages, descriptor.input_type.name)
    response_type = getattr(messages, descriptor.output_type.name)

    def handle(call: UnaryCall) -> None:
        try:
            handler(call)
        except (RefusedError, OverloadedError, UnavailableError) as error:
            call.fail(error)

    def in_band(error: Exception) -> bytes | None:
        if isinstance(error, RefusedError):
            response: bytes = response_type(error=str(error)).SerializeToString()
            return response
        return None

    return UnaryMethod(
        handler=handle,
        decode=request_type.FromString,
        in_band=in_band,
        request_type=request_type,
        reply_type=response_type,
    )
