"""Which agents a ListAgents asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dbos_actors.actors.agents.context import readable
from dbos_actors.api.messages import Agent, ListAgentsRequest
from dbos_actors.errors import FieldLimitError, InvalidFieldError

CONFIG_ENTRIES_MAX: Final = 16
"""Of a filter by `config`: each record is compared with all of them."""

LIVENESS: Final = ("alive", "silent")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFilter:
    """The filters of one listing."""

    prefix: str
    """Of the ids."""
    accepts: Callable[[bytes], bool] | None
    """Whether a record is wanted; None: each one is, and none need be decoded."""
    fingerprint: tuple[str, ...]
    """What makes a page token one of this listing; nothing, if nothing is filtered."""

    @classmethod
    def of(cls, request: ListAgentsRequest, *, id_bytes: int) -> AgentFilter:
        """The filters of a request. Raises `FieldLimitError` and `InvalidFieldError`."""
        prefix, liveness, config = request.id_prefix, request.liveness, dict(request.config)
        if len(prefix.encode()) > id_bytes:
            raise FieldLimitError("id_prefix", size=len(prefix.encode()), limit=id_bytes)
        if liveness and liveness not in LIVENESS:
            raise InvalidFieldError("liveness", f"must be {' or '.join(LIVENESS)}, or empty")
        if len(config) > CONFIG_ENTRIES_MAX:
            raise FieldLimitError(
                "config", size=len(config), limit=CONFIG_ENTRIES_MAX, unit="entries"
            )
        by_content = bool(liveness or config)
        if (prefix or by_content) and request.include_unregistered:
            raise InvalidFieldError("include_unregistered", "does not go with a filter")

        def accepts(record: bytes) -> bool:
            agent = readable(Agent, record)
            if agent is None or (liveness and agent.alive != (liveness == "alive")):
                return False
            return all(agent.config.get(key) == value for key, value in config.items())

        flat = [part for entry in sorted(config.items()) for part in entry]
        return cls(
            prefix=prefix,
            accepts=accepts if by_content else None,
            fingerprint=(prefix, liveness, *flat) if prefix or by_content else (),
        )

    def bounds(self, last: bytes | None) -> tuple[bytes, bytes]:
        """Where a range by id begins, behind ``last`` if there is one, and where it ends."""
        prefix = self.prefix.encode()
        low = b"(" + last if last is not None else b"[" + prefix if prefix else b"-"
        # No id has the byte 0xff, which UTF-8 does not use.
        return low, b"(" + prefix + b"\xff" if prefix else b"+"
