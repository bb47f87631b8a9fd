"""Sending results over one stream, and again after a reconnect until they are durable."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio

from dbos_actors.api.sdk.dbos import (
    DbosStub,
    MeasurementResult,
    StoreResultRequest,
    StoreResultsResponse,
)
from dbos_actors.backoff import Backoff
from dbos_actors.client.calls import RECONNECT_PAUSES, STREAM_S, encoded, leave_connection
from dbos_actors.client.errors import (
    DeadlineError,
    RefusedError,
    UnavailableError,
    call_error,
)

PENDING_MAX: Final = 4_000
"""Results that are kept until they are durable. The server reads no further ahead either."""

PENDING_BYTES_MAX: Final = 16 << 20
"""Of their `data`, in bytes; as the server's limit."""

STALLED_S: Final = 60.0
"""Without an answer for so long while one is due, the connection is given up and made again."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A result that the server refused for what it says."""

    result: MeasurementResult
    error: str


@asynccontextmanager
async def writer(
    stub: DbosStub,
    *,
    on_rejected: Callable[[Rejected], None] | None = None,
    pending_max: int = PENDING_MAX,
    pending_bytes_max: int = PENDING_BYTES_MAX,
    stalled_s: float = STALLED_S,
) -> AsyncIterator[Writer]:
    """A `Writer` for the length of the block, at whose end all that was sent is durable.

    Up to ``pending_max`` results with ``pending_bytes_max`` bytes of data are kept until they are
    durable; `Writer.send` waits beyond. When the connection is lost, the writer makes another one
    and sends again what it keeps, without end: the server stores each result once. So limit the
    time around the block if that must end.

    ``on_rejected`` is called for each result that the server refuses. Without it the first such
    result ends the block with `RefusedError`. Raises `ClientError`, alone, for a failure that
    another attempt cannot mend, such as a revoked token; and what the body raises, alone. If the
    body fails or is cancelled, what is not durable yet is given up.
    """
    queue = _Queue(on_rejected)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_keep_sending, stub, queue, stalled_s)
            this = Writer(queue, pending_max, pending_bytes_max)
            yield this
            await this.flush()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


class Writer:
    """Takes results and keeps each until it is durable. Made by `writer`."""

    def __init__(self, queue: _Queue, pending_max: int, pending_bytes_max: int) -> None:
        self._queue = queue
        self._pending_max = pending_max
        self._pending_bytes_max = pending_bytes_max

    @property
    def pending(self) -> int:
        """Results that are not known to be durable yet."""
        return len(self._queue.requests)

    @property
    def durable(self) -> int:
        """Results that the server has, since the writer was made."""
        return self._queue.durable

    @property
    def duplicates(self) -> int:
        """Those of them that it had before; among them what this writer sent twice."""
        return self._queue.duplicates

    @property
    def rejected(self) -> int:
        """Results that the server refused."""
        return self._queue.rejected

    async def send(self, result: MeasurementResult) -> None:
        """Take a result; waits while too many are pending. Raises `FieldError` for a wrong type.

        It is durable once `flush` has returned or the block has ended. If cancelled while it waits,
        the result is not taken.
        """
        queue = self._queue
        request = _Request(result)
        while queue.requests and (
            len(queue.requests) >= self._pending_max
            or queue.data_bytes + len(result.data) > self._pending_bytes_max
        ):
            await queue.changed.wait()
        queue.put(request)

    async def flush(self) -> None:
        """Wait until everything taken so far is durable or rejected."""
        queue = self._queue
        goal = queue.settled + len(queue.requests)
        while queue.settled < goal:
            await queue.changed.wait()


class _Request(StoreResultRequest):
    """A request that is encoded when it is taken, however often it is sent."""

    def __init__(self, result: MeasurementResult) -> None:
        """Raises `FieldError` if ``result`` holds a value of the wrong type."""
        super().__init__(result=result)
        self._encoded = encoded(StoreResultRequest(result=result))

    def __bytes__(self) -> bytes:
        return self._encoded

    SerializeToString = __bytes__


class _Queue:
    """What waits to be durable, in order, and what has become of the rest."""

    def __init__(self, on_rejected: Callable[[Rejected], None] | None) -> None:
        self._on_rejected = on_rejected
        self.requests: deque[_Request] = deque()
        self.data_bytes = 0
        self.durable = 0
        self.duplicates = 0
        self.rejected = 0
        self.changed = anyio.Event()
        """Set, and replaced by another, whenever something here has changed."""

    @property
    def settled(self) -> int:
        return self.durable + self.rejected

    def put(self, request: _Request) -> None:
        self.requests.append(request)
        self.data_bytes += len(request.result.data)
        self._notify()

    def settle(self, count: int, errors: Mapping[int, str]) -> None:
        """The first ``count`` are durable, but for those whose position has an error."""
        for position in range(count):
            result = self.requests.popleft().result
            self.data_bytes -= len(result.data)
            error = errors.get(position)
            if error is None:
                self.durable += 1
                continue
            self.rejected += 1
            if self._on_rejected is None:
                raise RefusedError(f"result {result.id!r} of agent {result.agent_id!r}: {error}")
            self._on_rejected(Rejected(result, error))
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


async def _keep_sending(stub: DbosStub, queue: _Queue, stalled_s: float) -> None:
    """Keep a stream open while there is something to send. Raises `ClientError`."""
    pauses = Backoff(RECONNECT_PAUSES, random.Random())  # noqa: S311 - jitter
    while True:
        while not queue.requests:
            await queue.changed.wait()
        settled = queue.settled
        with suppress(UnavailableError, DeadlineError):
            await _Stream(queue, stalled_s).run(stub)
        if queue.settled > settled:
            pauses.reset()
        await anyio.sleep(pauses.next_s())


class _Stream:
    """One StoreResults stream: the requests that it sends, and how far it has come."""

    def __init__(self, queue: _Queue, stalled_s: float) -> None:
        self._queue = queue
        self._stalled_s = stalled_s
        self._sent = 0
        """Requests handed to the stream."""
        self._settled = 0
        """Of these, how many the server has settled; the first one that waits comes next."""
        self._duplicates = 0
        self._rejected: dict[int, str] = {}
        """Position in the stream -> why, of those that are told and not settled yet."""
        self._answered_s = anyio.current_time()

    async def run(self, stub: DbosStub) -> None:
        """Send and settle until the stream ends, or the server is silent. Raises `ClientError`."""
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cut_when_silent, stub, tasks.cancel_scope)
            try:
                responses: Any = stub.store_results(self, timeout=STREAM_S)
                async with aclosing(responses):
                    async for response in responses:
                        self._settle(response)
            except Exception as error:  # noqa: BLE001 - raised below, outside of the group
                failure = call_error(error) or error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Request:
        """The next request to send, once there is one."""
        queue = self._queue
        while self._sent - self._settled >= len(queue.requests):
            await queue.changed.wait()
        request = queue.requests[self._sent - self._settled]
        self._sent += 1
        return request

    def _settle(self, response: StoreResultsResponse) -> None:
        self._answered_s = anyio.current_time()
        self._queue.duplicates += response.duplicates - self._duplicates
        self._duplicates = response.duplicates
        for rejected in response.rejected:
            self._rejected[rejected.index] = rejected.error
        first, self._settled = self._settled, max(response.durable, self._settled)
        errors = {
            index - first: self._rejected.pop(index)
            for index in list(self._rejected)
            if index < self._settled
        }
        self._queue.settle(self._settled - first, errors)

    async def _cut_when_silent(self, stub: DbosStub, stream: anyio.CancelScope) -> None:
        while True:
            await anyio.sleep(self._stalled_s / 4)
            if not self._queue.requests:
                self._answered_s = anyio.current_time()  # no answer is due
            elif anyio.current_time() - self._answered_s > self._stalled_s:
                stream.cancel()
                leave_connection(stub, f"no answer for {self._stalled_s:g} s")
