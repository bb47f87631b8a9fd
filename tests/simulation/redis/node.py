"""One server: its data, its append-only log, and the state that it is in.

The log has one entry per command, transaction or script, as the append-only file of a real server
has. So what a crash loses is always a suffix of whole commits, never a part of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import trio

from dbos_actors.clock import Clock
from tests.simulation.redis.arguments import Arguments
from tests.simulation.redis.database import Database
from tests.simulation.redis.replies import CommandError
from tests.simulation.redis.scripts import Call, run_script


class Refusal(Enum):
    """Why a server that runs does not accept writes."""

    OOM = "OOM command not allowed when used memory > 'maxmemory'."
    READONLY = "READONLY You can't write against a read only replica."
    MISCONF = "MISCONF Errors writing to the AOF file: No space left on device"


class Mode(Enum):
    """What a node does with its connections."""

    SERVING = auto()
    LOADING = auto()
    DOWN = auto()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What one command, transaction or script wrote."""

    at_s: float
    tick: int
    """Of the clients' history, when it was written."""
    commands: Sequence[Arguments]


class Node:
    """One server."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        log: list[LogEntry] | None = None,
        *,
        now: Callable[[], int] = lambda: 0,
    ) -> None:
        """A server whose append-only file holds ``log``; ``now`` is for `LogEntry.tick`."""
        self.name = name
        self.clock = clock
        self.now = now
        self.mode = Mode.SERVING
        self.refusal: Refusal | None = None
        self.oom_refuses_reads_in_multi = False
        """As Redis 7 does and Valkey does not."""
        self.password: str | None = None
        self.config = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        self.log: list[LogEntry] = log if log is not None else []
        self.resumed = trio.Event()
        self.resumed.set()
        self.load()

    def load(self) -> None:
        """Read the log back, as a start does."""
        self.database = Database()
        for entry in self.log:
            for arguments in entry.commands:
                self.database.execute(arguments, 0)
        # A real server counts no changes while it loads; nobody watches yet either.
        self.database.dirty = 0

    @property
    def now_ms(self) -> int:
        return int(self.clock.wall_s() * 1000)

    def run_logged(self, *commands: Arguments) -> list[Any]:
        """Run commands and scripts as one entry of the log; errors are values."""
        recorder = _Recorder(self)
        replies = [
            _run_script(arguments, recorder.call)
            if arguments[0].upper() == b"EVAL"
            else recorder.call(arguments)
            for arguments in commands
        ]
        recorder.finish()
        return replies

    def lose_since(self, at_s: float, keep: int) -> int | None:
        """Cut what was logged after a moment, but for the first ``keep`` entries.

        Returns the tick of the first entry lost, or None.
        """
        count = max(keep, sum(entry.at_s <= at_s for entry in self.log))
        first_lost = self.log[count].tick if count < len(self.log) else None
        del self.log[count:]
        self.load()
        return first_lost


def _run_script(command: Arguments, call: Call) -> Any:
    after_keys = 3 + int(command[2])
    try:
        return run_script(command[1], command[3:after_keys], command[after_keys:], call)
    except CommandError as error:
        return error


class _Recorder:
    """Collects what changes data, for the log."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._commands: list[Arguments] = []

    def call(self, arguments: Arguments) -> Any:
        database = self._node.database
        dirty = database.dirty
        now_ms = self._node.now_ms
        reply = database.execute(arguments, now_ms)
        if database.dirty != dirty:
            self._commands.append(_replayable(arguments, now_ms))
        return reply

    def finish(self) -> None:
        if self._commands:
            node = self._node
            node.log.append(LogEntry(node.clock.monotonic_s(), node.now(), self._commands))


def _replayable(arguments: Arguments, now_ms: int) -> Arguments:
    """The same with an absolute time to live, as real servers log it."""
    name = arguments[0].upper()
    if name in (b"EXPIRE", b"PEXPIRE"):
        scale = 1000 if name == b"EXPIRE" else 1
        return [b"PEXPIREAT", arguments[1], b"%d" % (now_ms + int(arguments[2]) * scale)]
    if name != b"SET" or len(arguments) < 5:
        return arguments
    options = [option.upper() for option in arguments[3:]]
    for unit, scale in ((b"PX", 1), (b"EX", 1000)):
        if unit in options:
            amount = int(arguments[3 + options.index(unit) + 1])
            at_ms = b"%d" % (now_ms + amount * scale)
            return [b"SET", arguments[1], arguments[2], b"PXAT", at_ms]
    return arguments[:3]
