"""StoreResults: results in bulk, on a stream that may last for ever.

A message of the stream goes the way of a StoreResult call, without the cost of
a call. The stream says how many of its messages, counted from its start, are
resolved: stored, known before, or rejected for what they say. So a client that
loses the stream sends again whatever lies behind that count.

The number and bytes of unresolved messages are bounded. Beyond that nothing is read,
flow control stops the client, and memory does not grow however slow Redis is. A
rejected message counts as unresolved until its rejection is on its way, so a client
that does not read its responses is stopped too. An infrastructure error ends the
stream with its status.

`durable` passes a rejected message only with the response that names it or a later one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio

from dbos_actors.actors.agents.actor import DUPLICATE
from dbos_actors.api.messages import StoreResultRequest, StoreResultsResponse
from dbos_actors.api.wire import encode_submessage
from dbos_actors.domain.limits import Limits, check_result, echoed
from dbos_actors.errors import OverloadedError, QuotaError, RefusedError, UnavailableError
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.runtime import Call
from dbos_actors.service.answering import AnsweringStream
from dbos_actors.service.draining import DRAINING, Draining

_UNRESOLVED_MESSAGES_MAX: Final = 4_000
"""Two full commits: one in flight and one that gathers meanwhile."""

_UNRESOLVED_BYTES_MAX: Final = 16 << 20
"""Likewise, in bytes of two full commits."""

_REJECTED_BYTES_MAX: Final = 32 << 10
"""Rejections that wait to be sent, in bytes; beyond it nothing is read. Half of what the
transport queues for a stream before its handler has to wait."""

_REJECTION_BYTES: Final = 300
"""What a rejection takes in memory besides its text; measured."""

_RESPONSE_BYTES_MAX: Final = 32 << 10
"""Of the rejections in one response; the rest follows in the next."""

_READ_MESSAGES: Final = 500
"""Taken before other tasks run: about 5 ms."""

_READ_MESSAGES_REFUSED: Final = 50
"""Likewise, after messages of which some were rejected: each may leave a rejection to be sent."""


async def store_results(
    stream: ServerStream[StoreResultRequest, StoreResultsResponse],
    *,
    limits: Limits,
    deliver: Callable[[str, Call], None],
    draining: Draining,
) -> None:
    """Serve one StoreResults stream; ``deliver`` hands a message to an agent's actor.

    Once ``draining`` has begun, nothing more is read; what was read is resolved and reported, and
    the stream ends with UNAVAILABLE. What is not resolved when draining is overdue is not waited
    for.
    """
    intake = _Intake(stream, limits, deliver)
    async with trio.open_nursery() as nursery:
        intake.run_in(nursery)
        try:
            with draining.begun.until():
                count = _READ_MESSAGES
                while messages := await stream.recv_messages(count):
                    rejected = sum([intake.take(message) for message in messages])
                    count = _READ_MESSAGES_REFUSED if rejected else _READ_MESSAGES
                    del messages  # or they would stay while it waits
                    await intake.wait_for_room()
            with draining.overdue.until():
                await intake.wait_until_reported()
        finally:
            intake.stop()
        nursery.cancel_scope.cancel()
    if draining.begun.has_come:
        raise UnavailableError(DRAINING)


class _Message:
    """One message of the stream, as an actor sees it; a `runtime.Call`."""

    __slots__ = (
        "answered",
        "deadline",
        "duplicate",
        "index",
        "intake",
        "is_resolved",
        "request",
        "size_bytes",
    )

    request: StoreResultRequest | None
    """None once the message is rejected: the client has it."""

    def __init__(
        self, intake: _Intake, index: int, request: StoreResultRequest, size_bytes: int
    ) -> None:
        self.intake = intake
        self.index = index
        self.deadline: float | None = None
        self.request = request
        self.size_bytes = size_bytes
        self.answered = False
        # Not when it failed with the stream: it may be stored or not.
        self.is_resolved = False
        self.duplicate = False

    def reply(self, answer: Any) -> None:
        if not self.answered:
            self.answered = True
            self.duplicate = answer == DUPLICATE
            self.intake.resolved(self)

    def fail(self, error: Exception) -> None:
        if self.answered:
            return
        if isinstance(error, OverloadedError) and not isinstance(error, QuotaError):
            self.intake.postpone(self)
            return
        self.answered = True
        self.intake.failed(self, error)


class _Intake(AnsweringStream[_Message]):
    """The state of one stream."""

    def __init__(
        self,
        stream: ServerStream[StoreResultRequest, StoreResultsResponse],
        limits: Limits,
        deliver: Callable[[str, Call], None],
    ) -> None:
        super().__init__()
        self._stream = stream
        self._limits = limits
        self._deliver = deliver
        self._taken = 0
        # In the stream's order, from the first that is not resolved.
        self._unresolved: deque[_Message] = deque()
        self._unresolved_bytes = 0
        self._durable = 0
        self._duplicates = 0
        # Each with its part of a response. They are resolved as that is taken from here.
        self._rejected: deque[tuple[_Message, bytes]] = deque()
        self._rejected_bytes = 0
        self._reported = 0
        self._error: Exception | None = None

    # ---------------------------------------------------------------- messages

    def take(self, request: StoreResultRequest) -> bool:
        """Begin to store one message; whether it was rejected at once."""
        size_bytes = request.ByteSize()
        message = _Message(self, self._taken, request, size_bytes)
        self._taken += 1
        self._unresolved.append(message)
        self._unresolved_bytes += size_bytes
        try:
            check_result(request, self._limits)
        except RefusedError as error:
            message.fail(error)
            return True
        return not self._hand_over(message)

    def _hand_over(self, message: _Message) -> bool:
        """Give a message to its agent; False if the agent is beyond its quota."""
        assert message.request is not None
        try:
            self._deliver(message.request.result.agent_id, message)
        except QuotaError as error:
            message.fail(error)
            return False
        return True

    def _deliver_again(self, taken: _Message) -> None:
        self._hand_over(taken)

    async def wait_for_room(self) -> None:
        """Wait until more may be read."""
        while (
            self._postponed
            or len(self._unresolved) >= _UNRESOLVED_MESSAGES_MAX
            or self._unresolved_bytes >= _UNRESOLVED_BYTES_MAX
            or self._rejected_bytes >= _REJECTED_BYTES_MAX
        ):
            await self._wait_for_progress()

    async def wait_until_reported(self) -> None:
        """Wait until every message taken is resolved and the client has been told."""
        while self._unresolved or self._rejected or self._reported < self._durable:
            await self._wait_for_progress()

    # ---------------------------------------------------------------- outcomes

    def resolved(self, message: _Message) -> None:
        """A message has its outcome: count what is resolved now from the stream's start.

        A message that failed has none, so nothing behind it is counted any more.
        """
        message.is_resolved = True
        unresolved = self._unresolved
        if message is unresolved[0]:
            while unresolved and unresolved[0].is_resolved:
                first = unresolved.popleft()
                self._unresolved_bytes -= first.size_bytes
                self._durable += 1
                self._duplicates += first.duplicate
            self._responses.wake()

    def failed(self, message: _Message, error: Exception) -> None:
        """A message is rejected, or the stream cannot go on.

        One agent that is beyond its quota does not keep the others waiting: its message is
        rejected as one that says something wrong.
        """
        if isinstance(error, RefusedError | QuotaError):
            self._reject(message, error)
        elif self._error is None:
            self._error = error
        self._responses.wake()

    def _reject(self, message: _Message, error: RefusedError | QuotaError) -> None:
        assert message.request is not None
        result = message.request.result
        rejected = StoreResultsResponse.Rejected(
            index=message.index,
            agent_id=echoed(result.agent_id, self._limits),
            id=echoed(result.id, self._limits),
            error=str(error),
        )
        part = encode_submessage(3, rejected.SerializeToString())
        self._unresolved_bytes -= message.size_bytes
        message.size_bytes = 0
        message.request = None
        self._rejected.append((message, part))
        self._rejected_bytes += len(part) + _REJECTION_BYTES

    async def _send_responses(self) -> None:
        """Report what has resolved, all of it at once.

        Raises what the stream is to fail with, after a report of what was resolved before.
        """
        while self._durable > self._reported or self._rejected:
            response = self._response()
            reported = self._durable
            await self._stream.send_message(response)
            self._reported = reported
            self._progress.set()
        if self._error is not None:
            raise self._error
        self._progress.set()

    def _response(self) -> bytes:
        """A serialised response with as many rejections as it has room for."""
        rejected = self._rejected
        parts = [b""]
        size = 0
        limit = min(_RESPONSE_BYTES_MAX, self._limits.message_bytes - _COUNTS_BYTES)
        while rejected and (size == 0 or size + len(rejected[0][1]) <= limit):
            message, part = rejected.popleft()
            size += len(part)
            self._rejected_bytes -= len(part) + _REJECTION_BYTES
            parts.append(part)
            self.resolved(message)
        counts = StoreResultsResponse(durable=self._durable, duplicates=self._duplicates)
        parts[0] = counts.SerializeToString()
        return b"".join(parts)


_COUNTS_BYTES: Final = 32
"""What the two counts of a response take at most."""
