"""The server's side of one HTTP/2 connection: bytes in, calls and bytes out.

`ServerConnection` gives each event of the HTTP/2 engine to the part that it concerns:

    admission      what becomes of a request when its headers come
    unary_calls    requests and answers of methods served by plain functions
    stream_calls   requests and answers of methods of grpclib services
    web_requests   requests that are not gRPC: calls of the Connect protocol, and pages
    connect_calls  requests and answers of Connect's unary calls
    flow_accounts  memory for requests that wait and for answers that are not sent
    outbox         the engine, the live streams, and the way to a flush
    shutdown       how the connection is ended
    keepalive      when it is pinged, drained or given up

It opens no socket, reads no clock and never waits: times are arguments, and a `Driver` moves the
bytes and runs the handlers of grpclib services in tasks. It does run the handlers of unary methods,
where their requests are read, and it writes to the log.

A read is one batch: all unary calls in it are dispatched, and then the driver flushes once.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from grpclib.const import Status

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.server.admission import Admission
from dbos_actors.rpc.server.connect_call import ConnectStreamCall, ConnectUnaryCall
from dbos_actors.rpc.server.connect_calls import ConnectCalls
from dbos_actors.rpc.server.excess import ExcessLine
from dbos_actors.rpc.server.flow_accounts import RequestAccount, ResponseAccount
from dbos_actors.rpc.server.inflation import Inflation
from dbos_actors.rpc.server.keepalive import Keepalive
from dbos_actors.rpc.server.outbox import Discarded, Outbox
from dbos_actors.rpc.server.shared_state import Driver, SharedState
from dbos_actors.rpc.server.shutdown import Shutdown
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.stream_calls import StreamCalls
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.server.unary_calls import unary_calls_of
from dbos_actors.rpc.server.web_requests import WebRequests
from dbos_actors.rpc.wire.engine import Engine
from dbos_actors.rpc.wire.frame_order import FrameOrder
from dbos_actors.rpc.wire.http2 import (
    HEADER_BYTES_MAX,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Http2Error,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    Setting,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from dbos_actors.rpc.wire.keepalive import Action
from dbos_actors.rpc.wire.peers import names_of

log = get_logger(__name__)

_KEEPALIVE_PING: Final = b"dbosping"


class ServerConnection:
    """The protocol's state of one connection."""

    __slots__ = (
        "_admission",
        "_connect_calls",
        "_engine",
        "_frame_order",
        "_keepalive",
        "_outbox",
        "_requests",
        "_responses",
        "_shutdown",
        "_stream_calls",
        "_streams",
        "_unary",
        "_unsent_max",
        "closed",
    )

    closed: bool
    """Nothing more will happen: close the socket once the output is sent."""

    def __init__(
        self,
        shared: SharedState,
        driver: Driver,
        *,
        peer: str,
        now_s: float,
        age_factor: float = 1.0,
        is_loopback: bool = False,
        engine: Engine | None = None,
        keepalive: Keepalive | None = None,
    ) -> None:
        """``age_factor``: by how much the age at which the connection is drained is multiplied.
        ``is_loopback``: whether the client came to an address that only this machine has.
        ``engine`` and ``keepalive``: of another version of HTTP.
        """
        keepalive = keepalive or Keepalive(shared.limits.keepalive, now_s, age_factor=age_factor)
        outbox = Outbox(shared, driver, keepalive, peer=peer, engine=engine)
        requests, responses = RequestAccount(outbox), ResponseAccount(shared)
        shutdown = Shutdown(outbox)
        inflation = Inflation(shared)
        self._outbox = outbox
        self._engine = outbox.engine
        self._frame_order: FrameOrder | None = FrameOrder() if engine is None else None
        self._streams = outbox.streams
        self._requests = requests
        self._responses = responses
        self._keepalive = keepalive
        self._shutdown = shutdown
        self._unary = unary_calls_of(shared, outbox, requests, responses, inflation, shutdown)
        self._stream_calls = StreamCalls(outbox, requests, responses, inflation, shutdown)
        self._admission = Admission(outbox, self._unary, self._stream_calls)
        self._connect_calls = ConnectCalls(
            outbox,
            requests,
            responses,
            inflation,
            shutdown,
            unary=self._unary,
            stream_calls=self._stream_calls,
        )
        self._admission.other_requests = WebRequests(
            outbox,
            self._admission,
            self._connect_calls,
            self._stream_calls,
            responses,
            is_loopback=is_loopback,
        ).begin
        self._unsent_max = shared.limits.unsent_bytes_max
        self.closed = False

    @property
    def peer(self) -> str:
        """The client, such as ``ipv4:127.0.0.1:50312``."""
        return self._outbox.peer

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The certificate by which the client has authenticated itself, with mutual TLS."""
        return self._outbox.peer_certificate

    @peer_certificate.setter
    def peer_certificate(self, certificate: dict[str, Any] | None) -> None:
        self._outbox.peer_certificate = certificate
        self._admission.certificate_names = names_of(certificate)

    @property
    def unsent_bytes(self) -> int:
        """Response bytes that the socket has not accepted."""
        return self._responses.unsent_bytes

    @property
    def streams(self) -> int:
        """How many streams the client has open."""
        return len(self._streams)

    @property
    def is_full(self) -> bool:
        """Whether nothing is to be read until what has come is used; HTTP/2 has windows."""
        return False

    @property
    def is_stranger(self) -> bool:
        """Whether no client was authenticated on the connection yet."""
        return self._admission.client is None

    def excess_line(self, now_s: float) -> ExcessLine | None:
        """The line of a client beyond its quota, if the connection has to stand in it."""
        return self._admission.excess_line(now_s)

    def leave_excess(self) -> None:
        """The connection stands in no line any more."""
        self._admission.excess = None

    # ------------------------------------------------------------- bytes in

    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> None:
        """Take bytes from the client and dispatch the calls they complete."""
        if self._shutdown.is_ending:
            return
        self._keepalive.heard_s = now_s
        outbox = self._outbox
        outbox.is_receiving = True
        try:
            if self._frame_order is not None:
                self._receive_checked(self._frame_order, data, now_s)
            else:
                self._engine.receive(data)
            self._handle_events(now_s)
        except Http2Error as error:
            log_limited(
                log.info,
                "connection refused by the HTTP/2 engine",
                peer=self.peer,
                error=str(error),
            )
            self.lost()
        finally:
            outbox.is_receiving = False

    def _receive_checked(
        self, order: FrameOrder, data: bytes | bytearray | memoryview, now_s: float
    ) -> None:
        """Take bytes of a connection that has just begun, up to a frame that must not be."""
        violation = order.check(data)
        if violation is None:
            self._engine.receive(data)
            if order.is_done:
                self._frame_order = None
        else:
            self._engine.receive(data[: violation.offset])
            self._handle_events(now_s)
            self._shutdown.refuse(violation.code, violation.reason)

    def _handle_events(self, now_s: float) -> None:
        streams = self._streams
        unary = self._unary
        for event in self._engine.events():
            kind = type(event)
            if kind is DataReceived:
                stream_id = event.stream_id
                call = streams.get(stream_id)
                if type(call) is UnaryCall:
                    data = event.data
                    if (
                        event.end_stream
                        and call.buffer is None
                        and self._responses.unsent_bytes <= self._unsent_max
                    ):
                        call.request_ended = True
                        self._requests.acknowledge(stream_id, len(data))
                        unary.dispatch(call, data)
                    else:
                        unary.feed(call, data, end_stream=event.end_stream)
                elif type(call) is StreamCall:
                    self._stream_calls.feed(call, event.data, end_stream=event.end_stream)
                elif isinstance(call, ConnectUnaryCall | ConnectStreamCall):
                    self._connect_calls.feed(call, event.data, end_stream=event.end_stream)
                else:
                    self._requests.acknowledge(stream_id, len(event.data))
            elif kind is RequestReceived:
                self._admission.begin(event.stream_id, event.headers, event.end_stream, now_s)
            elif kind is StreamClosed or kind is StreamReset:
                if event.stream_id in streams:
                    self._gone(event.stream_id)
            elif kind is TrailersReceived:
                call = streams.get(event.stream_id)
                if type(call) is UnaryCall:
                    unary.feed(call, b"", end_stream=True)
                elif type(call) is StreamCall:
                    self._stream_calls.feed(call, b"", end_stream=True)
                elif isinstance(call, ConnectUnaryCall | ConnectStreamCall):
                    self._connect_calls.feed(call, b"", end_stream=True)
            else:
                self._handle_connection_event(event, now_s)

    def _handle_connection_event(self, event: object, now_s: float) -> None:
        calls = self._stream_calls
        match event:
            case WindowUpdated():
                calls.senders.window_opened(event.stream_id)
                calls.handovers.window_opened(event.stream_id)
            case SettingsReceived():
                self._keepalive.greeted = True
                header_bytes = event.settings.get(Setting.MAX_HEADER_LIST_SIZE)
                if header_bytes is not None:
                    self._outbox.header_bytes_max = min(header_bytes, HEADER_BYTES_MAX)
                calls.senders.windows_changed()
                calls.handovers.windows_changed()
            case PingReceived():
                if self._keepalive.client_pinged(now_s, busy=self._admission.is_busy):
                    self._shutdown.calm_down("too_many_pings")
            case PingAcknowledged():
                self._shutdown.ping_acknowledged(event.opaque_data, now_s)
            case ConnectionClosed():
                self.lost()

    def _gone(self, stream_id: int) -> None:
        """The client reset the stream, or it closed: nobody waits for its answer."""
        call = self._streams.pop(stream_id)
        if isinstance(call, UnaryCall):
            self._unary.gone(call)
        elif isinstance(call, StreamCall):
            self._stream_calls.gone(call)
        else:
            self._outbox.forget_discarded(stream_id)

    def reauthenticate(self) -> None:
        """End the calls whose client the authenticator knows, or allows them, no longer."""
        if not self.closed:
            self._admission.reauthenticate()

    # ------------------------------------------------------------ bytes out

    def output(self, amount: int) -> bytes:
        """At most so many bytes for the client."""
        try:
            return self._engine.output(amount)
        except Http2Error as error:
            if not self.closed:
                log_limited(
                    log.warning, "the HTTP/2 engine failed", peer=self.peer, error=str(error)
                )
                self.lost()
            return b""

    def flushed(self, socket_bytes: int, now_s: float) -> bool:
        """All output that can be taken was; ``socket_bytes`` of it wait for the socket.

        Returns whether there is more output now.
        """
        if self.closed:
            return False
        responses, outbox, calls = self._responses, self._outbox, self._stream_calls
        if responses.unsent_bytes:
            self._keepalive.responded = True
        if calls.handovers.moving:
            calls.handovers.flushed(socket_bytes)
        again = False
        unsent_bytes = self._engine.queued_bytes() + socket_bytes
        responses.flushed(unsent_bytes)
        outbox.is_receiving = True
        try:
            self._handle_events(now_s)
            if outbox.resets and not socket_bytes:
                again = outbox.reset_discarded()
            if self._unary.parked and unsent_bytes <= self._unsent_max:
                again = self._unary.resume() or again
            if self._shutdown.waits_for_flush and not socket_bytes:
                self._shutdown.flushed()
                again = True
            if outbox.has_reset:
                again = self._replace_leaking(now_s) or again
        finally:
            outbox.is_receiving = False
        if calls.senders.for_queue:
            calls.senders.flushed()
        if calls.senders.for_room:
            calls.senders.wake_for_room(responses.room_bytes)
        if self._shutdown.is_ending and not socket_bytes:
            self.lost()
        return again

    def _replace_leaking(self, now_s: float) -> bool:
        """Send the client away if our resets have used up the window; whether that is so."""
        self._outbox.has_reset = False
        if self._shutdown.is_announced or not self._outbox.has_lost_window():
            return False
        log.info("connection ends: resets have used up its window", peer=self.peer)
        self.announce_shutdown(now_s)
        return True

    # ----------------------------------------------------------------- time

    def tick(self, now_s: float, accepted_bytes: int) -> None:
        """To be called about once a second, with the bytes the socket has accepted so far."""
        if self._shutdown.is_ending:  # and still here: it does not even read why
            self.lost()
        if self.closed:
            return
        # Others may have given memory back.
        self._stream_calls.senders.wake_for_room(self._responses.room_bytes)
        if self._responses.is_stalled(now_s, accepted_bytes):
            log_limited(log.warning, "connection closed: it does not read", peer=self.peer)
            self.lost()
            return
        self._shutdown.tick(now_s)
        if self._replace_leaking(now_s):
            self._outbox.wants_flush()
        match self._keepalive.tick(now_s, busy=self._admission.is_busy):
            case Action.PING:
                with suppress(Http2Error):
                    self._engine.ping(_KEEPALIVE_PING)
                self._outbox.wants_flush()
            case Action.DRAIN:
                self.announce_shutdown(now_s)
                self._outbox.wants_flush()
            case Action.CLOSE:
                log_limited(
                    log.info, "connection closed: too old, or not answering", peer=self.peer
                )
                self.lost()

    # ----------------------------------------------------------------- ends

    def announce_shutdown(self, now_s: float, *, after_streams: bool = False) -> None:
        """Begin a graceful end, so that no call under way is lost; then open calls finish.

        ``after_streams``: not before the live calls of grpclib services are over.
        """
        if self.closed:
            return
        if after_streams:
            self._shutdown.announce_after_streams(now_s, self._stream_calls.live)
        else:
            self._shutdown.announce(now_s)

    def end_calls(self, status: Status, message: str) -> None:
        """End every call that is not over."""
        for call in list(self._streams.values()):
            if not isinstance(call, Discarded):
                call.end(status, message)

    def queue_dismissal(self) -> None:
        """Queue the GOAWAY of a connection that is dismissed; nothing more is read."""
        if not self.closed:
            with suppress(Http2Error):
                self._engine.shut_down(ErrorCode.NO_ERROR, b"too many connections")

    def lost(self) -> None:
        """The connection is over: its calls have nobody to answer. Idempotent."""
        if self.closed:
            return
        self.closed = True
        for call in list(self._streams.values()):
            if isinstance(call, UnaryCall):
                self._unary.forget(call, None)
            elif isinstance(call, StreamCall):
                self._stream_calls.gone(call)
        self._streams.clear()
        self._unary.close()
        self._admission.close()
        self._responses.close()
        self._requests.close()

    def let_go(self, driver: Driver) -> None:
        """Have another driver, which does nothing, now that the socket is closed.

        A connection and its driver hold each other. Apart they are freed at once, without the
        garbage collector, and with them the engine and its buffers.
        """
        self._outbox.driver = driver
