"""What a load worker is told and what it answers: plain data that travels as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bench.load.requests import Parameters


@dataclass(frozen=True, slots=True)
class Group:
    """Connections that carry one workload."""

    name: str
    workload: Parameters
    connections: int
    in_flight: int
    """Unanswered calls of the whole group at most; in an open loop, what the peer may be owed."""
    rate: float | None = None
    """Calls a second at fixed intervals (open loop); None sends as replies come (closed loop)."""
    stream: bool = False
    """Whether the calls are messages of one long stream per connection."""


@dataclass(frozen=True, slots=True)
class Load:
    """One worker's work: warm up, measure, and wait for what is still unanswered."""

    address: str
    groups: tuple[Group, ...]
    warmup_s: float
    duration_s: float
    drain_s: float = 10.0
    until_exhausted: bool = False
    """Ends as soon as every workload has ended and is answered; ``duration_s`` is then a limit."""

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Load:
        """Reads what `to_json` wrote."""
        groups = tuple(
            Group(**{**group, "workload": Parameters(**group["workload"])})
            for group in values["groups"]
        )
        return cls(**{**values, "groups": groups})


@dataclass(slots=True)
class GroupOutcome:
    """What became of one group's calls, summed over its connections."""

    measured: int = 0
    """Good replies within the measured time."""
    issued: int = 0
    acknowledged: int = 0
    """Good replies in all, warm-up and drain included: so many must be in the store."""
    unanswered: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    received_bytes: int = 0
    histogram: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    """As granted by the peer; less than asked for if the peer allows fewer streams."""
    backlog: list[int] = field(default_factory=list)
    """Calls due but not answered, once a second of the measured time."""


@dataclass(slots=True)
class Outcome:
    """One worker's answer."""

    groups: dict[str, GroupOutcome]
    window_s: float
    """Measured time."""
    elapsed_s: float
    """From the first call to the last reply."""
    cpu_s: float
    """The worker's own CPU time within the measured time."""
    error: str | None = None
    """Why it ended early."""

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """Reads what `to_json` wrote."""
        groups = {name: GroupOutcome(**group) for name, group in values["groups"].items()}
        return cls(**{**values, "groups": groups})
