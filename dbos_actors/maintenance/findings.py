"""One thing that is wrong in a store, and what mends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that breaks a rule."""

    key: bytes
    """The Redis key, as it is."""
    problem: str
    """The same words for the same kind of problem."""
    item: bytes = b""
    """The field, member or entry inside the key; empty for the key as a whole."""
    detail: str = ""
    drops: bool = False
    """Whether the remedy loses something that nothing else in the store tells."""
    remedy: tuple[bytes, ...] = ()
    """Packed commands, to be executed together. Repeating them does no harm."""

    def __str__(self) -> str:
        item = f" {_shown(self.item)}" if self.item else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{_shown(self.key)}{item}: {self.problem}{detail}"


Report = Callable[[Finding], Awaitable[None]]


def _shown(name: bytes) -> str:
    """A name for people, in one line."""
    text = name.decode(errors="backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]
