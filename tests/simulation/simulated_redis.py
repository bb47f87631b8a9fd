"""An in-memory Redis that can die, lose its last second, fail over, refuse and stall.

`Node` is one server: its data, its append-only log, and what it makes of a
command in the state it is in. `SimulatedRedis` is a deployment: the node that
is primary now, over a simulated network. It speaks RESP2 to the real store
through `SimulatedConnector`.

The log has one entry per command, transaction or script, as the append-only
file of a real server has; so what a crash loses is always a suffix of whole
commits, never a part of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

import trio
from hiredis import Reader

from dbos_actors.clock import Clock
from dbos_actors.store.connection import ConnectionLostError
from tests.simulation.network import Route, SimulatedStream
from tests.simulation.redis_commands import (
    NULL_ARRAY,
    OK,
    Arguments,
    CommandError,
    Database,
    NullArray,
    Simple,
    check_arity,
    lookup,
)
from tests.simulation.redis_scripts import run_script

EXECABORT: Final = "EXECABORT Transaction discarded because of previous errors."
LOADING: Final = "LOADING Valkey is loading the dataset in memory"


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
        """Run commands as one entry of the log; errors are values."""
        recorder = _Recorder(self)
        replies = [recorder.call(arguments) for arguments in commands]
        recorder.finish()
        return replies

    def run_script(self, text: bytes, keys: Arguments, arguments: Arguments) -> Any:
        """Run a script as one entry of the log."""
        recorder = _Recorder(self)
        try:
            return run_script(text, keys, arguments, recorder.call)
        except CommandError as error:
            return error
        finally:
            recorder.finish()

    def lose_since(self, at_s: float, keep: int) -> int | None:
        """Cut what was logged after a moment, but for the first ``keep`` entries.

        Returns the tick of the first entry lost, or None.
        """
        count = max(keep, sum(entry.at_s <= at_s for entry in self.log))
        first_lost = self.log[count].tick if count < len(self.log) else None
        del self.log[count:]
        self.load()
        return first_lost


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


class Session:
    """One connection's dialogue with a node: authentication, WATCH, MULTI."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._authenticated = node.password is None
        self._watched: dict[bytes, int] = {}
        self._queue: list[Arguments] | None = None
        self._queue_is_bad = False

    def execute(self, arguments: Arguments) -> Any:
        """The reply to one command."""
        try:
            return self._execute(arguments)
        except CommandError as error:
            if self._queue is not None and arguments[0].upper() != b"EXEC":
                self._queue_is_bad = True
            return error

    def _execute(self, arguments: Arguments) -> Any:
        name = arguments[0].upper()
        own = _SESSION_COMMANDS.get(name)
        if own is None:
            command = lookup(arguments)
            writes, needs_memory = command.writes, command.needs_memory
        else:
            check_arity(name, arguments, own[1])
            writes = needs_memory = False
        if not self._authenticated and name not in (b"AUTH", b"HELLO"):
            raise CommandError("NOAUTH Authentication required.")
        queueing = self._queue is not None and name not in _NEVER_QUEUED
        self._check_refusal(
            name,
            writes=writes,
            needs_memory=needs_memory or (queueing and self._node.oom_refuses_reads_in_multi),
        )
        if self._node.mode is Mode.LOADING and name not in _WHILE_LOADING:
            raise CommandError(LOADING)
        if self._queue is not None and name in (b"MULTI", b"WATCH"):
            shown = name.decode().lower()
            raise CommandError(f"ERR Command '{shown}' not allowed inside a transaction")
        if queueing:
            assert self._queue is not None
            self._queue.append(arguments)
            return Simple("QUEUED")
        if own is not None:
            return own[0](self, arguments)
        (reply,) = self._node.run_logged(arguments)
        return reply

    def _check_refusal(self, name: bytes, *, writes: bool, needs_memory: bool) -> None:
        refusal = self._node.refusal
        if refusal is None:
            return
        if refusal is Refusal.OOM:
            if needs_memory:
                raise CommandError(refusal.value)
        elif name == b"EVAL" and self._queue is None:
            # Whatever it would do: our scripts do not declare that they only read.
            if refusal is Refusal.READONLY:
                raise CommandError(
                    "READONLY You can not run script with write flag on readonly replica."
                )
            raise CommandError(refusal.value)
        elif (
            writes
            or (name == b"PING" and refusal is Refusal.MISCONF)
            or (name == b"EXEC" and not self._queue_is_bad and self._queue_writes())
        ):
            raise CommandError(refusal.value)

    def _queue_writes(self) -> bool:
        queue = self._queue or ()
        return any(a[0].upper() == b"EVAL" or _writes(a) for a in queue)

    # ------------------------------------------------- commands of a session

    def _auth(self, arguments: Arguments) -> Any:
        if self._node.password is None:
            raise CommandError(
                "ERR AUTH <password> called without any password configured for the default "
                "user. Are you sure your configuration is correct?"
            )
        if arguments[-1].decode() != self._node.password:
            raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
        self._authenticated = True
        return OK

    def _ok(self, arguments: Arguments) -> Any:
        return OK

    def _ping(self, arguments: Arguments) -> Any:
        return arguments[1] if len(arguments) > 1 else Simple("PONG")

    def _info(self, arguments: Arguments) -> bytes:
        config = self._node.config
        enabled = int(config["appendonly"] == "yes")
        return (
            f"aof_enabled:{enabled}\r\nmaxmemory_policy:{config['maxmemory-policy']}\r\n"
        ).encode()

    def _config(self, arguments: Arguments) -> Any:
        if arguments[1].upper() == b"SET":
            self._node.config[arguments[2].decode()] = arguments[3].decode()
            return OK
        name = arguments[2].decode()
        value = self._node.config.get(name)
        return [] if value is None else [name.encode(), value.encode()]

    def _watch(self, arguments: Arguments) -> Any:
        changes = self._node.database.changes
        for key in arguments[1:]:
            self._watched.setdefault(key, changes.get(key, 0))
        return OK

    def _unwatch(self, arguments: Arguments) -> Any:
        self._watched.clear()
        return OK

    def _multi(self, arguments: Arguments) -> Any:
        self._queue = []
        self._queue_is_bad = False
        return OK

    def _discard(self, arguments: Arguments) -> Any:
        if self._queue is None:
            raise CommandError("ERR DISCARD without MULTI")
        self._queue = None
        self._watched.clear()
        return OK

    def _exec(self, arguments: Arguments) -> Any:
        if self._queue is None:
            raise CommandError("ERR EXEC without MULTI")
        queue, self._queue = self._queue, None
        watched, self._watched = self._watched, {}
        if self._queue_is_bad:
            raise CommandError(EXECABORT)
        changes = self._node.database.changes
        if any(changes.get(key, 0) != count for key, count in watched.items()):
            return NULL_ARRAY
        return self._run_queue(queue)

    def _run_queue(self, queue: list[Arguments]) -> list[Any]:
        if any(arguments[0].upper() in _SESSION_COMMANDS for arguments in queue):
            return [self.execute(arguments) for arguments in queue]
        return self._node.run_logged(*queue)

    def _eval(self, arguments: Arguments) -> Any:
        count = int(arguments[2])
        return self._node.run_script(arguments[1], arguments[3 : 3 + count], arguments[3 + count :])


_SESSION_COMMANDS: Final[dict[bytes, tuple[Callable[[Session, Arguments], Any], int]]] = {
    b"AUTH": (Session._auth, -2),
    b"CLIENT": (Session._ok, -2),
    b"CONFIG": (Session._config, -2),
    b"DISCARD": (Session._discard, 1),
    b"EVAL": (Session._eval, -3),
    b"EXEC": (Session._exec, 1),
    b"INFO": (Session._info, -1),
    b"MULTI": (Session._multi, 1),
    b"PING": (Session._ping, -1),
    b"SELECT": (Session._ok, 2),
    b"UNWATCH": (Session._unwatch, 1),
    b"WATCH": (Session._watch, -2),
}
_NEVER_QUEUED: Final = frozenset({b"EXEC", b"DISCARD", b"MULTI", b"WATCH"})
_WHILE_LOADING: Final = frozenset(
    {b"AUTH", b"CLIENT", b"CONFIG", b"DISCARD", b"EXEC", b"INFO", b"MULTI"}
    | {b"SELECT", b"UNWATCH", b"WATCH"}
)


def _writes(arguments: Arguments) -> bool:
    return arguments[0].upper() not in _SESSION_COMMANDS and lookup(arguments).writes


def encoded(reply: Any) -> bytes:
    """A reply as RESP2."""
    kind = type(reply)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if kind is int or kind is bool:
        return b":%d\r\n" % reply
    if reply is None:
        return b"$-1\r\n"
    if kind is Simple:
        return b"+%b\r\n" % reply.encode()
    if isinstance(reply, CommandError):
        return b"-%b\r\n" % str(reply).encode()
    if isinstance(reply, NullArray):
        return b"*-1\r\n"
    assert isinstance(reply, list), reply
    return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))


# ------------------------------------------------------------- a deployment


class SimulatedRedis:
    """A primary, and what befalls it."""

    def __init__(
        self, clock: Clock, nursery: trio.Nursery, *, now: Callable[[], int] = lambda: 0
    ) -> None:
        """``now`` is for `LogEntry.tick`."""
        self.clock = clock
        self.primary = Node("node-1", clock, now=now)
        self.nodes = 1
        self._nursery = nursery
        self._connections: list[tuple[Node, SimulatedStream]] = []

    def connect(self, route: Route) -> SimulatedStream:
        """A stream to the primary. Raises `ConnectionLostError`."""
        node = self.primary
        if node.mode is Mode.DOWN:
            raise ConnectionLostError("Connection refused")
        near, far = route.open()
        self._connections.append((node, far))
        self._nursery.start_soon(self._serve, node, far)
        return near

    async def _serve(self, node: Node, stream: SimulatedStream) -> None:
        session = Session(node)
        reader = Reader()
        try:
            while data := await stream.receive_some(1 << 20):
                reader.feed(data)
                await node.resumed.wait()
                if node.mode is Mode.DOWN:
                    break
                replies = []
                while (arguments := reader.gets()) is not False:
                    replies.append(encoded(session.execute(arguments)))
                if replies:
                    await stream.send_all(b"".join(replies))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            stream.close()
            self._connections = [entry for entry in self._connections if entry[1] is not stream]

    # ---------------------------------------------------------------- faults

    def stall(self) -> None:
        """Accept everything and answer nothing, until `resume`."""
        self.primary.resumed = trio.Event()

    def resume(self) -> None:
        """Answer again."""
        self.primary.resumed.set()

    def crash(self, *, lose_s: float = 0.0, keep: int = 0) -> int | None:
        """Die at once, with the last ``lose_s`` seconds not yet on disk.

        ``keep`` is how many entries of the log are there in any case. Returns the tick of the
        first entry lost, or None.
        """
        node = self.primary
        first_lost = None
        if lose_s and node.config["appendfsync"] != "always":
            first_lost = node.lose_since(self.clock.monotonic_s() - lose_s, keep)
        node.mode = Mode.DOWN
        self._disconnect(node)
        node.resumed.set()
        return first_lost

    def start(self, *, loading: bool = False) -> None:
        """Start over what is on disk; while loading it answers, but serves nothing."""
        node = self.primary
        node.load()
        node.refusal = None
        node.mode = Mode.LOADING if loading else Mode.SERVING

    def loaded(self) -> None:
        """Loading is over."""
        self.primary.mode = Mode.SERVING

    def fail_over(self, *, lag_s: float, keep: int = 0) -> int | None:
        """Promote a replica that lacks the last ``lag_s`` seconds; the old primary is gone.

        ``keep`` is how many entries of the log it has in any case. Returns the tick of the first
        entry it lacks, or None.
        """
        old = self.primary
        self.nodes += 1
        node = Node(f"node-{self.nodes}", self.clock, list(old.log), now=old.now)
        first_lost = node.lose_since(self.clock.monotonic_s() - lag_s, keep)
        node.password, node.config = old.password, old.config
        self.primary = node
        old.mode = Mode.DOWN
        old.resumed.set()
        self._disconnect(old)
        return first_lost

    def _disconnect(self, node: Node) -> None:
        for connected_to, stream in self._connections:
            if connected_to is node:
                stream.reset()


@dataclass(frozen=True, slots=True)
class SimulatedConnector:
    """A `dbos_actors.store.Connector` to a simulated deployment."""

    redis: SimulatedRedis
    route: Route
    address: str = "redis://simulated:6379"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    allowed: Callable[[], bool] = lambda: True
    """Whether the network lets this server through at all."""

    async def connect(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if not self.allowed():
            raise ConnectionLostError("No route to host")
        delay_s = self.route.conditions.latency_s
        if delay_s:
            await trio.sleep(delay_s * self.route.random.uniform(0.1, 1.0))
        await self.route.wait_thawed()
        return self.redis.connect(self.route)
