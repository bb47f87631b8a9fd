"""What a server answers on one connection: authentication, WATCH, MULTI, refusals; and RESP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tests.simulation.redis.arguments import Arguments
from tests.simulation.redis.database import check_arity, lookup
from tests.simulation.redis.node import Mode, Node, Refusal
from tests.simulation.redis.replies import NULL_ARRAY, OK, CommandError, NullArray, Simple

EXECABORT: Final = "EXECABORT Transaction discarded because of previous errors."
LOADING: Final = "LOADING Valkey is loading the dataset in memory"


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
        if any(arguments[0].upper() in _ONLY_IN_SESSION for arguments in queue):
            return [self.execute(arguments) for arguments in queue]
        return self._node.run_logged(*queue)

    def _eval(self, arguments: Arguments) -> Any:
        (reply,) = self._node.run_logged(arguments)
        return reply


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
_ONLY_IN_SESSION: Final = _SESSION_COMMANDS.keys() - {b"EVAL"}
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
