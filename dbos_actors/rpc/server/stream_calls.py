"""The calls of grpclib services on one connection: their requests, their answers and their ends.

A handler that takes a stream of messages is started when its call begins. A handler that takes one
message is started when that message is complete and the client has ended its request.

The handler itself runs in a task that the driver starts. It takes messages and queues answers
through its `StreamCall`, which calls the methods of `StreamCalls` here. None of them waits.
"""

from __future__ import annotations

from contextlib import suppress

from grpclib.const import Status

from dbos_actors.rpc.server.call_states import CallEvent, CallState
from dbos_actors.rpc.server.containment import tell
from dbos_actors.rpc.server.flow_accounts import RequestAccount, ResponseAccount
from dbos_actors.rpc.server.handover import Handovers
from dbos_actors.rpc.server.inflation import Inflation
from dbos_actors.rpc.server.outbox import SHARED_RESPONSE_BYTES, Outbox
from dbos_actors.rpc.server.responders import Responder
from dbos_actors.rpc.server.senders import Senders
from dbos_actors.rpc.server.shutdown import Shutdown
from dbos_actors.rpc.server.stream_call import StreamCall, framing_failure
from dbos_actors.rpc.wire.framing import FramingError
from dbos_actors.rpc.wire.http2 import ErrorCode, StreamError
from dbos_actors.rpc.wire.status import RESPONSE_HEADERS, Fields, fitting


class StreamCalls(Responder):
    """The `StreamResponder` of every call of a grpclib service on a connection."""

    __slots__ = (
        "_inflation",
        "_responses",
        "_shutdown",
        "_unsent_free",
        "_window",
        "handlers",
        "handovers",
        "live",
        "open_calls",
        "senders",
    )

    handlers: int
    """Handlers that were started and have not returned."""

    live: int
    """Calls that are not over."""

    open_calls: int
    """Calls of open methods that are not finished."""

    def __init__(
        self,
        outbox: Outbox,
        requests: RequestAccount,
        responses: ResponseAccount,
        inflation: Inflation,
        shutdown: Shutdown,
    ) -> None:
        limits = outbox.shared.limits
        super().__init__(outbox, requests)
        self._responses = responses
        self._inflation = inflation
        self._shutdown = shutdown
        self._unsent_free = limits.unsent_bytes_free
        self._window = limits.http2.stream_window_bytes
        self.handovers = Handovers(outbox.engine)
        self.senders = Senders(outbox.engine, queue_bytes_max=limits.stream_unsent_bytes)
        self.handlers = 0
        self.live = 0
        self.open_calls = 0

    @property
    def header_bytes_max(self) -> int:
        """Size of a header block that the client accepts."""
        return self._outbox.header_bytes_max

    # ------------------------------------------------------------- requests

    def begin(self, call: StreamCall, *, end_stream: bool) -> None:
        """The headers of a call have come, and perhaps the end of its request with them."""
        call.request_ended = end_stream
        if self.handlers >= self._shared.limits.http2.concurrent_streams_max:
            # More than its streams: handlers that outlive streams the client has reset.
            call.end(Status.RESOURCE_EXHAUSTED, "too many calls on this connection")
        elif call.method.client_streaming:
            self.start(call)
        elif end_stream:
            call.end(Status.UNIMPLEMENTED, "no request message")

    def start(self, call: StreamCall) -> None:
        """Start the handler of a call whose request may be taken."""
        call.happened(CallEvent.START)
        self.handlers += 1
        self._outbox.driver.start(call)

    def feed(self, call: StreamCall, data: bytes, *, end_stream: bool) -> None:
        """Take a part of a request."""
        call.unacknowledged += len(data)
        if not self._requests.hold(len(data)):
            self._shutdown.calm_down("too much unread request data")
        call.request_ended = end_stream
        call.reader.feed(data)
        self._make_room(call)
        if call.method.client_streaming or call.handling:
            call.on_change()
        else:
            self._gather(call)

    def _gather(self, call: StreamCall) -> None:
        """Start the handler of a call with one request message once that is all there is."""
        if call.failure is not None:
            call.end(call.failure.status, call.failure.message)
            return
        announced, buffered = call.reader.announced_bytes, call.reader.buffered_bytes
        if announced and buffered > announced:
            call.end(Status.UNIMPLEMENTED, "more than one request message")
        elif call.request_ended:
            if buffered == 0:
                call.end(Status.UNIMPLEMENTED, "no request message")
            elif announced == 0 or buffered < announced:
                call.end(Status.INTERNAL, "truncated request message")
            else:
                self.start(call)

    def _make_room(self, call: StreamCall) -> None:
        """Ask for room for the next message of a request, if the window may end within it.

        The engine withholds what is acknowledged until it is half a window, so a message
        may have only the other half, after others before it.
        """
        if call.failure is not None:
            return
        try:
            announced = call.reader.announced_bytes
        except FramingError as error:
            call.failure = framing_failure(error)
            return
        if announced > self._window // 2:
            call.message_bytes = announced
            self._requests.upload(call, announced)

    def messages_taken(self, call: StreamCall, count: int, size: int) -> None:
        """The handler took so many messages, of so many bytes as sent, prefixes included."""
        if call.client is not None:
            # The first message of a call that has one is counted with the call.
            self._charge(call, count if call.method.client_streaming else 0, size)
        requests = self._requests
        requests.unhold(size)
        acknowledged = call.reader.buffered_bytes + size - call.unacknowledged
        due = max(0, size - acknowledged)
        if due:
            requests.acknowledge(call.stream_id, due)
            call.unacknowledged -= due
            self._outbox.wants_flush()  # the windows' updates want to be sent
        if call.message_bytes:
            call.message_bytes = 0
            requests.uploads.release(call.stream_id)
        self._make_room(call)

    def _charge(self, call: StreamCall, messages: int, size: int) -> None:
        authenticator = self._shared.authenticator
        assert authenticator is not None
        authenticator.charge(call.client, messages, size)

    def quota_delay_s(self, call: StreamCall, now_s: float) -> float:
        """How long the call waits before it takes or sends more, for its client's quota."""
        authenticator = self._shared.authenticator
        if authenticator is None or call.client is None:
            return 0.0
        return authenticator.delay_s(call.client, now_s)

    def inflate(self, call: StreamCall, body: bytes) -> bytes:
        """Decompress a message for a handler. Raises `grpclib.GRPCError`."""
        data = self._inflation.inflate(call.encoding, body, call.reader.limit)
        call.inflated_bytes += len(data)
        return data

    def release_inflated(self, call: StreamCall) -> None:
        """The handler has done with the decompressed messages that it took."""
        self._inflation.release(call.inflated_bytes)
        call.inflated_bytes = 0

    # -------------------------------------------------------------- answers

    def can_send(self, call: StreamCall, size: int) -> bool:
        """Whether a message of so many bytes may be queued; if not, ``on_change`` will tell."""
        senders = self.senders
        if senders.is_queue_full(call):
            senders.wait_for_queue(call)
            return False
        unsent_bytes = self._responses.unsent_bytes + size
        if unsent_bytes > self._unsent_free and not self._responses.charge(unsent_bytes):
            senders.wait_for_room(call, size)
            return False
        senders.discard(call)
        return True

    def send_headers(self, call: StreamCall, fields: Fields) -> None:
        """Queue the response headers of a call that is not over."""
        engine = self._outbox.engine
        with suppress(*StreamError):
            engine.send_response(call.stream_id, fields)
            if call.method.server_streaming:
                engine.share_fairly(call.stream_id)
        self._outbox.wants_flush()

    def send(self, call: StreamCall, framed: bytes) -> None:
        """Queue a framed message of a call that is not over."""
        if call.client is not None:
            self._charge(call, 0, len(framed))
        self._responses.unsent_bytes += len(framed)
        engine = self._outbox.engine
        with suppress(*StreamError):
            engine.send_data(call.stream_id, framed)
            self.handovers.queued(call, len(framed))
            if len(framed) > SHARED_RESPONSE_BYTES and not call.method.server_streaming:
                engine.share_fairly(call.stream_id)
        self._outbox.wants_flush()

    def end_stream(self, call: StreamCall, status: Status, fields: Fields) -> None:
        """Queue the status of a call that is not over."""
        stream_id = call.stream_id
        outbox = self._outbox
        before = self._forget(call, status)
        if before is not CallState.ANSWERING:
            headers = RESPONSE_HEADERS + fields
            outbox.refuse(stream_id, headers, request_ended=call.request_ended)
            return
        with suppress(*StreamError):
            outbox.engine.send_trailers(stream_id, fitting(fields, outbox.header_bytes_max))
            if not call.request_ended:
                outbox.discard(stream_id, has_body=True)
        outbox.wants_flush()

    def end_with_body(
        self, call: StreamCall, status: Status, head: Fields | None, body: bytes
    ) -> None:
        """Queue what is left of the answer of a call that is not over, and its end."""
        if call.client is not None:
            self._charge(call, 0, len(body))
        responses = self._responses
        unsent_bytes = responses.unsent_bytes + len(body)
        if (
            unsent_bytes > self._unsent_free
            and status is Status.OK
            and not responses.charge(unsent_bytes)
        ):
            call.end(Status.RESOURCE_EXHAUSTED, "too many unread responses")
            return
        responses.unsent_bytes = unsent_bytes
        self._forget(call, status)
        self._outbox.answer(call.stream_id, head, body, request_ended=call.request_ended)

    def cancel_stream(self, call: StreamCall) -> None:
        """Reset the stream of a call that is not over."""
        self._forget(call, None)
        with suppress(*StreamError):
            self._outbox.engine.reset(call.stream_id, ErrorCode.CANCEL)
            self._outbox.has_reset = True
        self._outbox.wants_flush()

    # ----------------------------------------------------------------- ends

    def gone(self, call: StreamCall) -> None:
        """The client has reset the stream of a call, or the connection is lost."""
        self._forget(call, None)

    def stream_finished(self, call: StreamCall) -> None:
        """The handler of a call has returned; the call is over."""
        call.happened(CallEvent.RETURN)
        self.handlers -= 1
        self._finished(call)

    def _forget(self, call: StreamCall, status: Status | None) -> CallState:
        """The call is over. Returns the state in which it was before."""
        before = call.happened(CallEvent.END)
        self._outbox.streams.pop(call.stream_id, None)
        self.senders.discard(call)
        self.handovers.discard(call)
        self._requests.release(call, call.drop_request())
        shared = self._shared
        if call.method.is_open:
            shared.open_calls_of_strangers.discard(call)
            shared.open_calls_of_clients.discard(call)
        if call.state is CallState.FINISHED:
            self._finished(call)
        if call.deadline is not None:
            shared.deadlines.remove(call.deadline, call)
        if call.observer is not None:
            tell(call, status)
        if call.on_over is not None:
            self._outbox.driver.tell_over(call)
        self.live -= 1
        if not self.live:
            self._shutdown.streams_ended()
        return before

    def _finished(self, call: StreamCall) -> None:
        """The call is over and has no handler."""
        self.release_inflated(call)
        shared = self._shared
        shared.calls_live -= 1
        shared.streams_live -= 1
        if call.method.is_open:
            self.open_calls -= 1
            shared.calls_live_max -= 1
