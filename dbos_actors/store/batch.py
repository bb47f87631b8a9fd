"""One commit: what goes over the wire for it, and what its answer means.

Every commit moves the commit key from one ``epoch:sequence`` to the next, and
only if the key has not been touched since it was last read. Two forms of batch are
commits, and two are not. Each is a single write to the socket:

- TRANSACTION, what turns are written with. The connection already watches the
  commit key. ``MULTI, commands, SET commit, EXEC, WATCH commit, GET commit``:
  the last two arm the watch for the next batch and show whether anyone wrote
  between the two.
- SCRIPT, for what must work even when Redis is out of memory: releasing the
  lease, and deletions. Redis refuses every command inside MULTI then, but runs
  a script that allows it. The script compares the key itself.
  Our own script also trips our watch, so an ``UNWATCH`` comes before ``WATCH``.
- RENEWAL: a script that renews the lease if the commit key is as expected, and
  leaves the key alone. If Redis loses it, the next renewal does the same.
- CHECK, when only reads wait: ``GET commit``. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from dbos_actors.errors import UnusableStoreError
from dbos_actors.store.connection import Connection, ConnectionLostError
from dbos_actors.store.resp import ReplyError, all_unpacked, pack, unpacked
from dbos_actors.store.submission import Submission

# A submission and when it came in, monotonic seconds.
Entry = tuple[Submission, float]

_MULTI = pack("MULTI")
_UNWATCH = pack("UNWATCH")

# What a batch costs in the replay window besides its commands.
BATCH_BYTES = 512

# Lua hands at most some 8,000 arguments to one call.
SCRIPT_ARGUMENTS = 4_000

# Redis takes at most 2**20 arguments in one command, and nothing else while a script runs.
SCRIPT_BYTES = 1 << 20

# KEYS: commit, owner. ARGV: the value the commit key must have, the next one, what to do about
# the lease, the owner's description, the lease in ms; then each command as its length and parts.
COMMIT_SCRIPT = """#!lua flags=allow-oom
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return nil end
local replies = {}
local at = 6
while at <= #ARGV do
  local size = tonumber(ARGV[at])
  replies[#replies + 1] = redis.pcall(unpack(ARGV, at + 1, at + size))
  at = at + size + 1
end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] == 'renew' then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5]) end
if ARGV[3] == 'release' then redis.call('DEL', KEYS[2]) end
return replies
"""


# KEYS: commit, owner. ARGV: the value the commit key must have, the owner's description, the
# lease in ms.
RENEW_SCRIPT = """#!lua flags=allow-oom
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return nil end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return {}
"""


class Form(Enum):
    """How a batch is sent."""

    TRANSACTION = auto()
    SCRIPT = auto()
    RENEWAL = auto()
    CHECK = auto()


class Lease(Enum):
    """What a SCRIPT batch does about the lease, as the script spells it."""

    KEEP = "keep"
    RENEW = "renew"
    RELEASE = "release"


class Batch:
    """The submissions of one commit; afterwards what is needed to repeat it."""

    __slots__ = ("body", "command_count", "confirmed_s", "entries", "form", "lease", "sequence")

    def __init__(
        self, form: Form, *, sequence: int, entries: list[Entry], lease: Lease = Lease.KEEP
    ) -> None:
        self.form = form
        # The one it sets; a CHECK or a RENEWAL sets none and has that of the last commit.
        self.sequence = sequence
        self.lease = lease
        # Emptied once they have their outcomes.
        self.entries = entries
        # Since when the store is known to have it; None: not known to.
        self.confirmed_s: float | None = None
        commands: list[bytes] = []
        for submission, _ in entries:
            commands += submission.commands
        self.command_count = len(commands)
        if form is Form.SCRIPT:
            parts: list[bytes] = []
            for command in commands:
                arguments = unpacked(command)
                parts.append(b"%d" % len(arguments))
                parts += arguments
            # A bulk array without its header: a script's arguments after the fixed ones.
            self.body = pack(*parts) if parts else b""
        else:
            self.body = b"".join(commands)

    @property
    def size_bytes(self) -> int:
        return len(self.body) + BATCH_BYTES

    def commands(self) -> list[list[bytes]]:
        """The arguments of each command, also when the submissions are gone."""
        if not self.body:
            return []
        if self.form is Form.SCRIPT:
            parts = unpacked(self.body)
            commands = []
            while parts:
                after = int(parts[0]) + 1
                commands.append(parts[1:after])
                parts = parts[after:]
            return commands
        return all_unpacked(self.body)


def check_for_script(commands: Sequence[bytes]) -> None:
    """Raise `ValueError` if a script cannot run one of these packed commands."""
    for command in commands:
        if int(command[1 : command.index(b"\r\n")]) > SCRIPT_ARGUMENTS:
            raise ValueError(f"more than {SCRIPT_ARGUMENTS} arguments in a command of a deletion")


@dataclass(slots=True)
class Answer:
    """What Redis said to a batch."""

    # The commit key after it, as the watch was armed again.
    commit: bytes | None
    # One per command. None: not executed, the key had been touched, unless `refusal` says more.
    replies: list[object] | None = None
    # Not executed, and why: Redis refuses.
    refusal: str | None = None
    # Which commands were refused by themselves, by index.
    refused_commands: tuple[int, ...] = ()
    # Executed but for these commands, by index, with the error of each: Redis does not roll back.
    failed_commands: tuple[tuple[int, str], ...] = ()


def damaged_commit_key(key: str, state: str) -> UnusableStoreError:
    """Somebody else has written to the commit key: where the store stands is unknown."""
    return UnusableStoreError(
        f"the store cannot be used: {key} {state}, not an epoch and a sequence as in 7:42. Another "
        "program, or a person, has written to it. Restore it from a backup, or delete it "
        f"(DEL {key}) while no server runs; then start again"
    )


class Wire:
    """Sends batches of one partition and reads their answers."""

    def __init__(self, *, commit_key: str, owner_key: str, owner: bytes, lease_ms: int) -> None:
        self._commit_key = commit_key
        self.read_command = pack("GET", commit_key)
        """Asks for the commit key; `key_value` is what its reply says."""
        self._watch_and_read = pack("WATCH", commit_key) + self.read_command
        self._exec = pack("EXEC") + self._watch_and_read
        self._eval_head = (COMMIT_SCRIPT, "2", commit_key, owner_key)
        self._renew_head = (RENEW_SCRIPT, "2", commit_key, owner_key)
        self.owner = owner
        """What the owner key is set to whenever the lease is renewed."""
        self._lease_ms = lease_ms

    async def arm(self, connection: Connection) -> bytes | None:
        """Watch the commit key and return its value. Raises `ConnectionLostError`."""
        watched, value = await connection.call(self._watch_and_read, 2)
        _expect_ok(watched)
        return self.key_value(value)

    async def read_key(self, connection: Connection) -> bytes | None:
        """The commit key, without watching it. Raises `ConnectionLostError`."""
        (value,) = await connection.call(self.read_command, 1)
        return self.key_value(value)

    def key_value(self, reply: object) -> bytes | None:
        """The commit key, from the reply to reading it.

        Raises:
            ConnectionLostError: Redis does not show it for now.
            UnusableStoreError: it is no string.
        """
        if reply is None or isinstance(reply, bytes):
            return reply
        if isinstance(reply, ReplyError) and str(reply).startswith("WRONGTYPE"):
            raise damaged_commit_key(self._commit_key, "is no string")
        raise ConnectionLostError(f"Redis does not show its state: {reply!r}")

    async def send(
        self, connection: Connection, batch: Batch, *, before: bytes, after: bytes
    ) -> Answer:
        """Send ``batch``, which moves the commit key from ``before`` to ``after``.

        Raises:
            ConnectionLostError: whether it was executed is unknown. Also when Redis answers out
                of order or will not show the key (it is loading, say).
        """
        match batch.form:
            case Form.TRANSACTION:
                return await self._send_transaction(connection, batch, after)
            case Form.SCRIPT:
                return await self._send_script(connection, batch, before, after)
            case Form.RENEWAL:
                return await self._send_renewal(connection, before)
            case Form.CHECK:
                return Answer(await self.read_key(connection), replies=[])

    async def _send_transaction(self, connection: Connection, batch: Batch, after: bytes) -> Answer:
        payload = b"".join((_MULTI, batch.body, pack("SET", self._commit_key, after), self._exec))
        errors_before = connection.error_count
        queued, (result, watched, value) = await connection.transact(
            payload, batch.command_count + 1, 3
        )
        _expect_ok(watched)
        commit = self.key_value(value)
        if isinstance(result, list) and queued is None:
            result.pop()  # the reply to our own SET
            if connection.error_count != errors_before:
                return Answer(commit, replies=result, failed_commands=_failed(result))
            return Answer(commit, replies=result)
        if result is None:
            return Answer(commit)
        if not isinstance(result, ReplyError) or (queued is not None and queued[0] != b"OK"):
            # Without MULTI every command was executed by itself. Only the key can tell.
            raise ConnectionLostError(f"Redis does not run transactions: {queued or result!r}")
        refusal = str(result)
        refused: tuple[int, ...] = ()
        if queued is not None:
            errors = [(i, r) for i, r in enumerate(queued[1:]) if isinstance(r, ReplyError)]
            refused = tuple(i for i, _ in errors if i < batch.command_count)
            refusal = str(errors[0][1]) if errors else refusal
        return Answer(commit, refusal=refusal, refused_commands=refused)

    async def _send_script(
        self, connection: Connection, batch: Batch, before: bytes, after: bytes
    ) -> Answer:
        lease = (batch.lease.value, self.owner, self._lease_ms)
        head = pack("EVAL", *self._eval_head, before, after, *lease)
        payload = _joined(head, batch.body) + _UNWATCH + self._watch_and_read
        result, unwatched, watched, value = await connection.call(payload, 4)
        _expect_ok(unwatched)
        _expect_ok(watched)
        commit = self.key_value(value)
        if isinstance(result, ReplyError):
            return Answer(commit, refusal=str(result))
        if result is None:
            return Answer(commit)
        return Answer(commit, replies=result, failed_commands=_failed(result))

    async def _send_renewal(self, connection: Connection, before: bytes) -> Answer:
        renewal = pack("EVAL", *self._renew_head, before, self.owner, self._lease_ms)
        result, value = await connection.call(renewal + self.read_command, 2)
        commit = self.key_value(value)
        if isinstance(result, ReplyError):
            return Answer(commit, refusal=str(result))
        return Answer(commit, replies=result)


def _joined(head: bytes, tail: bytes) -> bytes:
    """Two packed commands as one."""
    if not tail:
        return head
    head_count, _, head_arguments = head.partition(b"\r\n")
    tail_count, _, tail_arguments = tail.partition(b"\r\n")
    count = int(head_count[1:]) + int(tail_count[1:])
    return b"*%d\r\n%b%b" % (count, head_arguments, tail_arguments)


def _failed(replies: Sequence[object]) -> tuple[tuple[int, str], ...]:
    return tuple((i, str(r)) for i, r in enumerate(replies) if isinstance(r, ReplyError))


def _expect_ok(reply: object) -> None:
    if reply != b"OK":
        raise ConnectionLostError(f"unexpected reply: {reply!r}")
