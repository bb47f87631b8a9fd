"""The records of a listing, one after another, read page by page."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from dbos_actors.api.sdk.dbos import (
    Agent,
    DbosStub,
    GetEventsRequest,
    ListAgentsRequest,
    ListModuleStatesRequest,
    ListResultsRequest,
    ListTasksRequest,
    MeasurementResult,
    ModuleState,
    Task,
)
from dbos_actors.client.errors import RefusedError

PAGE_SIZE = 500
"""Records asked for at a time. At their usual sizes, far from the limit of a message."""


async def agents(
    stub: DbosStub, request: ListAgentsRequest | None = None, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[Agent]:
    """All agents that ``request`` asks for, by id. Raises `ClientError`, as do the others here."""
    request = request or ListAgentsRequest()
    async for agent in _records(stub.list_agents, request, "agents", page_size):
        yield agent


async def runs(
    stub: DbosStub, request: ListModuleStatesRequest, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[ModuleState]:
    """All states of runs and modules that ``request`` asks for, by the time of the last change."""
    async for state in _records(stub.list_module_states, request, "states", page_size):
        yield state


async def results(
    stub: DbosStub, request: ListResultsRequest, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[MeasurementResult]:
    """All results that ``request`` asks for, by the time when they were received."""
    async for result in _records(stub.list_results, request, "results", page_size):
        yield result


async def tasks(
    stub: DbosStub, request: ListTasksRequest | None = None, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[Task]:
    """All tasks that ``request`` asks for, by id."""
    request = request or ListTasksRequest()
    async for task in _records(stub.list_tasks, request, "tasks", page_size):
        yield task


async def events(
    stub: DbosStub, request: GetEventsRequest | None = None, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[bytes]:
    """All kept events that ``request`` asks for, each as JSON, newest first."""
    request = dataclasses.replace(request or GetEventsRequest(), limit=page_size)
    async for event in _records(stub.get_events, request, "events", None):
        yield event


async def _records(
    method: Callable[[Any], Awaitable[Any]], request: Any, field: str, page_size: int | None
) -> AsyncIterator[Any]:
    request = dataclasses.replace(request)
    if page_size is not None:
        request.page_size = page_size
    while True:
        response = await method(request)
        if response.error:
            raise RefusedError(response.error)
        for record in getattr(response, field):
            yield record
        request.page_token = response.next_page_token
        if not request.page_token:
            return
