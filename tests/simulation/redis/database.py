"""The data of one server as a dict, and the table of the commands that work on it.

A command that changes data calls `Database.touch`. WATCH and the append-only log go by that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulation.redis.arguments import Arguments
from tests.simulation.redis.replies import WRONG_TYPE, CommandError


@dataclass(frozen=True, slots=True)
class Command:
    """How a command is called and what a refusing server thinks of it."""

    run: Callable[[Database, Arguments], Any]
    arity: int
    """Arguments with the name; negative: at least so many."""
    writes: bool = False
    needs_memory: bool = False


COMMANDS: dict[bytes, Command] = {}


def command(
    name: str, arity: int, *, writes: bool = False, needs_memory: bool = False
) -> Callable[[Callable[[Database, Arguments], Any]], Callable[[Database, Arguments], Any]]:
    """Register a command."""

    def register(run: Callable[[Database, Arguments], Any]) -> Callable[[Database, Arguments], Any]:
        COMMANDS[name.encode()] = Command(run, arity, writes or needs_memory, needs_memory)
        return run

    return register


def lookup(arguments: Arguments) -> Command:
    """The command, its arity checked. Raises `CommandError`."""
    name = arguments[0].upper()
    found = COMMANDS.get(name)
    if found is None:
        shown = arguments[0].decode(errors="replace")
        raise CommandError(f"ERR unknown command '{shown}', with args beginning with: ")
    check_arity(name, arguments, found.arity)
    return found


def check_arity(name: bytes, arguments: Arguments, arity: int) -> None:
    """Raises `CommandError` if the number of arguments is wrong."""
    if len(arguments) != arity if arity > 0 else len(arguments) < -arity:
        raise CommandError(f"ERR wrong number of arguments for '{name.decode().lower()}' command")


class Database:
    """The data of one server."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.values: dict[bytes, Any] = {}
        self.expires_ms: dict[bytes, int] = {}
        self.changes: dict[bytes, int] = {}
        """How often a key was changed; what WATCH compares."""
        self.dirty = 0

    def execute(self, arguments: Arguments, now_ms: int) -> Any:
        """Run one command and return its reply; an error reply is a `CommandError`, returned."""
        self.now_ms = now_ms
        try:
            return lookup(arguments).run(self, arguments)
        except CommandError as error:
            return error

    # ------------------------------------------------------------ for commands

    def touch(self, key: bytes) -> None:
        """The key's value has changed."""
        self.changes[key] = self.changes.get(key, 0) + 1
        self.dirty += 1

    def get(self, key: bytes, kind: type) -> Any:
        """The key's value, which must be of this kind; None if there is none."""
        value = self.peek(key)
        if value is not None and type(value) is not kind:
            raise CommandError(WRONG_TYPE)
        return value

    def make(self, key: bytes, kind: type) -> Any:
        """The key's value, made if there is none."""
        value = self.get(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def peek(self, key: bytes) -> Any:
        """The key's value of any kind, unless it has expired."""
        expires_ms = self.expires_ms.get(key)
        if expires_ms is not None and expires_ms <= self.now_ms:
            self.delete(key)
        return self.values.get(key)

    def delete(self, key: bytes) -> bool:
        """Whether there was something."""
        self.expires_ms.pop(key, None)
        if self.values.pop(key, None) is None:
            return False
        self.touch(key)
        return True

    def drop_if_empty(self, key: bytes) -> None:
        if not self.values[key]:
            del self.values[key]
            self.expires_ms.pop(key, None)
