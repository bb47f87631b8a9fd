"""A base class for actors, with defaults for what most of them do not need."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from dbos_actors.errors import UnavailableError
from dbos_actors.runtime.actor_cell import ActorCell
from dbos_actors.runtime.turn import Job, Turn


class Actor:
    """An actor whose state is small enough to be loaded whole. A `Behaviour`.

    Each part of the state is an attribute: the change ``("count", 3)`` of a turn
    sets the attribute ``count`` to 3.
    """

    def __init__(self, key: str, cell: ActorCell) -> None:
        self.key = key
        self.cell = cell

    def handle(self, request: Any, /) -> Turn | Job:
        """Decide what ``request`` does, and change nothing. May raise `RefusedError`.

        Every actor has its own.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method handle")

    async def load(self) -> None:
        """Fill the state from the store. Raises `UnavailableError`. By default there is none."""

    def apply(self, part: Hashable, value: Any, /) -> None:
        """Set the attribute ``part`` to ``value``."""
        assert isinstance(part, str), "a part of the state is the name of an attribute"
        setattr(self, part, value)

    def missing(self, request: Any, /) -> Hashable | None:  # noqa: ARG002
        """What must be fetched before ``request`` is handled: nothing, all was loaded."""
        return None

    def fetch(self, part: Hashable, arrived: Callable[[UnavailableError | None], None], /) -> None:
        """Start fetching ``part``. An actor that says that a part is missing overrides this."""
        raise NotImplementedError(f"{type(self).__name__} cannot fetch {part!r}")

    def released(self) -> None:
        """Give back what is held outside the actor: nothing."""
