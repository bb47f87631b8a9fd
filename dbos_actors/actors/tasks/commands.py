"""The Redis commands that the scheduler's turns and snapshots are written with.

Without any I/O of its own, so that what repairs a store can use them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dbos_actors.api.messages import Task
from dbos_actors.domain.tasks.record import TaskRecord
from dbos_actors.store.keys import Keys
from dbos_actors.store.resp import pack, pack_argument, pack_head

_DROPPED_BY_COMMAND = 1_000


class TaskCommands:
    """The commands a turn is written with."""

    __slots__ = ("_journal_head", "_keys")

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._journal_head = pack_head(5, "XADD", keys.tasks_journal)

    def journal(self, sequence: int, entry: bytes) -> bytes:
        """Append a turn's entry."""
        return b"%b%b$1\r\ne\r\n%b" % (
            self._journal_head,
            pack_argument(b"%d-0" % sequence),
            pack_argument(entry),
        )

    def keep(self, task: Task) -> bytes:
        """Write a task as it is scheduled."""
        return pack("HSET", self._keys.tasks, task.id, task.SerializeToString())

    def forget(self, task_ids: Iterable[str]) -> bytes:
        """Drop what `keep` has written."""
        return pack("HDEL", self._keys.tasks, *task_ids)

    def fetch(self, records: Iterable[TaskRecord]) -> bytes:
        """Read what `keep` has written; one value or None for each."""
        return pack("HMGET", self._keys.tasks, *(record.task_id for record in records))

    def generation(self) -> bytes:
        """Read which snapshot is in force."""
        return pack("HGET", self._keys.tasks_snapshot, "generation")

    def add_chunk(self, generation: int, chunk: bytes, *, is_first: bool) -> list[bytes]:
        """Append a chunk to the snapshot of a generation."""
        key = f"{self._keys.tasks_snapshots}{generation}"
        commands = [pack("UNLINK", key)] if is_first else []
        return [*commands, pack("RPUSH", key, chunk)]

    def switch(self, generation: int, sequence: int) -> list[bytes]:
        """Let a complete snapshot stand for the journal up to and with ``sequence``."""
        keys = self._keys
        return [
            pack("HSET", keys.tasks_snapshot, "generation", generation, "sequence", sequence),
            pack("XTRIM", keys.tasks_journal, "MINID", "=", f"{sequence + 1}-0"),
            pack("UNLINK", f"{keys.tasks_snapshots}{generation - 1}"),
        ]

    def rebuild(
        self, generation: int, sequence: int, chunks: Sequence[bytes], dropped: Sequence[str]
    ) -> Iterator[list[bytes]]:
        """Replace snapshot and journal, whatever is in their place; each list is one commit.

        All but the last commit write beside what is in force, so they may be repeated.

        :param generation: of the new snapshot; not the one in force.
        :param sequence: the last one that any journal entry or snapshot ever had.
        :param dropped: ids of tasks that are not in the new snapshot.
        """
        keys = self._keys
        for number, chunk in enumerate(chunks):
            yield self.add_chunk(generation, chunk, is_first=not number)
        yield [
            *(
                self.forget(dropped[start : start + _DROPPED_BY_COMMAND])
                for start in range(0, len(dropped), _DROPPED_BY_COMMAND)
            ),
            pack("UNLINK", keys.tasks_snapshot, keys.tasks_journal),
            pack("HSET", keys.tasks_snapshot, "generation", generation, "sequence", sequence),
        ]
