"""One call of a client: its request, what has come back, and what it ended with. Pure.

A call first *waits*, until its channel gives it to a connection. It is *started* while it has a
stream there. It is *over* once it has a status, which the server or this side has decided. A call
of which the server says that it has not begun with it waits again and is sent once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.client.outcomes import framing_problem, reset_problem, response_status
from dbos_actors.rpc.wire.compression import GZIP, IDENTITY, restore
from dbos_actors.rpc.wire.framing import FramingError, MessageReader
from dbos_actors.rpc.wire.http2 import ErrorCode, Headers
from dbos_actors.rpc.wire.metadata import MetadataError, decode_binary
from dbos_actors.rpc.wire.status import STATUS_DETAILS_KEY, Fields


class CallOwner(Protocol):
    """Whoever made the call."""

    def call_over(self, call: ClientCall) -> None:
        """It has its status."""
        ...

    def call_refused(self, call: ClientCall) -> None:
        """The server has not begun with it, and it may be sent again."""
        ...


class Carrier(Protocol):
    """The connection that a call is started on."""

    peer: str
    """The server, as `peer_name` writes it."""
    peer_certificate: dict[str, Any] | None
    """The server's, with TLS."""

    def can_send(self, call: ClientCall) -> bool:
        """Whether a started call may queue another message."""
        ...

    def send(self, call: ClientCall, data: bytes) -> None:
        """Queue a call's bytes, and the end of its request if it has ended."""
        ...

    def message_taken(self, call: ClientCall) -> None:
        """A message was taken: more may come."""
        ...

    def abandon(self, call: ClientCall) -> None:
        """Reset a started call's stream."""
        ...


class ClientCall:
    """The protocol's half of one call."""

    __slots__ = (
        "_owner",
        "announces_gzip",
        "connection",
        "deadline_s",
        "details",
        "fields",
        "headers",
        "is_message_compressed",
        "message",
        "on_change",
        "outbox",
        "outbox_bytes",
        "path",
        "pending",
        "reader",
        "replays",
        "request_ended",
        "server_streaming",
        "status",
        "stream_id",
        "taken",
        "trailers",
        "unacknowledged",
        "wait_for_ready",
    )

    def __init__(
        self,
        owner: CallOwner,
        path: bytes,
        fields: Fields,
        *,
        server_streaming: bool,
        deadline_s: float | None,
        wait_for_ready: bool,
        limit: int,
    ) -> None:
        self._owner = owner
        self.path = path
        self.fields = fields
        self.deadline_s = deadline_s
        self.wait_for_ready = wait_for_ready
        self.announces_gzip = False
        """Whether its messages may be compressed: its headers say so."""
        self.server_streaming = server_streaming
        self.connection: Carrier | None = None
        """Where it is started; None while it waits. Kept when it is over."""
        self.stream_id = 0
        self.outbox: list[bytes] | None = []
        """The framed messages queued so far, for another attempt; None: too many to keep."""
        self.outbox_bytes = 0
        self.pending: memoryview | None = None
        """What the engine has not been given yet of the last message."""
        self.request_ended = False
        self.replays = 0
        self.reader = MessageReader(limit)
        self.unacknowledged = 0
        self.taken = 0
        """Response messages taken."""
        self.is_message_compressed = False
        """Whether the one that was taken last came compressed."""
        self.headers: Headers | None = None
        """The response's, once they have come; also those that end a call without a message."""
        self.trailers: Headers = ()
        self.status: Status | None = None
        self.message: str | None = None
        self.details: bytes | None = None
        self.on_change: Callable[[], object] = _nothing
        """Called when it is started or over, when something has come, or more may be sent."""

    @property
    def over(self) -> bool:
        """Whether it has its status; messages may still be there to take."""
        return self.status is not None

    @property
    def error(self) -> GRPCError | None:
        """The status as an error, without details; None if the call is OK or not over."""
        if self.status is None or self.status is Status.OK:
            return None
        return GRPCError(self.status, self.message)

    # -------------------------------------------------------------- requests

    @property
    def can_send(self) -> bool:
        """Whether another message may be queued now."""
        return self.connection is not None and self.connection.can_send(self)

    def queue(self, data: bytes, *, end: bool, replay_bytes_max: int) -> None:
        """Send a framed message; if the call is not started yet, once it is."""
        assert not self.request_ended
        self.request_ended = end
        if self.outbox is not None:
            if self.outbox and self.outbox_bytes + len(data) > replay_bytes_max:
                self.outbox = None
            else:
                self.outbox.append(data)
                self.outbox_bytes += len(data)
        if self.connection is not None:
            self.connection.send(self, data)

    # ------------------------------------------------------------- responses

    def take(self) -> bytes | None:
        """The next response message, if it is complete.

        None, and the call is over, if the server's bytes are no such message.
        """
        try:
            item = self.reader.next()
            if item is None:
                return None
            compressed, body = item
            if compressed:
                body = restore(self._encoding(), body, self.reader.limit)
        except FramingError as error:
            self._spoil(*framing_problem(error))
            return None
        except GRPCError as error:
            self._spoil(error.status, error.message)
            return None
        self.taken += 1
        self.is_message_compressed = compressed
        if self.unacknowledged and self.connection is not None:
            self.connection.message_taken(self)
        return body

    def _spoil(self, status: Status, message: str | None) -> None:
        """What has come is no message, even if the server's status is OK."""
        if self.status is Status.OK:
            self.reader = MessageReader(self.reader.limit)
            self.status, self.message = status, message
        else:
            self.fail(status, message)

    def end(self) -> GRPCError | None:
        """Why there is no further message to take from a call that is over; None if it is OK."""
        if self.status is Status.OK and self.reader.buffered_bytes:
            self._spoil(Status.INTERNAL, "truncated response message")
        return self.error

    def _encoding(self) -> bytes | None:
        encoding = dict(self.headers or ()).get(b"grpc-encoding")
        if encoding is None or encoding == IDENTITY:
            return None
        if encoding != GZIP:
            raise GRPCError(Status.INTERNAL, f"unknown response encoding {encoding[:32]!r}")
        return GZIP

    def _has_whole_message(self) -> bool:
        announced = self.reader.announced_bytes  # its prefix was found valid as it came
        return 0 < announced <= self.reader.buffered_bytes

    # ------------------------------------------------------------------- end

    def finish(self, status: Status, message: str | None = None) -> None:
        """It has a status. No-op once over; does not touch its stream."""
        if self.status is None:
            self.status = status
            self.message = message
            self.outbox = None
            self.pending = None
            self._owner.call_over(self)
            self.on_change()

    def finish_with(self, headers: Headers) -> None:
        """It has ended with the server's trailers, or its only headers."""
        self.trailers = headers
        fields = dict(headers)
        status, message = response_status(fields)
        if status is Status.OK and not self.server_streaming:
            # A streaming response is judged message by message, as they are taken.
            if not self.taken and not self.reader.buffered_bytes:
                status, message = Status.UNIMPLEMENTED, "no response message"
            elif not self.taken and not self._has_whole_message():
                status, message = Status.INTERNAL, "truncated response message"
        details = fields.get(STATUS_DETAILS_KEY)
        if details is not None and status is not Status.OK:
            try:
                self.details = decode_binary(details)[0]
            except MetadataError:
                self.details = None  # the status matters more
        self.finish(status, message)

    def finish_without_status(self) -> None:
        """The server has ended the response with a message, not with trailers."""
        if not self.server_streaming:
            self.reader = MessageReader(self.reader.limit)
        self.finish(Status.INTERNAL, "the response has ended without trailers")

    def was_reset(self, code: int, now_s: float, *, reason: str) -> None:
        """Its stream was reset; ``reason``: why its connection takes no calls, if it does not."""
        if code == ErrorCode.REFUSED_STREAM:
            self.refused(reason or "the server has refused the call")
        else:
            is_late = self.deadline_s is not None and self.deadline_s <= now_s
            self.finish(*reset_problem(code, is_late=is_late))

    def fail(self, status: Status, message: str | None) -> None:
        """End it from this side: what has come is dropped, the server told. No-op once over."""
        if self.status is None:
            self.reader = MessageReader(self.reader.limit)
            if self.connection is not None:
                self.connection.abandon(self)
            self.finish(status, message)

    def refused(self, message: str) -> None:
        """The server has not begun with it: send it again, if that is still possible."""
        if self.status is not None:
            return
        self.connection = None
        self.stream_id = 0
        self.pending = None
        if self.outbox is None or self.headers is not None:
            self.finish(Status.UNAVAILABLE, message)
        else:
            self.replays += 1
            self._owner.call_refused(self)

    def expire(self) -> None:
        """The deadline has passed."""
        self.fail(Status.DEADLINE_EXCEEDED, "deadline exceeded")

    def cancel(self) -> None:
        """The caller has lost interest."""
        self.fail(Status.CANCELLED, "cancelled by the caller")


def _nothing() -> None:
    pass
