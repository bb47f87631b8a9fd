"""The table of planted bugs, and how one is entered into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from dbos_actors.store.resp import unpacked

Plant = Callable[[], Any]
"""Makes a context in which the bug is in the product."""

PLANTED_BUGS: Final[dict[str, Plant]] = {}
"""Each bug by its name, a sentence."""


def planted(plant: Plant) -> Plant:
    """Register a bug under its function's name."""
    PLANTED_BUGS[plant.__name__.replace("_", " ")] = plant
    return plant


def without(commands: Sequence[bytes], name: bytes, key_part: bytes = b"") -> list[bytes]:
    """The commands but those of this name, on a key with this in it."""
    return [
        command
        for command in commands
        if not ((parts := unpacked(command))[0] == name and key_part in parts[1])
    ]
