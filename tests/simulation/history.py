"""What the clients did and saw: the only evidence the checker accepts.

Order is by a counter, not by time: an operation that returned before another
was invoked has the smaller ``end``. What has no answer may have happened at any
time after its start, or never.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from grpclib.const import Status


class Ending(Enum):
    """How a call ended for its client."""

    ANSWERED = "answered"
    UNKNOWN = "unknown"
    """UNAVAILABLE, DEADLINE_EXCEEDED or a lost connection: it may have happened, or may yet."""
    NO_EFFECT = "no effect"
    """Refused before anything was done, or never sent."""


class StreamEndedError(Exception):
    """How a stream ended for its client."""

    def __init__(self, status: Status | None, text: str | None) -> None:
        """No ``status``: the connection was lost."""
        super().__init__(f"{'LOST' if status is None else status.name}: {text}")
        self.status = status
        self.text = text or ""


Outcome = tuple[Ending, Any, str]
"""How a call ended, its response or the text of its error, and who took it."""


@dataclass(slots=True)
class Operation:
    """One call, as its client saw it."""

    number: int
    client: str
    method: str
    request: dict[str, Any]
    start: int
    start_s: float
    end: int | None = None
    end_s: float = 0.0
    ending: Ending = Ending.UNKNOWN
    answer: Any = None
    """The response, or the text of the error."""
    server: str = ""
    """Who took the call."""

    def __str__(self) -> str:
        end = "-" if self.end is None else self.end
        shown = " ".join(f"{name}={value!r}" for name, value in self.request.items() if value)
        return (
            f"#{self.number} [{self.start}..{end}] {self.start_s:.3f}s "
            f"{self.client} > {self.server or 'nobody'} "
            f"{self.method}({shown}) {self.ending.value}: {' '.join(str(self.answer).split())}"
        )


@dataclass(frozen=True, slots=True)
class KeyOperation:
    """An operation's part that concerns one register."""

    operation: Operation
    kind: str
    argument: Any
    result: Any
    """What was answered about this register; None: no answer."""
    start: int
    end: int | None
    """None: no answer. It may have happened until `last`, or never."""
    last: int | None = None
    """Of one without an answer: nothing that began after this moment can have come before it.
    None: `History.settled_at`."""


@dataclass(slots=True)
class History:
    """All operations of one run."""

    operations: list[Operation] = field(default_factory=list)
    time: int = 0
    overtaken: dict[str, int] = field(default_factory=dict)
    """Servers whose store was taken by force, and since when another one serves."""
    settled_at: int | None = None
    """When everything had been healthy and quiet for long: what has not happened by then, never
    will."""

    def tick(self) -> int:
        self.time += 1
        return self.time

    def begin(self, client: str, method: str, request: dict[str, Any], now_s: float) -> Operation:
        """A call is about to be sent."""
        operation = Operation(
            len(self.operations), client, method, request, start=self.tick(), start_s=now_s
        )
        self.operations.append(operation)
        return operation

    def finish(self, operation: Operation, outcome: Outcome, now_s: float) -> None:
        """The client has its answer, or has given up."""
        ending, answer, server = outcome
        operation.server = server
        operation.end = self.tick()
        operation.end_s = now_s
        operation.ending = ending
        operation.answer = answer


Register = tuple[Hashable, ...]
