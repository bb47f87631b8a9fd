"""``dbos-actors selftest``: a series of calls that shows that a server does its work.

It registers an agent of its own, reports a run, stores results, schedules a task and works on it,
reads everything back, and deletes what it made.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import click

from dbos_actors.cli.remote.output import note
from dbos_actors.cli.remote.session import Session, accepted, remote
from dbos_actors.client import (
    Agent,
    DeleteAgentRequest,
    GetAgentRequest,
    GetModuleStateRequest,
    GetResultRequest,
    GetTaskRequest,
    GRPCError,
    LeaseTasksRequest,
    ListAgentsRequest,
    ListModuleStatesRequest,
    ListResultsRequest,
    ListTasksRequest,
    MeasurementResult,
    ModuleState,
    NackTaskRequest,
    RefusedError,
    RegisterAgentRequest,
    ScheduleTaskRequest,
    SetModuleStateRequest,
    StoreResultRequest,
    StreamTerminatedError,
    Task,
    pages,
)

MODULE = "selftest"

Step = tuple[str, Callable[[], Awaitable[Any]]]


@remote("selftest")
async def selftest(session: Session) -> None:
    """Make a series of calls against a server, check what they answer, and remove what it made."""
    series = Series(session, f"selftest-{uuid.uuid4()}")
    passed = 0
    try:
        async for name, took_ms in series.run():
            passed += 1
            if session.out.format == "table":
                click.echo(f"ok    {name} ({took_ms:.1f} ms)")
    except BaseException:
        note(f"It did not pass. {await series.remove() or 'Nothing is left of it'}.")
        raise
    left = await series.remove()
    if left:
        raise RefusedError(left)
    session.out.done(f"ok    {passed} steps, and nothing is left", passed=passed)


class Series:
    """The calls, in order. A step that fails ends it with `RefusedError`, which names the step."""

    def __init__(self, session: Session, agent_id: str) -> None:
        self._stub = session.stub
        self.agent_id = agent_id
        self._run_id = f"{agent_id}-run"
        self._task_id = f"{agent_id}-task"

    async def run(self) -> AsyncIterator[tuple[str, float]]:
        """Each step's name and time in milliseconds, when it has passed."""
        for name, step in self._steps():
            begun = time.perf_counter()
            try:
                await step()
            except RefusedError as error:
                raise RefusedError(f"failed: {name}: {error}") from None
            yield name, (time.perf_counter() - begun) * 1e3

    def _steps(self) -> list[Step]:
        return [
            ("register an agent", self._register),
            ("read the agent back", self._get_agent),
            ("find it in the list of agents", self._list_agents),
            ("report a run: created, started, running, completed", self._states),
            ("refuse a step back", self._step_back),
            ("read the run back", self._get_state),
            ("list the runs", self._list_states),
            ("store results, one of them twice", self._store),
            ("read a result back", self._get_result),
            ("list the results in two pages", self._list_results),
            ("schedule a task", self._schedule),
            ("lease it, and give it back", self._work),
            ("list the tasks", self._list_tasks),
        ]

    async def remove(self) -> str:
        """Delete what the steps made; what of it is left and why, or nothing."""
        try:
            accepted(await self._stub.delete_agent(DeleteAgentRequest(agent_id=self.agent_id)))
            found = (await self._stub.get_agent(GetAgentRequest(agent_id=self.agent_id))).found
            task = (await self._stub.get_task(GetTaskRequest(task_id=self._task_id))).found
            request = ListResultsRequest(agent_id=self.agent_id, page_size=1)
            results = (await self._stub.list_results(request)).results
        except (OSError, GRPCError, StreamTerminatedError, TimeoutError, RefusedError) as error:
            return f"Agent {self.agent_id} could not be deleted: {error}"
        if found or task or results:
            return f"Something of agent {self.agent_id} is left after its deletion"
        return ""

    # ------------------------------------------------------------------ steps

    async def _register(self) -> None:
        agent = Agent(id=self.agent_id, hostname="selftest", alive=True)
        accepted(await self._stub.register_agent(RegisterAgentRequest(agent=agent)))

    async def _get_agent(self) -> None:
        response = await self._stub.get_agent(GetAgentRequest(agent_id=self.agent_id))
        accepted(response, found=response.found)
        _expect(response.agent.hostname, "selftest", "hostname")

    async def _list_agents(self) -> None:
        # A server with many agents need not list the others.
        request = ListAgentsRequest(id_prefix=self.agent_id)
        async for agent in pages.agents(self._stub, request):
            if agent.id == self.agent_id:
                return
        raise RefusedError("it is not there")

    async def _states(self) -> None:
        for state in ("created", "started", "running", "completed"):
            accepted(await self._stub.set_module_state(self._report(state)))

    async def _step_back(self) -> None:
        response = await self._stub.set_module_state(self._report("running"))
        _expect(response.success, False, "success")

    def _report(self, state: str) -> SetModuleStateRequest:
        return SetModuleStateRequest(
            state=ModuleState(
                agent_id=self.agent_id,
                module_name=MODULE,
                request_id=self._run_id,
                state=state,
            )
        )

    async def _get_state(self) -> None:
        request = GetModuleStateRequest(request_id=self._run_id, agent_id=self.agent_id)
        response = await self._stub.get_module_state(request)
        accepted(response, found=response.found)
        _expect(response.state.state, "completed", "state")
        _expect(response.state.version, 4, "version")

    async def _list_states(self) -> None:
        request = ListModuleStatesRequest(agent_id=self.agent_id, page_size=10)
        page = accepted(await self._stub.list_module_states(request))
        _expect([state.request_id for state in page.states], [self._run_id], "request ids")

    async def _store(self) -> None:
        for number, duplicate in ((0, False), (1, False), (2, False), (2, True)):
            result = MeasurementResult(
                id=f"{self._run_id}-{number}",
                agent_id=self.agent_id,
                module_name=MODULE,
                data=b'{"rtt_ms": %d}' % number,
            )
            response = await self._stub.store_result(StoreResultRequest(result=result))
            _expect(accepted(response).duplicate, duplicate, "duplicate")

    async def _get_result(self) -> None:
        request = GetResultRequest(agent_id=self.agent_id, request_id=f"{self._run_id}-2")
        response = await self._stub.get_result(request)
        accepted(response, found=response.found)
        _expect(response.result.data, b'{"rtt_ms": 2}', "data")

    async def _list_results(self) -> None:
        request = ListResultsRequest(agent_id=self.agent_id, page_size=2)
        found: list[str] = []
        for _ in range(2):
            page = accepted(await self._stub.list_results(request))
            found += [result.id for result in page.results]
            request.page_token = page.next_page_token
        _expect(sorted(found), [f"{self._run_id}-{number}" for number in range(3)], "ids")

    async def _schedule(self) -> None:
        task = Task(id=self._task_id, agent_id=self.agent_id, module_name=MODULE, payload=b"work")
        accepted(await self._stub.schedule_task(ScheduleTaskRequest(task=task)))

    async def _work(self) -> None:
        request = LeaseTasksRequest(agent_id=self.agent_id, module_name=MODULE, limit=1)
        leased = accepted(await self._stub.lease_tasks(request)).tasks
        _expect([task.id for task in leased], [self._task_id], "leased")
        nack = NackTaskRequest(
            task_id=self._task_id, lease_token=leased[0].lease_token, reason="selftest"
        )
        accepted(await self._stub.nack_task(nack))

    async def _list_tasks(self) -> None:
        request = ListTasksRequest(agent_id=self.agent_id, page_size=10)
        page = accepted(await self._stub.list_tasks(request))
        _expect([(task.id, task.status) for task in page.tasks], [(self._task_id, "pending")], "")


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise RefusedError(f"{what} is {found!r}, expected {expected!r}".strip())
