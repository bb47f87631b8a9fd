"""Workers of the simulation that have tasks pushed to them.

A `Worker` opens SubscribeTasks streams, one after the other, while tasks of its own agent are
scheduled. Each stream has a name of its own as its worker, so that the tasks in the book say
which stream they were leased to. A stream whose server told it the end has received all that was
leased to it before, so a task that is leased to it at the end of a run, with a token that it
never saw, is *stranded*: nobody works on it until its lease runs out.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from random import Random
from typing import Any

import trio
from grpclib.const import Status

from dbos_actors.api.messages import SubscribeTasksRequest
from dbos_actors.domain.tasks.record import TaskRecord
from tests.simulation.history import StreamEndedError
from tests.simulation.plan import Plan
from tests.simulation.streaming import StreamEnd, Streams

AGENT = "subscribed"

LEASE_S = 3600
"""Longer than a run: what is stranded is still leased when it is looked for."""

_ATTEMPTS = 1_000
_STREAM_S_MAX = 4.0


class Worker:
    """A client that works on what is pushed to it."""

    def __init__(self, name: str, *, plan: Plan, random: Random, service: Streams) -> None:
        self.name = name
        self._plan = plan
        self._random = random
        self._service = service
        self._scheduled = 0
        # The tokens that each stream has received, and the streams that were told their end.
        self._tokens: dict[str, set[str]] = {}
        self._told: set[str] = set()

    async def run(self) -> None:
        """Work on the planned number of streams."""
        for number in range(self._plan.subscriptions):
            await self._work(f"{self.name}/{number}")

    def stranded(self, inflight: Iterable[TaskRecord]) -> list[str]:
        """Which of these leases nobody knows of who could."""
        return [
            f"{record.task_id} is leased to {record.worker_id}, which never got it"
            for record in inflight
            if record.worker_id in self._told
            and record.lease_token not in self._tokens[record.worker_id]
        ]

    async def _work(self, stream_name: str) -> None:
        tokens = self._tokens[stream_name] = set()
        try:
            stream, _ = await self._service.open_stream("SubscribeTasks")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._schedule)
                with trio.move_on_after(self._random.uniform(1.0, _STREAM_S_MAX)):
                    await self._receive(stream, stream_name, tokens)
                nursery.cancel_scope.cancel()
            stream.abandon()
        except StreamEndedError as error:
            await trio.sleep(0.1)
            if error.status is Status.UNAVAILABLE and "draining" in error.text:
                self._told.add(stream_name)
        except BaseExceptionGroup as group:
            ended, rest = group.split(StreamEndedError)
            if rest is not None or ended is None:
                raise
            if any("the server is draining" in str(each) for each in ended.exceptions):
                self._told.add(stream_name)

    async def _schedule(self) -> None:
        while True:
            self._scheduled += 1
            task = {
                "id": f"{AGENT}-{self.name}-{self._scheduled}",
                "agent_id": AGENT,
                "module_name": "ping",
                "max_attempts": _ATTEMPTS,
            }
            await self._service.exchange("ScheduleTask", {"task": task}, 5.0)
            await trio.sleep(self._random.choice([0.0, 0.05, 0.3]))

    async def _receive(self, stream: StreamEnd, name: str, tokens: set[str]) -> None:
        await stream.send(
            SubscribeTasksRequest(
                start={
                    "agent_id": AGENT,
                    "worker_id": name,
                    "lease_seconds": LEASE_S,
                    "max_in_flight": self._random.choice([2, 100]),
                }
            )
        )
        while (response := await stream.receive()) is not None:
            for task in response.tasks:
                tokens.add(task.lease_token)
                if self._random.random() < 0.8:
                    ack: Any = {"task_id": task.id, "lease_token": task.lease_token}
                    with suppress(StreamEndedError):  # what was sent before the end is read first
                        await stream.send(SubscribeTasksRequest(ack=ack))
