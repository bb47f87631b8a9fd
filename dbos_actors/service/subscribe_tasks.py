"""SubscribeTasks: due tasks pushed on a stream, and their outcomes on the way back.

The first message says what is wanted; from then on tasks are pushed the moment
they fall due, already leased, and every acknowledgement, return or extension that
the client sends gets an outcome. What one read of the stream brings is settled
in one turn, and what is ready to be sent goes out in one message.

When the stream ends, the tasks it holds return soon, because their worker has gone.
When the server drains, they stay with their worker: the client is told to come back,
goes on working, and settles by its tokens wherever it connects next. What was not
handed over (`ServerStream.handed_over`) goes back in both cases, and its delivery
does not count.

Bounded by the client's own `max_in_flight` and by what may be unsettled here. An outcome
counts as unsettled until it is on its way, so a client that does not read its responses
is stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import trio

from dbos_actors.actors.tasks.messages import Settle
from dbos_actors.actors.tasks.responses import outcome_bytes
from dbos_actors.actors.tasks.scheduler import Scheduler
from dbos_actors.actors.tasks.subscribers import Subscriber
from dbos_actors.api.messages import SubscribeTasksRequest, SubscribeTasksResponse
from dbos_actors.domain.limits import Limits, check_id, check_text, echoed
from dbos_actors.errors import (
    InvalidFieldError,
    MissingFieldError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.service.answering import AnsweringStream
from dbos_actors.service.draining import DRAINING, Draining

_READ_MESSAGES: Final = 100
"""Settled in one turn: 3 ms."""

_UNSETTLED_MESSAGES_MAX: Final = 2_000
"""Beyond it nothing is read, and flow control stops the client."""

_UNSETTLED_BYTES_MAX: Final = 64 << 10
"""Likewise, of requests that wait for their outcomes and of outcomes that wait to be sent:
what the transport queues for a stream before its handler has to wait."""

_RESPONSE_BYTES: Final = 32 << 10
"""Parts are joined into one message up to about this size."""


async def subscribe_tasks(
    stream: ServerStream[SubscribeTasksRequest, SubscribeTasksResponse],
    *,
    limits: Limits,
    tasks: Scheduler,
    draining: Draining,
) -> None:
    """Serve one SubscribeTasks stream.

    Once ``draining`` has begun, nothing more is read or pushed; what was read is settled and
    answered, pushes under way are sent, and the stream ends with UNAVAILABLE. What is not done
    when draining is overdue is not waited for, and a client that has not even read what it was
    sent by then is cut off.
    """
    first = await stream.recv_message()
    if first is None:
        return
    start = _checked_start(first, limits)
    subscription = _Subscription(tasks, limits, stream)
    subscriber = subscription.subscriber = tasks.subscribe(start, subscription.received)
    keep_leases = False
    is_cut = True
    try:
        async with trio.open_nursery() as nursery:
            subscription.run_in(nursery)
            try:
                with draining.begun.until():
                    while messages := await stream.recv_messages(_READ_MESSAGES):
                        subscription.take(messages)
                        del messages  # or they would stay while it waits
                        await subscription.wait_for_room()
                if draining.begun.has_come:
                    tasks.stop_pushing(subscriber)
                    keep_leases = True
                with draining.overdue.until():
                    await subscription.wait_until_answered()
            finally:
                subscription.stop()
            nursery.cancel_scope.cancel()
        is_cut = draining.overdue.has_come and not stream.is_handed_over
    except Exception:
        is_cut = False
        raise
    finally:
        if is_cut:
            # What is taken back must not be sent any more.
            stream.abandon()
        subscription.note_handed_over()
        tasks.unsubscribe(subscriber, keep_leases=keep_leases)
        del subscription.subscriber  # which holds it: apart they are freed at once
    if draining.begun.has_come and not is_cut:
        raise UnavailableError(DRAINING)


def _checked_start(first: SubscribeTasksRequest, limits: Limits) -> SubscribeTasksRequest.Start:
    if first.WhichOneof("request") != "start":
        raise MissingFieldError("start")
    start = first.start
    check_text("start.agent_id", start.agent_id, limits.id_bytes)
    check_text("start.module_name", start.module_name, limits.name_bytes)
    check_text("start.worker_id", start.worker_id, limits.name_bytes)
    return start


class _Batch:
    """What one read brought, as the scheduler's actor sees it; a `runtime.Call`."""

    __slots__ = ("answered", "deadline", "request", "size_bytes", "subscription")

    def __init__(
        self, subscription: _Subscription, messages: Sequence[SubscribeTasksRequest]
    ) -> None:
        self.size_bytes = sum(message.ByteSize() for message in messages)
        self.subscription = subscription
        self.request = Settle(messages)
        self.deadline: float | None = None
        self.answered = False

    @property
    def size(self) -> int:
        return len(self.request.requests)

    def reply(self, answer: Any) -> None:
        if not self.answered:
            self.answered = True
            self.subscription.settled(self, answer)

    def fail(self, error: Exception) -> None:
        if self.answered:
            return
        if isinstance(error, OverloadedError):
            self.subscription.postpone(self)
            return
        self.answered = True
        self.subscription.fail(error)


class _Subscription(AnsweringStream[_Batch]):
    """The state of one stream."""

    subscriber: Subscriber

    def __init__(
        self,
        tasks: Scheduler,
        limits: Limits,
        stream: ServerStream[SubscribeTasksRequest, SubscribeTasksResponse],
    ) -> None:
        super().__init__()
        self._tasks = tasks
        self._limits = limits
        self._stream = stream
        # Serialised parts of a response, each with the leases of its tasks (None: outcomes).
        self._outbox: list[tuple[bytes, dict[str, str] | None]] = []
        # What was sent and may not be handed over: the number of the message, and its leases.
        self._sent: deque[tuple[int, dict[str, str]]] = deque()
        self._messages = 0
        self._is_sending = False
        self._unsettled = 0
        # Of what is unsettled, and of the outcomes in the outbox.
        self._unsettled_bytes = 0
        self._error: Exception | None = None

    # ---------------------------------------------------------------- messages

    def take(self, messages: Sequence[SubscribeTasksRequest]) -> None:
        """Begin to settle what one read brought.

        Raises `InvalidFieldError`, which ends the stream, for what has no outcome.
        """
        sound = []
        refused = []
        for message in messages:
            kind = message.WhichOneof("request")
            if kind is None or kind == "start":
                raise InvalidFieldError("request", "must be ack, nack or extend after the first")
            one: Any = getattr(message, kind)
            try:
                check_id(f"{kind}.task_id", one.task_id, self._limits)
                if kind == "nack":
                    check_text("nack.reason", one.reason, self._limits.text_bytes)
            except RefusedError as error:
                refused.append(outcome_bytes(echoed(one.task_id, self._limits), str(error)))
            else:
                sound.append(message)
        if refused:
            self._put_outcomes(b"".join(refused))
        if sound:
            batch = _Batch(self, sound)
            self._unsettled += batch.size
            self._unsettled_bytes += batch.size_bytes
            self._tasks.deliver(batch)

    def _deliver_again(self, taken: _Batch) -> None:
        self._tasks.deliver(taken)

    async def wait_for_room(self) -> None:
        """Wait until more may be read."""
        while (
            self._postponed
            or self._unsettled >= _UNSETTLED_MESSAGES_MAX
            or self._unsettled_bytes >= _UNSETTLED_BYTES_MAX
        ):
            await self._wait_for_progress()

    async def wait_until_answered(self) -> None:
        """Wait until all that was read is settled and the client has been sent everything."""
        while (
            self._unsettled
            or self._outbox
            or self._is_sending
            or (self.subscriber.closed and self.subscriber.under_way)
        ):
            await self._wait_for_progress()
        if self.subscriber.closed:
            await self._stream.wait_handed_over()

    # --------------------------------------------------------------- responses

    def received(self, response: bytes, leases: dict[str, str]) -> None:
        """Tasks have been leased for this stream, or could not be."""
        if response:
            self._put(response, leases)
        else:
            self._progress.set()

    def settled(self, batch: _Batch, outcomes: bytes) -> None:
        """A batch has its outcomes."""
        self._unsettled -= batch.size
        self._unsettled_bytes -= batch.size_bytes
        self._put_outcomes(outcomes)

    def fail(self, error: Exception) -> None:
        """The stream cannot go on."""
        self._error = self._error or error
        self._responses.wake()

    def _put_outcomes(self, outcomes: bytes) -> None:
        self._unsettled_bytes += len(outcomes)
        self._put(outcomes, None)

    def _put(self, part: bytes, leases: dict[str, str] | None) -> None:
        self._outbox.append((part, leases))
        self._responses.wake()

    async def _send_responses(self) -> None:
        """Send what there is, joined. Raises what the stream is to fail with."""
        self._is_sending = True
        while self._outbox:
            await self._send_parts()
        self._is_sending = False
        if self._error is not None:
            raise self._error
        self._progress.set()

    async def _send_parts(self) -> None:
        """Send the first parts of the outbox, in one message."""
        parts: list[bytes] = []
        leases: dict[str, str] = {}
        size = tasks_bytes = 0
        for part, leases_of_part in self._outbox:
            if parts and size + len(part) > _RESPONSE_BYTES:
                break
            parts.append(part)
            size += len(part)
            if leases_of_part is not None:
                tasks_bytes += len(part)
                leases.update(leases_of_part)
        del self._outbox[: len(parts)]
        await self._stream.send_message(b"".join(parts))
        self._messages += 1
        if leases:
            self._sent.append((self._messages, leases))
        self.note_handed_over()
        self.subscriber.sent(tasks_bytes)
        self._unsettled_bytes -= size - tasks_bytes
        self._progress.set()

    def note_handed_over(self) -> None:
        """Count the deliveries of what the client has been sent by now."""
        sent, handed_over = self._sent, self._stream.handed_over
        while sent and sent[0][0] <= handed_over:
            self.subscriber.handed_over(sent.popleft()[1])
