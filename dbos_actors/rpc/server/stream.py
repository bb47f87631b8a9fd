"""What the handler of a grpclib service gets: `grpclib.server.Stream`, on Trio.

Same methods, same meaning; waiting is Trio's, so a handler is cancelled, not
interrupted, when its client goes or its deadline passes, and may use nurseries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from dbos_actors.clock import Clock
from dbos_actors.errors import sole_cause
from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.containment import Observer, split_failure
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.wire.deadlines import Deadline
from dbos_actors.rpc.wire.http2 import Headers
from dbos_actors.rpc.wire.metadata import (
    Metadata,
    MetadataError,
    MetadataLike,
    decode_metadata,
    encode_metadata,
)
from dbos_actors.rpc.wire.peers import Peer
from dbos_actors.rpc.wire.status import INTERNAL_ERROR, details_field

log = get_logger(__name__)

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")


class ServerStream(Generic[RequestT, ReplyT]):
    """One call, for its handler. Made by the transport only."""

    def __init__(
        self, call: StreamCall, *, clock: Clock, compress_bytes_min: int | None = None
    ) -> None:
        self._call = call
        self._clock = clock
        self._compress_bytes_min = compress_bytes_min
        self._changed = trio.lowlevel.ParkingLot()
        self._sent = False
        call.on_change = self._wake
        self.deadline = None if call.deadline is None else Deadline(call.deadline, clock)
        self.peer = Peer(call.peer, call.peer_certificate)
        self.metadata: Metadata = decode_metadata(call.headers)
        self.user_agent = dict(call.headers).get(b"user-agent", b"").decode("ascii", "replace")
        self.user_data: dict[str, Any] = {}
        """For interceptors and handlers to tell each other things."""

    @property
    def headers(self) -> Headers:
        """As they came, pseudo-headers and metadata: for interceptors that look for one name."""
        return self._call.headers

    @property
    def is_message_compressed(self) -> bool:
        """Whether the request message that was taken last came compressed."""
        return self._call.is_message_compressed

    @property
    def path(self) -> str:
        """The method's full path."""
        return self._call.path

    def when_answered(self, observer: Observer) -> None:
        """Have ``observer`` called once with the call's status, or None if the client had gone.

        For interceptors, before they hand the call on. Observers are called in the order in
        which they were added; an error of one changes nothing for the others or the call.
        """
        self._call.when_answered(observer)

    # -------------------------------------------------------------- requests

    async def recv_message(self) -> RequestT | None:
        """The next request message; None after the last.

        Raises `grpclib.GRPCError` when what the client sends is no message of this method
        (leave it to the transport), `StreamTerminatedError` when the call is over. A message
        already there is returned without letting other tasks run. Cancellation loses none.
        """
        bodies = await self._recv_bodies(1)
        return self._decode(bodies[0]) if bodies else None

    async def recv_messages(self, count_max: int = 1_000) -> list[RequestT]:
        """All request messages that are there, at least one; none after the last.

        What bulk methods should use: one wake-up takes all that one read brought. Raises as
        `recv_message`; of a message that cannot be decoded, those before it are not delivered.
        """
        return [self._decode(body) for body in await self._recv_bodies(count_max)]

    async def _recv_bodies(self, count_max: int) -> list[bytes]:
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._call
        if call.client is not None:
            await self._wait_for_quota()
        while not (bodies := call.take_many(count_max)):
            if call.over:
                raise StreamTerminatedError("the call is over")
            if call.request_ended:
                break
            await self._changed.park()
        return bodies

    async def _wait_for_quota(self) -> None:
        """Wait while the client is beyond its quota: meanwhile flow control stops it."""
        while (delay_s := self._call.quota_delay_s(self._clock.monotonic_s())) > 0:  # noqa: ASYNC110 - time passes
            await trio.sleep(delay_s)

    def _decode(self, body: bytes) -> RequestT:
        try:
            message: RequestT = self._call.method.decode(body)
        except GRPCError:
            raise
        except Exception as error:
            text = "the request message cannot be decoded"
            raise GRPCError(Status.INTERNAL, text) from error
        return message

    def __aiter__(self) -> AsyncIterator[RequestT]:
        return self

    async def __anext__(self) -> RequestT:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    # ------------------------------------------------------------- responses

    async def send_initial_metadata(
        self, *, metadata: MetadataLike | None = None, announce_gzip: bool = False
    ) -> None:
        """Send the response headers now instead of with the first message.

        ``announce_gzip``: messages may be sent with ``compress=True`` later. Raises
        `ProtocolError` if the headers were sent, `MetadataError` on metadata that is not valid,
        or larger than the client accepts.
        """
        if self._call.headers_sent:
            raise ProtocolError("initial metadata was already sent")
        fields = encode_metadata(metadata or ())
        self._call.check_fits(fields)
        self._require_open()
        self._call.send_headers(fields, announce_gzip=announce_gzip)
        await trio.lowlevel.checkpoint()

    async def send_message(self, message: ReplyT | bytes, *, compress: bool | None = None) -> None:
        """Send a response message, once the client has taken enough of the earlier ones.

        Bytes are taken for a message already serialised. ``compress``: whether to gzip it, for a
        client that accepts that; None: as `ServerLimits.compress_bytes_min` says. Raises
        `ProtocolError` on a second response of a unary call, or if the headers were sent without
        the announcement that ``compress=True`` needs; `StreamTerminatedError` if the call is
        over. If cancelled, nothing of the message was sent.
        """
        call = self._call
        if compress and call.headers_sent and not call.accepts_gzip and call.client_accepts_gzip:
            raise ProtocolError("gzip was not announced: send_initial_metadata(announce_gzip=True)")
        if self._sent and not call.method.server_streaming:
            raise ProtocolError("message was already sent")
        if isinstance(message, bytes):
            body = message
        elif isinstance(message, call.method.reply_type):
            body = message.SerializeToString()  # type: ignore[attr-defined]
        else:
            raise TypeError(f"message must be of type {call.method.reply_type!r}, not {message!r}")
        await trio.lowlevel.checkpoint()
        if call.client is not None:
            await self._wait_for_quota()
        self._require_open()
        while not call.can_send(len(body)):
            await self._changed.park()
            self._require_open()
        if not call.headers_sent:
            call.send_headers([], announce_gzip=bool(compress))
        if compress is None:
            call.send(body, self._compress_bytes_min)
        else:
            call.send(body, 0 if compress else None)
        self._sent = True

    @property
    def handed_over(self) -> int:
        """How many response messages, the first ones, the system's socket has taken whole.

        The most that can be known of a client that does not answer. It rises no more once the
        call is over: what was not handed over then never will be, if the client has gone or the
        call was cancelled.
        """
        return self._call.handover.messages

    @property
    def is_handed_over(self) -> bool:
        """Whether that is every message sent so far."""
        return self._call.handover.is_complete

    async def wait_handed_over(self) -> None:
        """Wait until every message sent so far is handed over, or the call is over."""
        await trio.lowlevel.checkpoint()
        handover = self._call.handover
        handover.is_awaited = True
        while not handover.is_complete and not self._call.over:
            await self._changed.park()

    async def send_trailing_metadata(
        self,
        *,
        status: Status = Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: MetadataLike | None = None,
    ) -> None:
        """End the call with a status; done for the handler when it returns or raises.

        Raises `ProtocolError` if the call has its status, or is unary, OK and unanswered;
        `MetadataError` on metadata that is not valid, or larger than the client accepts.
        """
        call = self._call
        fields = encode_metadata(metadata or ())
        if call.over:
            raise ProtocolError("trailing metadata was already sent, or the client has gone")
        if status is Status.OK and not (self._sent or call.method.server_streaming):
            raise ProtocolError("an OK unary response requires a message to be sent")
        if status_details is not None:
            fields.append(details_field(status, status_message, status_details))
        call.check_fits(fields)
        call.end(status, status_message, fields)
        await trio.lowlevel.checkpoint()

    async def cancel(self) -> None:
        """Reset the call: the client gets CANCELLED and no status of ours."""
        self.abandon()
        await trio.lowlevel.checkpoint()

    def abandon(self) -> None:
        """As `cancel`, at once: what is not handed over is dropped. No-op once the call is over."""
        self._call.cancel()

    def _wake(self) -> None:
        self._changed.unpark_all()

    def _require_open(self) -> None:
        if self._call.over:
            raise StreamTerminatedError("the call is over")

    def finish(self) -> None:
        """The handler returned: the status is OK, if it may be."""
        if self._sent or self._call.method.server_streaming:
            self._call.end(Status.OK)
        else:
            log_limited(log.error, "handler returned without an answer", path=self.path)
            self._call.end(Status.INTERNAL, INTERNAL_ERROR)


async def handle(call: StreamCall, shared: SharedState, clock: Clock) -> None:
    """Run a call's handler to its end, and the call to its status. Only cancellation gets out."""
    scope = trio.CancelScope()
    try:
        if call.over:
            return
        call.on_over = scope.cancel
        try:
            stream: ServerStream[Any, Any] = ServerStream(
                call, clock=clock, compress_bytes_min=shared.limits.compress_bytes_min
            )
        except MetadataError as error:
            call.end(Status.INTERNAL, str(error))
            return
        try:
            try:
                with scope:
                    await call.method.handler(stream)
            finally:
                call.on_over = None
        except BaseException as error:  # noqa: BLE001 - what is not to be kept goes on
            passing, failure = split_failure(error)
            if passing is not None:
                call.cancel()
            if failure is not None:
                _fail(call, shared, sole_cause(failure))
            try:
                if passing is error:
                    raise
                if passing is not None:
                    raise passing from None
            finally:
                del passing, failure  # they hold this frame, by their tracebacks
        else:
            if not call.over:
                stream.finish()
    except BaseException:
        call.cancel()
        raise
    finally:
        call.finished()


def _fail(call: StreamCall, shared: SharedState, error: BaseException) -> None:
    if call.over:
        group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
        unexpected = group.split((StreamTerminatedError, GRPCError))[1]
        if unexpected is not None:
            error = sole_cause(unexpected)
            log_limited(log.error, "handler failed after its call", path=call.path, exc_info=error)
        return
    status, message, fields = shared.status(error, call.path)
    if not isinstance(error, GRPCError) and status in {Status.INTERNAL, Status.UNKNOWN}:
        log_limited(log.error, "handler failed", path=call.path, peer=call.peer, exc_info=error)
        status, message = Status.INTERNAL, INTERNAL_ERROR
    call.end(status, message, fields)
