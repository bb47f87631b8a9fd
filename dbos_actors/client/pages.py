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
    async for page in responses(stub.list_agents, request, page_size=page_size):
        for agent in page.agents:
            yield agent


async def runs(
    stub: DbosStub, request: ListModuleStatesRequest, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[ModuleState]:
    """All states of runs and modules that ``request`` asks for, by the time of the last change."""
    async for page in responses(stub.list_module_states, request, page_size=page_size):
        for state in page.states:
            yield state


async def results(
    stub: DbosStub, request: ListResultsRequest, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[MeasurementResult]:
    """All results that ``request`` asks for, by the time when they were received."""
    async for page in responses(stub.list_results, request, page_size=page_size):
        for result in page.results:
            yield result


async def tasks(
    stub: DbosStub, request: ListTasksRequest | None = None, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[Task]:
    """All tasks that ``request`` asks for, by id."""
    request = request or ListTasksRequest()
    async for page in responses(stub.list_tasks, request, page_size=page_size):
        for task in page.tasks:
            yield task


async def events(
    stub: DbosStub, request: GetEventsRequest | None = None, *, page_size: int = PAGE_SIZE
) -> AsyncIterator[bytes]:
    """All kept events that ``request`` asks for, each as JSON, newest first."""
    request = request or GetEventsRequest()
    listing = responses(stub.get_events, request, page_size=page_size, size_field="limit")
    async for page in listing:
        for event in page.events:
            yield event


async def responses(
    method: Callable[[Any], Awaitable[Any]],
    request: Any,
    *,
    page_size: int = PAGE_SIZE,
    size_field: str = "page_size",
) -> AsyncIterator[Any]:
    """The pages of any listing, each as its response; ``size_field`` asks for ``page_size``."""
    request = dataclasses.replace(request, **{size_field: page_size})
    while True:
        response = await method(request)
        if response.error:
            raise RefusedError(response.error)
        yield response
        request.page_token = response.next_page_token
        if not request.page_token:
            return
