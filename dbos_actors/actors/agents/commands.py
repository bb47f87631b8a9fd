"""What agents read and write in Redis, as packed commands.

Everything about a command but its arguments is packed once, for all agents. A command then costs
one formatting of bytes, a third of packing it anew; each change of a run's state sends six of them.
"""

from __future__ import annotations

from typing import Final

from dbos_actors.store import Keys
from dbos_actors.store.keys import escaped

_ARGUMENT: Final = b"$%d\r\n%b\r\n"


class KeyedCommand:
    """A command on keys that begin alike: its name and prefix are packed already."""

    __slots__ = ("_head", "_prefix_bytes")

    def __init__(self, name: str, prefix: str, *, arguments: int) -> None:
        """``arguments`` that follow the key."""
        command, key = name.encode(), prefix.encode()
        self._prefix_bytes = len(key)
        self._head = b"*%d\r\n$%d\r\n%b\r\n$%%d\r\n%b%%b\r\n" % (
            2 + arguments,
            len(command),
            command,
            key.replace(b"%", b"%%"),
        )
        self._head += _ARGUMENT * arguments

    def on(self, name: bytes) -> bytes:
        """The command on the key of ``name``, which is escaped."""
        return self._head % (self._prefix_bytes + len(name), name)

    def of(self, name: bytes, first: bytes) -> bytes:
        """The same with one argument."""
        return self._head % (self._prefix_bytes + len(name), name, len(first), first)

    def of_two(self, name: bytes, first: bytes, second: bytes) -> bytes:
        """The same with two arguments."""
        size = self._prefix_bytes + len(name)
        return self._head % (size, name, len(first), first, len(second), second)


class AgentCommands:
    """The commands of all agents of one partition."""

    __slots__ = (
        "_states_count",
        "_unfinished_members",
        "enter_module",
        "enter_request",
        "enter_state",
        "enter_state_of_module",
        "enter_unfinished",
        "is_deleting",
        "is_known",
        "keep_agent",
        "keep_state",
        "leave_unfinished",
        "read_agent",
    )

    def __init__(self, keys: Keys) -> None:
        self.read_agent = KeyedCommand("HGET", keys.agents, arguments=1)
        self.is_known = KeyedCommand("SISMEMBER", keys.agents_known, arguments=1)
        self.is_deleting = KeyedCommand("SISMEMBER", keys.agents_deleting, arguments=1)
        self._states_count = KeyedCommand("HLEN", keys.states, arguments=0)
        self._unfinished_members = KeyedCommand("SMEMBERS", keys.unfinished, arguments=0)
        self.keep_agent = KeyedCommand("HSET", keys.agents, arguments=2)
        self.keep_state = KeyedCommand("HSET", keys.states, arguments=2)
        self.enter_state = KeyedCommand("ZADD", keys.states_at, arguments=2)
        self.enter_state_of_module = KeyedCommand("ZADD", keys.states_of, arguments=2)
        self.enter_module = KeyedCommand("SADD", keys.modules, arguments=1)
        self.enter_request = KeyedCommand("ZADD", keys.request, arguments=2)
        self.enter_unfinished = KeyedCommand("SADD", keys.unfinished, arguments=1)
        self.leave_unfinished = KeyedCommand("SREM", keys.unfinished, arguments=1)

    def load(self, agent_id: str, name: bytes) -> list[bytes]:
        """Read what an actor begins with.

        The replies are the agent's record, whether it is known, whether its deletion has begun,
        how many states it has, and its unfinished runs. ``name`` is its escaped id.
        """
        member = agent_id.encode()
        return [
            self.read_agent.of(b"", member),
            self.is_known.of(b"", member),
            self.is_deleting.of(b"", member),
            self._states_count.on(name),
            self._unfinished_members.on(name),
        ]

    def place_state(
        self, name: bytes, part: bytes, data: bytes, *, module_name: str, score: bytes
    ) -> list[bytes]:
        """Write a state, and its place in the order of changes: its agent's and its module's."""
        module_key = b"%b:%b" % (name, escaped(module_name).encode())
        return [
            self.keep_state.of_two(name, part, data),
            self.enter_state.of_two(name, score, part),
            self.enter_state_of_module.of_two(module_key, score, part),
        ]
