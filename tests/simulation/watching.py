"""A client of the simulation that watches events.

A `Spectator` opens Watch streams one after the other, each from the last cursor that it got, for as
long as its plan says; each ends after a while, or as the faults will have it. At the end the log in
Redis says what it should have got: every event that it wanted, behind the cursor at which it began
and up to the last one that it was told, once and in this order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import trio
from grpclib.const import Status

from dbos_actors.api.messages import WatchRequest
from tests.simulation.history import StreamEndedError
from tests.simulation.plan import Plan
from tests.simulation.streaming import StreamEnd, Streams

_STREAM_S_MAX = 4.0
_PAUSE_S_MAX = 1.0

LoggedEvent = tuple[tuple[int, int], dict[str, Any]]
"""An entry of the log: its id and the event."""


class Spectator:
    """A client that watches."""

    def __init__(self, name: str, *, plan: Plan, random: Random, service: Streams) -> None:
        self.name = name
        self._plan = plan
        self._random = random
        self._service = service
        self._wanted: dict[str, Any] = random.choice(
            [
                {},
                {"agent_id": "agent:0"},
                {"module_name": "ping"},
                {"types": ["run.running", "task.dead", "agent.registered"]},
            ]
        )
        self._began_at = ""
        self._cursor = random.choice(["", "0"])
        self._got: list[str] = []
        self._refusals: list[str] = []

    async def run(self) -> None:
        """Watch on the planned number of streams."""
        for _ in range(self._plan.watches):
            try:
                stream, _ = await self._service.open_stream("Watch")
                with trio.move_on_after(self._random.uniform(0.2, _STREAM_S_MAX)):
                    await self._receive(stream)
                stream.abandon()
            except StreamEndedError as error:
                if error.status is Status.OUT_OF_RANGE:
                    self._refusals.append(error.text or "")
                    return
            await trio.sleep(self._random.uniform(0.0, _PAUSE_S_MAX))

    async def _receive(self, stream: StreamEnd) -> None:
        request = WatchRequest(cursor=self._cursor, progress_seconds=1, **self._wanted)
        await stream.send(request)
        await stream.end()
        slowness = self._random.choice([0.0, 0.0, 0.3, 1.0])
        while (response := await stream.receive()) is not None:
            self._began_at = self._began_at or response.cursor
            self._got += [event.cursor for event in response.events]
            self._cursor = response.cursor
            if self._random.random() < slowness:
                await trio.sleep(self._random.uniform(0.0, 0.5))

    def complaints(self, log: Sequence[LoggedEvent]) -> list[str]:
        """What it should have got and did not, or the other way round."""
        if self._refusals:
            return [f"{self.name} was refused: {self._refusals}"]
        if not self._began_at:
            return []
        first, last = _id(self._began_at), _id(self._cursor)
        due = [
            f"{ms}-{number}"
            for (ms, number), event in log
            if first < (ms, number) <= last and self._wants(event)
        ]
        if due == self._got:
            return []
        return [
            (
                f"{self.name} wanted {self._wanted} from {self._began_at} to {self._cursor}, "
                f"and missed {_only(due, self._got)}, got {_only(self._got, due)} besides, "
                f"{len(self._got)} in all"
            )
        ]

    def _wants(self, event: dict[str, Any]) -> bool:
        about = event["metadata"]
        return (
            self._wanted.get("agent_id") in (None, about.get("agent_id"))
            and self._wanted.get("module_name") in (None, about.get("module_name"))
            and event["type"] in self._wanted.get("types", (event["type"],))
        )


def logged(entries: Iterable[tuple[tuple[int, int], Sequence[bytes]]]) -> list[LoggedEvent]:
    """The entries of the log in Redis."""
    return [(entry_id, json.loads(fields[1])) for entry_id, fields in entries]


def _id(cursor: str) -> tuple[int, int]:
    ms, _, number = cursor.partition("-")
    return int(ms), int(number)


def _only(these: Sequence[str], those: Sequence[str]) -> list[str]:
    known = set(those)
    return [one for one in these if one not in known]
