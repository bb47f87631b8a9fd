"""One walk over a store: every key by its name and type, then what the keys hold."""

from __future__ import annotations

from typing import Final

from dbos_actors.actors.agents.change_clock import is_mark
from dbos_actors.maintenance import records
from dbos_actors.maintenance.agents import AgentInspection
from dbos_actors.maintenance.findings import Finding, Report
from dbos_actors.maintenance.names import Name, parsed
from dbos_actors.maintenance.reading import StoreReader
from dbos_actors.maintenance.tasks import TaskInspection
from dbos_actors.store import Keys, pack

_ABOUT_TASKS: Final = ("tasks", "tasks:journal", "tasks:snapshot", "tasks:snapshot:")
_HEAD: Final = ("layout", "commit", "owner")


class Inspection:
    """A walk over everything but the head."""

    def __init__(self, reader: StoreReader, keys: Keys, report: Report) -> None:
        self._reader = reader
        self._keys = keys
        self._report = report
        self.tasks = TaskInspection(reader, keys, report)
        self.unknown: int = 0
        """Keys beside the service's, which are left alone."""

    async def types(self) -> None:
        """Report keys whose name or type is wrong; nothing about what they hold."""
        self.unknown = 0
        async for page in self._reader.keys(self._keys.prefix):
            for key, kind in page:
                problem = self._problem_of(key, kind)
                if problem is not None:
                    remedy = (pack("UNLINK", key),)
                    await self._report(Finding(key=key, problem=problem, drops=True, remedy=remedy))

    def _problem_of(self, key: bytes, kind: bytes) -> str | None:
        try:
            name = parsed(key, self._keys)
        except ValueError as error:
            return str(error)
        if name is None:
            self.unknown += 1
            return None
        if name.kind in _HEAD or kind in (name.type, b"none"):
            return None
        return f"is a {kind.decode()}, must be a {name.type.decode()}"

    async def contents(self) -> None:
        """Report what keys of the right type hold that they must not, or lack."""
        agents = AgentInspection(self._reader, self._keys, self._report)
        async for page in self._reader.keys(self._keys.prefix):
            for key, kind in page:
                name = self._usable(key, kind)
                if name is None or name.kind in _HEAD or name.kind in _ABOUT_TASKS:
                    continue
                if name.kind == "events":
                    await self._events(key)
                elif name.kind == "to-check":
                    await self._marks(key)
                elif name.kind == "changes":
                    await self._changes(key)
                else:
                    await agents.inspect(key, name)
        await self.tasks.inspect()

    def _usable(self, key: bytes, kind: bytes) -> Name | None:
        try:
            name = parsed(key, self._keys)
        except ValueError:
            return None
        return name if name is not None and name.type == kind else None

    async def _events(self, key: bytes) -> None:
        async for page in self._reader.stream_entries(key):
            for entry_id, fields in page:
                try:
                    records.event(fields)
                except records.DamagedRecordError as error:
                    remedy = (pack("XDEL", key, entry_id),)
                    await self._report(
                        Finding(
                            key=key, item=entry_id, problem=str(error), drops=True, remedy=remedy
                        )
                    )

    async def _changes(self, key: bytes) -> None:
        """The moment above all times of change: without it, the wall clock alone orders changes."""
        (value,) = await self._reader.read(pack("GET", key))
        if value is not None and not is_mark(value):
            problem = "is no time in milliseconds"
            remedy = (pack("UNLINK", key),)
            await self._report(Finding(key=key, problem=problem, drops=True, remedy=remedy))

    async def _marks(self, key: bytes) -> None:
        """What a server noted: the keys that refused a command inside a commit."""
        async for page in self._reader.fields(key):
            for field, note in page:
                await self._report(
                    Finding(
                        key=field,
                        problem="refused a command inside a commit",
                        detail=note.decode(errors="backslashreplace"),
                        remedy=(pack("HDEL", key, field),),
                    )
                )
