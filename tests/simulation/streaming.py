"""Clients of the simulation that use streams.

A `BulkClient` sends results on StoreResults streams. Each message is an operation of its own:
it is answered once the stream's `durable` has passed it, and has no answer if the stream ends
before that. Then the client opens another stream and sends again what lies behind `durable`, as
the contract has it.
"""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

import trio

from dbos_actors.api.messages import StoreResultRequest
from tests.simulation.history import Ending, History, Operation, Outcome, StreamEndedError
from tests.simulation.plan import Plan

BULK_IDS = 40
"""Ids of results that each stream's client has for itself, so that nobody else stores them."""

_PAUSE_S = 0.3
"""Between two streams, at most."""


_READING_S_MAX = 1.0
"""For which a slow client is busy with a response before it reads the next."""


class StreamEnd(Protocol):
    """A client's end of a stream."""

    async def send(self, message: Any) -> None: ...

    async def end(self) -> None: ...

    async def receive(self) -> Any: ...

    def abandon(self) -> None: ...


class Streams(Protocol):
    """Whoever takes streams now."""

    violations: list[str]

    async def open_stream(self, method: str) -> tuple[StreamEnd, str]:
        """A stream, and the name of its server. Raises `StreamEndedError`."""
        ...

    async def exchange(
        self, method: str, request: dict[str, Any], timeout_s: float | None
    ) -> Outcome: ...

    def now_s(self) -> float: ...


class BulkClient:
    """A client that stores results in bulk."""

    def __init__(
        self, name: str, *, plan: Plan, random: Random, service: Streams, history: History
    ) -> None:
        self.name = name
        self._plan = plan
        self._random = random
        self._service = service
        self._history = history
        self._sent = 0
        self._agents = [f"agent:{i}" for i in range(plan.agents)]

    async def run(self) -> None:
        """Send on the planned number of streams."""
        random = self._random
        unsettled: list[dict[str, Any]] = []
        for _ in range(self._plan.bulk_streams):
            fresh = [self._next_request() for _ in range(random.randint(1, 20))]
            unsettled = await self._send([*unsettled, *fresh])
            await trio.sleep(random.uniform(0.0, _PAUSE_S))

    def _next_request(self) -> dict[str, Any]:
        random = self._random
        self._sent += 1
        return {
            "result": {
                "agent_id": random.choice(self._agents),
                "id": f"{self.name}-{self._sent % BULK_IDS}",
                # Without a module's name it is refused.
                "module_name": random.choices(["ping", ""], weights=[9, 1])[0],
                "data": random.choice([b"one", b"two"]),
            }
        }

    async def _send(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send on one stream; those that were not settled."""
        history = self._history
        operations: list[Operation] = []
        told = _Told(len(requests))
        server = ""
        slowness = self._random.choice([0.0, 0.0, 0.5, 1.0])
        wait_timeout_s = self._random.choice([1.0, 8.0, 60.0])
        try:
            stream, server = await self._service.open_stream("StoreResults")
        except StreamEndedError:
            return requests

        async def send() -> None:
            for request in requests:
                operations.append(
                    history.begin(self.name, "StoreResults", request, self._service.now_s())
                )
                await stream.send(StoreResultRequest(**request))
                if self._random.random() < 0.2:
                    await trio.sleep(self._plan.think_s)
            await stream.end()

        async def send_until_refused() -> None:
            try:
                await send()
            except StreamEndedError:
                await trio.sleep_forever()  # the receiver is told why

        ended = "no patience"
        with trio.move_on_after(wait_timeout_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_until_refused)
                try:
                    while (response := await stream.receive()) is not None:
                        self._settle(operations, told, response, server)
                        if self._random.random() < slowness:
                            await trio.sleep(self._random.uniform(0.0, _READING_S_MAX))
                    ended = "OK"
                except StreamEndedError as error:
                    ended = str(error)
                nursery.cancel_scope.cancel()
        stream.abandon()
        if ended == "OK" and told.durable < len(requests):
            self._service.violations.append(f"a stream ended well with {told} for {self.name}")
        for operation in operations[told.durable :]:
            history.finish(operation, (Ending.UNKNOWN, ended, server), self._service.now_s())
        return requests[told.durable :]

    def _settle(self, operations: list[Operation], told: _Told, response: Any, server: str) -> None:
        for rejected in response.rejected:
            told.rejected[rejected.index] = rejected.error
        if not told.durable <= response.durable <= len(operations):
            self._service.violations.append(f"durable went from {told} to {response}")
            return
        for operation in operations[told.durable : response.durable]:
            index = told.durable
            told.durable += 1
            is_sound = bool(operation.request["result"]["module_name"])
            error = told.rejected.pop(index, "")
            if is_sound == bool(error):
                self._service.violations.append(f"settled with {error!r}: {operation}")
            ending = Ending.NO_EFFECT if error else Ending.ANSWERED
            self._history.finish(operation, (ending, response, server), self._service.now_s())


class _Told:
    """What a stream's client has been told."""

    def __init__(self, sent: int) -> None:
        self.sent = sent
        self.durable = 0
        self.rejected: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"{self.durable} of {self.sent}"
