"""A worker: takes tasks as they fall due, and has a handler carry each one out."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import anyio

from dbos_actors.api.sdk.dbos import (
    AckTaskRequest,
    DbosStub,
    ExtendLeaseRequest,
    NackTaskRequest,
    SubscribeTasksRequest,
    SubscribeTasksRequestStart,
    Task,
)
from dbos_actors.backoff import Backoff
from dbos_actors.client.calls import RECONNECT_PAUSES, STREAM_S
from dbos_actors.client.errors import (
    DeadlineError,
    UnavailableError,
    call_error,
)

LEASE_S: Final = 60
"""How long the server waits for a worker that has died before another one gets its task."""

_EXTENSIONS: Final = 3
"""A lease is extended when a third of it has passed, so two extensions may fail."""

_REASON_CHARACTERS_MAX: Final = 500
"""Of an exception's text that goes back with its task; the server keeps 512 bytes."""

Handler: TypeAlias = Callable[[Task], Awaitable[None]]


class RetryLaterError(Exception):
    """Raised by a handler to give its task back for another attempt after ``delay_s`` seconds."""

    def __init__(self, reason: str, *, delay_s: int = 0) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


async def work(
    stub: DbosStub,
    handler: Handler,
    *,
    agent_id: str = "",
    module_name: str = "",
    concurrency: int = 8,
    lease_s: int = LEASE_S,
    worker_id: str = "",
    on_error: Callable[[Task, Exception], None] | None = None,
) -> None:
    """Work until cancelled: take tasks, and call ``handler`` for each, ``concurrency`` at a time.

    ``agent_id`` and ``module_name`` select tasks; empty means any. When the handler returns, the
    task is acknowledged. When it raises, the task goes back with the exception's text, to be tried
    again by the server's rules, and ``on_error`` is told; `RetryLaterError` says when. While a
    handler runs its lease of ``lease_s`` seconds is extended. If the lease is lost, because the
    server could not be reached for too long, the handler is cancelled: another worker has the task.
    So a task may be carried out more than once, and is never forgotten.

    When this is cancelled, handlers are cancelled and their tasks go back at once. Raises
    `ClientError` for a failure that another attempt cannot mend, such as a revoked token.
    """
    start = SubscribeTasksRequestStart(
        agent_id=agent_id,
        module_name=module_name,
        lease_seconds=lease_s,
        max_in_flight=concurrency,
        worker_id=worker_id or socket.gethostname(),
    )
    pauses = Backoff(RECONNECT_PAUSES, random.Random())  # noqa: S311 - jitter
    crew = _Crew(stub, handler, concurrency, lease_s, on_error)
    async with anyio.create_task_group() as handlers:
        while True:
            try:
                responses: Any = stub.subscribe_tasks(_requests(start), timeout=STREAM_S)
                async with aclosing(responses):
                    async for response in responses:
                        pauses.reset()
                        for task in response.tasks:
                            await crew.take(task, handlers.start_soon)
            except Exception as error:
                failure = call_error(error)
                if not isinstance(failure, UnavailableError | DeadlineError):
                    raise
            await anyio.sleep(pauses.next_s())


async def _requests(start: SubscribeTasksRequestStart) -> AsyncIterator[SubscribeTasksRequest]:
    """What a worker sends on its stream: what it wants. Outcomes go by calls of their own, which
    are made again when the stream is gone.
    """
    yield SubscribeTasksRequest(start=start)
    await anyio.sleep_forever()


class _Crew:
    """The handlers that run, at most ``concurrency`` at a time."""

    def __init__(
        self,
        stub: DbosStub,
        handler: Handler,
        concurrency: int,
        lease_s: int,
        on_error: Callable[[Task, Exception], None] | None,
    ) -> None:
        self._stub = stub
        self._handler = handler
        self._free = anyio.Semaphore(concurrency)
        self._lease_s = lease_s
        self._on_error = on_error

    async def take(self, task: Task, start: Callable[..., object]) -> None:
        """Start a task's handler once there is room for it.

        After a reconnect the server may push more while handlers of before still run.
        """
        await self._free.acquire()
        start(self._carry_out, task)

    async def _carry_out(self, task: Task) -> None:
        try:
            error: Exception | None = None
            ended = False
            with anyio.CancelScope() as lease:
                async with anyio.create_task_group() as running:
                    running.start_soon(self._keep_lease, task, lease)
                    try:
                        await self._handler(task)
                    except Exception as raised:  # noqa: BLE001 - it goes back with the task
                        error = raised
                    ended = True
                    running.cancel_scope.cancel()
            if ended:
                await self._settle(task, error)
        finally:
            self._free.release()

    async def _settle(self, task: Task, error: Exception | None) -> None:
        """Tell the server how a task has ended. If the lease is lost, that is no longer ours."""
        if error is not None and self._on_error is not None:
            self._on_error(task, error)
        try:
            if error is None:
                ack = AckTaskRequest(task_id=task.id, lease_token=task.lease_token)
                await self._stub.ack_task(ack, timeout=self._lease_s)
            else:
                nack = NackTaskRequest(
                    task_id=task.id,
                    lease_token=task.lease_token,
                    reason=f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS_MAX],
                    retry_delay_seconds=error.delay_s if isinstance(error, RetryLaterError) else 0,
                )
                await self._stub.nack_task(nack, timeout=self._lease_s)
        except (UnavailableError, DeadlineError):
            pass  # the lease has run out, and the server has the task done again

    async def _keep_lease(self, task: Task, lease: anyio.CancelScope) -> None:
        """Extend the lease while the handler runs; ``lease`` is cancelled when it is lost."""
        request = ExtendLeaseRequest(
            task_id=task.id, lease_token=task.lease_token, lease_seconds=self._lease_s
        )
        interval_s = self._lease_s / _EXTENSIONS
        ends_s = anyio.current_time() + self._lease_s
        while True:
            await anyio.sleep(interval_s)
            asked_s = anyio.current_time()
            try:
                response = await self._stub.extend_lease(request, timeout=interval_s)
            except (UnavailableError, DeadlineError):
                if anyio.current_time() >= ends_s:
                    lease.cancel()
                continue
            if not response.success:
                lease.cancel()
                return
            ends_s = asked_s + self._lease_s
