"""Who owns a partition, and whether that process is provably gone.

The owner key holds one JSON object: what an operator needs to find the owner,
and what another server needs to tell that it has died. Only a process of the
same host, boot and process namespace can be pronounced dead; everyone else has
to wait until the lease has run out.

Ownership is taken in one script, which first checks that this program understands
the data: their layout version and the commit key. If it does not, nothing changes.
A store without a version gets it here.
"""

from __future__ import annotations

import json
import os
import random
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from dbos_actors.errors import DbosError, OwnedElsewhereError, UnusableStoreError
from dbos_actors.store.connection import Connection
from dbos_actors.store.keys import LAYOUT_VERSION, Keys
from dbos_actors.store.proc import state_and_start
from dbos_actors.store.resp import ReplyError, pack

# KEYS: commit, owner, layout. ARGV: what the owner key held when it was judged, by how much to
# raise the epoch, the new owner's description, the lease in ms, the layout version of this program.
TAKE_SCRIPT = """#!lua flags=allow-oom
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return nil end
local layout = redis.call('GET', KEYS[3])
if layout and not string.match(layout, '^%d+$') then
  return redis.error_reply('UNUSABLE the key ' .. KEYS[3] .. ' is no version')
end
if layout and tonumber(layout) > tonumber(ARGV[5]) then
  return redis.error_reply('UNUSABLE its layout version is ' .. layout
    .. ', this program knows version ' .. ARGV[5] .. ' and earlier: use a newer program')
end
local commit = redis.call('GET', KEYS[1])
local epoch = 0
if commit then
  epoch = tonumber(string.match(commit, '^(%d+):%d+$'))
  if not epoch then
    return redis.error_reply('UNUSABLE the key ' .. KEYS[1] .. ' is no epoch:sequence')
  end
end
redis.call('SET', KEYS[3], ARGV[5])
local taken = string.format('%.0f:0', epoch + tonumber(ARGV[2]))
redis.call('SET', KEYS[1], taken)
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return {commit, taken}
"""

# What the script's own refusals begin with.
_UNUSABLE = "UNUSABLE "

# Each attempt fails only when the owner key changed within a round trip.
ATTEMPTS = 10

# Epochs rise by a random step: two servers that start from the same one, because Redis lost the
# first one's start, do not end up with the same epoch.
EPOCH_STEP_BITS = 16


class RefusedByRedisError(DbosError):
    """Redis answers, but does not accept the write; the text is its own."""


@dataclass(frozen=True, slots=True)
class OwnerProcess:
    """One server that owns, or wants to own, a partition."""

    host: str
    pid: int
    # Clock ticks since boot at which the process started; tells a reused pid. 0: unknown.
    started: int
    # Differ after a reboot, and between containers that share a host name. Empty: unknown.
    boot_id: str
    pid_namespace: str
    # Tells two stores of one process apart.
    instance: str
    # Where it serves, for humans.
    address: str

    def to_json(self) -> bytes:
        """As the owner key holds it."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> OwnerProcess | None:
        """The inverse; None if another program wrote it."""
        try:
            fields = json.loads(text)
            return cls(
                host=str(fields["host"]),
                pid=int(fields["pid"]),
                started=int(fields["started"]),
                boot_id=str(fields["boot_id"]),
                pid_namespace=str(fields["pid_namespace"]),
                instance=str(fields["instance"]),
                address=str(fields["address"]),
            )
        except (ValueError, KeyError, TypeError):
            return None

    def __str__(self) -> str:
        at = f" serving {self.address}" if self.address else ""
        return f"process {self.pid} on {self.host}{at}"


def this_process(*, address: str, random: random.Random) -> OwnerProcess:
    """The running process as an owner; ``address`` is where it serves, for humans."""
    return OwnerProcess(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_own_start(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        instance=f"{random.getrandbits(64):016x}",
        address=address,
    )


def is_gone(owner: OwnerProcess, *, seen_from: OwnerProcess) -> bool:
    """Whether ``owner``'s process has provably ended, judged by a process of the same system."""
    here = (seen_from.host, seen_from.boot_id, seen_from.pid_namespace)
    if not all(here) or here != (owner.host, owner.boot_id, owner.pid_namespace):
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # somebody else's, or no process id at all
    try:
        state, started = state_and_start(owner.pid)
    except (OSError, ValueError):
        # It exists, but its entry cannot be read: /proc is not there, or hides (hidepid).
        return False
    return state == "Z" or owner.started not in (0, started)


def _own_start() -> int:
    """When this process began; 0 if the system does not tell."""
    try:
        return state_and_start(os.getpid())[1]
    except (OSError, ValueError):
        return 0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


async def take_ownership(
    connection: Connection,
    *,
    keys: Keys,
    owner: OwnerProcess,
    lease_ms: int,
    take_over: bool,
    random: random.Random,
) -> tuple[bytes | None, int]:
    """Make ``owner`` the owner and return what the commit key held before, and the new epoch.

    Raises:
        OwnedElsewhereError: a live owner has it, and not ``take_over``.
        UnusableStoreError: the data are of a later layout, or a key that says so is damaged.
        RefusedByRedisError: Redis does not accept the write.
        ConnectionLostError: whether it is taken is unknown; it may be tried again.
    """
    read_owner = pack("GET", keys.owner)
    holder: OwnerProcess | None = None
    for _ in range(ATTEMPTS):
        (held,) = await connection.call(read_owner, 1)
        if isinstance(held, ReplyError):
            raise _refusal(str(held), keys)
        if held is not None:
            holder = OwnerProcess.from_json(held)
            ours = holder is not None and holder.instance == owner.instance
            gone = holder is not None and is_gone(holder, seen_from=owner)
            if not (ours or gone or take_over):
                raise OwnedElsewhereError(str(holder or "an unknown program"))
        step = 1 + random.getrandbits(EPOCH_STEP_BITS)
        arguments = (held or b"", step, owner.to_json(), lease_ms, LAYOUT_VERSION)
        script = pack("EVAL", TAKE_SCRIPT, 3, keys.commit, keys.owner, keys.layout, *arguments)
        (taken,) = await connection.call(script, 1)
        if isinstance(taken, ReplyError) and "compiling script" in str(taken):
            raise RefusedByRedisError("it is too old: Redis 7 or later, or Valkey, is needed")
        if isinstance(taken, ReplyError):
            raise _refusal(str(taken), keys)
        if taken is not None:
            base, value = taken
            return base, int(value.partition(b":")[0])
    raise OwnedElsewhereError(str(holder or "another server that starts"))


def _refusal(text: str, keys: Keys) -> DbosError:
    """The error of an error reply to one of the steps of taking ownership."""
    if text.startswith(_UNUSABLE):
        return UnusableStoreError(f"the store cannot be used: {text.removeprefix(_UNUSABLE)}")
    if "WRONGTYPE" in text:
        return UnusableStoreError(
            f"the store cannot be used: {keys.commit}, {keys.owner} or {keys.layout} is no string; "
            "'dbos-actors check' tells which"
        )
    return RefusedByRedisError(text)
