"""The tasks: snapshot and journal, and the tasks as they were scheduled, against each other.

The scheduler's state is one thing made of many entries, so it is mended as a whole: a fresh
snapshot of everything that can be read replaces the old one and the journal, in one commit.

`domain.tasks.salvage` says what becomes of the readable parts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from dbos_actors.actors.tasks.commands import TaskCommands
from dbos_actors.domain.tasks.limits import TaskLimits
from dbos_actors.domain.tasks.salvage import Readable, Salvager, disagree
from dbos_actors.domain.tasks.snapshot import snapshot_chunks
from dbos_actors.domain.tasks.states import Status
from dbos_actors.domain.tasks.timers import Now
from dbos_actors.maintenance import records
from dbos_actors.maintenance.findings import Finding, Report
from dbos_actors.maintenance.reading import StoreReader
from dbos_actors.store import Keys, pack

_STEP: Final = 1_000
_NO_LIMITS: Final = TaskLimits(tasks_max=1 << 62, completed_max=1 << 62)
_ATTEMPTS: Final = 5
"""How often a server that snapshots meanwhile is waited for."""

NO_STATE: Final = "has no state: it begins anew as pending"
NO_TASK: Final = "is the state of a task that is gone"
BAD_STATE: Final = "has a state that cannot be decoded: it begins anew as pending"
OTHER_STATE: Final = "has a state that tells something else: the record is right"
_MENDED: Final = (NO_STATE, BAD_STATE, OTHER_STATE)


class TaskInspection:
    """Reads the scheduler's state once, and compares it with the tasks."""

    def __init__(self, reader: StoreReader, keys: Keys, report: Report) -> None:
        self._reader = reader
        self._keys = keys
        self._report = report
        self._last_id = b"0-0"
        self.states = Readable()
        self.generation = 0
        """Of the snapshot that was read; the next one's is higher than this and any there is."""
        self.is_damaged = False
        """Whether only a fresh snapshot mends what was found."""

    async def inspect(self) -> None:
        """Read everything and report what is wrong."""
        for attempt in range(1, _ATTEMPTS + 1):
            problems = await self._read_state()
            if not problems or attempt == _ATTEMPTS or not await self._has_moved_on():
                break
        for finding in problems:
            await self._found(finding)
        async for page in self._reader.fields(self._keys.tasks):
            await self._tasks(page)
        for ids in self.states.ids(_STEP):
            await self._states(ids)
        # Counted now, in memory: a task that changed while pages were read counts as the ledger
        # has it.
        open_tasks = 0
        for ids in self.states.ids(_STEP):
            open_tasks += sum(self._is_open(task_id) for task_id in ids)
            await trio.lowlevel.checkpoint()
        ledger = self.states.ledger
        surplus = ledger.scheduled - ledger.completed - open_tasks
        if surplus and not self.is_damaged and not await self._has_moved_on():
            key = self._keys.tasks_journal.encode()
            problem = "counts other tasks than there are"
            await self._found(Finding(key=key, problem=problem, detail=f"{surplus} too many"))

    async def _found(self, finding: Finding) -> None:
        self.is_damaged = True
        await self._report(finding)

    # ------------------------------------------------------- snapshot and journal

    async def _read_state(self) -> list[Finding]:
        self.states = Readable()
        self._last_id = b"0-0"
        problems: list[Finding] = []
        sequence = await self._read_snapshot(problems)
        key = self._keys.tasks_journal
        if sequence:
            self._last_id = b"%d-0" % self.states.sequence
        async for page in self._reader.stream_entries(key, self._last_id):
            self._replay(page, problems)
        return problems

    async def _read_snapshot(self, problems: list[Finding]) -> int | None:
        """Returns the sequence that the snapshot must end with; 0 if there is none."""
        keys = self._keys
        head = keys.tasks_snapshot
        values, exists = await self._reader.at_once(
            pack("HMGET", head, "generation", "sequence"), pack("EXISTS", head)
        )
        sequence: int | None = 0
        self.generation = 0
        if exists:
            if isinstance(values, list) and all(value and value.isdigit() for value in values):
                self.generation, sequence = map(int, values)
            if not self.generation:
                self.generation, sequence = await self._latest_generation(), None
                problems.append(
                    Finding(key=head.encode(), problem="is not generation and sequence")
                )
        elif not await self._is_beginning():
            self.generation, sequence = await self._latest_generation(), None
            if self.generation:
                problems.append(Finding(key=head.encode(), problem="is missing"))
        if not self.generation:
            return 0
        key = f"{keys.tasks_snapshots}{self.generation}".encode()
        async for chunks in self._reader.elements(key):
            for chunk in chunks:
                problem = self.states.load_chunk(chunk)
                if problem is not None:
                    problems.append(Finding(key=key, problem=problem, drops=True))
        whole = self.states.end_snapshot(sequence)
        problems += [Finding(key=key, problem=problem, drops=True) for problem in whole]
        return self.states.sequence

    async def _latest_generation(self) -> int:
        prefix = self._keys.tasks_snapshots
        found = [0]
        async for page in self._reader.keys(prefix):
            for name, kind in page:
                number = name.removeprefix(prefix.encode())
                if kind == b"list" and number.isdigit():
                    found.append(int(number))
        return max(found)

    async def _is_beginning(self) -> bool:
        """Whether the journal is all there is: empty, or there from the first entry on."""
        key = self._keys.tasks_journal
        (first,) = await self._reader.read(pack("XRANGE", key, "-", "+", "COUNT", 1))
        if isinstance(first, list) and first:
            return bool(first[0][0] == b"1-0")
        # An interrupted first snapshot is none; one that ends with entries is one.
        (tasks,) = await self._reader.read(pack("HLEN", self._keys.tasks))
        return not isinstance(tasks, int) or tasks == 0

    def _replay(self, page: list[tuple[bytes, list[bytes]]], problems: list[Finding]) -> None:
        key = self._keys.tasks_journal.encode()
        for entry_id, fields in page:
            wrong = self.states.replay(entry_id, fields)
            problems += [Finding(key=key, problem=problem, drops=True) for problem in wrong]
            self._last_id = entry_id

    async def _has_moved_on(self) -> bool:
        """Whether a server has written another snapshot meanwhile."""
        head = self._keys.tasks_snapshot
        (generation,) = await self._reader.read(pack("HGET", head, "generation"))
        return isinstance(generation, bytes) and generation != b"%d" % self.generation

    # ------------------------------------------------------------ tasks and states

    async def _tasks(self, page: list[tuple[bytes, bytes]]) -> None:
        """Every task must have a state that is its own."""
        suspects: list[bytes] = []
        for field, data in page:
            if self._problem_of(field, data) is not None:
                suspects.append(field)
        if not suspects:
            return
        for field, data in zip(suspects, await self._again(suspects), strict=True):
            problem = None if data is None else self._problem_of(field, data)
            if problem is None or data is None:
                continue
            is_lost = problem not in _MENDED
            await self._found(
                Finding(
                    key=self._keys.tasks.encode(),
                    item=field,
                    problem=problem,
                    detail=f"{len(data)} bytes",
                    drops=is_lost,
                    remedy=(pack("HDEL", self._keys.tasks, field),) if is_lost else (),
                )
            )

    def _problem_of(self, field: bytes, data: bytes) -> str | None:
        try:
            task = records.task(field, data)
        except records.DamagedRecordError as error:
            return str(error)
        record = self.states.record(task.id)
        if record is None:
            return BAD_STATE if task.id in self.states.rows else NO_STATE
        return OTHER_STATE if disagree(record, task) else None

    async def _states(self, page: list[str]) -> None:
        """Every state must have a task."""
        names = [task_id.encode() for task_id in page]
        tasks = self._keys.tasks
        there = await self._reader.read(*(pack("HEXISTS", tasks, name) for name in names))
        suspects = [name for name, exists in zip(names, there, strict=True) if exists == 0]
        if not suspects:
            return
        for name, data in zip(suspects, await self._again(suspects), strict=True):
            if data is None and name.decode() in self.states.rows:
                key = self._keys.tasks_journal.encode()
                await self._found(Finding(key=key, item=name, problem=NO_TASK, drops=True))

    def _is_open(self, task_id: str) -> bool:
        record = self.states.record(task_id)
        return record is not None and record.status is not Status.COMPLETED

    async def _again(self, fields: list[bytes]) -> list[Any]:
        """The tasks of these fields, at one moment with the end of the journal."""
        key = self._keys.tasks_journal
        entries, values = await self._reader.at_once(
            pack("XRANGE", key, b"(" + self._last_id, "+"),
            pack("HMGET", self._keys.tasks, *fields),
        )
        if isinstance(entries, list):
            page = [(entry_id, entry or []) for entry_id, entry in entries]
            self._replay(page, [])
        return values if isinstance(values, list) else [None] * len(fields)

    # ------------------------------------------------------------ a fresh snapshot

    async def renew(self, now: Now, commit: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
        """Put a fresh snapshot of everything readable in the place of snapshot and journal.

        The tasks must have been inspected, and be changed by nobody else. Only the last commit
        changes what is in force.
        """
        keys = self._keys
        salvager = Salvager(_NO_LIMITS, readable=self.states)
        async for page in self._reader.fields(keys.tasks):
            salvager.read_records(page)
        found = None
        for step in salvager.steps(now):
            found = step
            await trio.lowlevel.checkpoint()
        assert found is not None  # the last step gives it
        generation = max(self.generation, await self._latest_generation()) + 1
        chunks = []
        for chunk in snapshot_chunks(found.book):
            chunks.append(chunk)
            await trio.lowlevel.checkpoint()
        sequence = found.book.sequence
        for commands in TaskCommands(keys).rebuild(generation, sequence, chunks, ()):
            await commit(commands)
        in_force = f"{keys.tasks_snapshots}{generation}".encode()
        async for names in self._reader.keys(keys.tasks_snapshots):
            old = [name for name, _ in names if name != in_force]
            if old:
                await commit([pack("UNLINK", *old)])
