"""The server's side of an HTTP/1.1 connection: the only module that imports h11.

`Http1Connection` has the methods of `dbos_actors.rpc.wire.http2.Http2Connection`, and gives the
same events. So everything above it (admission, limits, answers, drains) works for both versions of
HTTP and does not know which one it has. A request is a *stream*, as in HTTP/2, with the ids 1, 3, 5
and so on. There is one at a time.

Rules inside:
- The head of a request is gathered here, up to a limit of bytes and of lines, and given to h11 when
  it is whole. h11 reads it, and cuts the body out of its chunks.
- What h11 reads more leniently than a proxy in front of the server may do is refused, because two
  that differ over where a request ends can be made to take one request for two: a line that ends
  without CR, a folded line, a request with both a length and chunks, and a target that is not a
  path.
- Requests are not pipelined. When bytes come behind a request that is not answered yet, they are
  dropped, and the connection ends behind the answer, as RFC 9112 (9.3.2) allows. So one read brings
  one request at most, and bytes behind a request are never taken for another one.
- A connection ends behind an answer that was given before the request's end: reading the rest would
  cost more than a new connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

import h11

from dbos_actors.rpc.wire.http2 import (
    DataReceived,
    Headers,
    PingAcknowledged,
    RequestReceived,
    StreamGoneError,
    StreamReset,
)

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_FOLDED: Final = re.compile(rb"\n[ \t]")
_UNLIMITED_BYTES: Final = 2**31 - 1
"""As a window: HTTP/1.1 has none, and the socket says how much the client takes."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""About this connection, not about the request (RFC 9110, 7.6.1); ``host`` has a name of HTTP/2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1Options:
    """What is allowed to a client of HTTP/1.1."""

    head_bytes_max: int = 16_384
    """Of a request's head; as much as a header block of HTTP/2 may have."""
    head_fields_max: int = 100
    """Lines of a request's head. h11 reads each in 5 µs, while everything else waits."""
    chunks_free: int = 1_000
    """Chunks of a request's body that may be as small as they like; h11 reads each in 12 µs ..."""
    chunk_bytes_min: int = 64
    """... and the mean size that they need beyond that."""
    window_bytes: int = 65_536
    """Of a request's body, unacknowledged, beyond which nothing is read; as of a stream of HTTP/2.
    """
    head_s_max: float = 10.0
    """From a head's first byte to its last."""
    body_pause_s_max: float = 20.0
    """Without a byte of a body that the server waits for."""
    idle_s_max: float = 120.0
    """Without a request. HTTP/1.1 has no ping, so nothing else tells that a client has gone."""


class _Phase(Enum):
    """What the connection does, from one request to the next."""

    HEAD = auto()
    """Gathers a head; nothing of it has come, or a part."""
    BODY = auto()
    """Takes a request's body. Its answer may have begun."""
    ANSWER = auto()
    """The request is whole, its answer is not."""
    OVER = auto()
    """Nothing more is read; the connection is over once its output is sent."""


class BadRequestError(Exception):
    """A request that is not answered by its call, but by the connection, which ends."""

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.message = message


class Http1Connection:
    """One HTTP/1.1 connection's engine. Never used by two tasks at the same instant."""

    __slots__ = (
        "_body_bytes",
        "_chunks",
        "_events",
        "_h11",
        "_head",
        "_head_seen",
        "_is_closing",
        "_options",
        "_out",
        "_phase",
        "_responded",
        "_scheme",
        "_stream_id",
        "_unacknowledged",
        "_without_body",
    )

    def __init__(self, options: Http1Options, *, is_tls: bool = False) -> None:
        self._options = options
        self._scheme = b"https" if is_tls else b"http"
        self._h11 = h11.Connection(h11.SERVER)
        self._phase = _Phase.HEAD
        self._head = bytearray()
        self._head_seen = 0
        self._stream_id = 1
        self._responded = False
        self._without_body = False
        self._body_bytes = 0
        self._chunks = 0
        self._unacknowledged = 0
        self._is_closing = False
        self._events: list[Any] = []
        self._out = bytearray()

    # ------------------------------------------------------------ what it is

    @property
    def is_gathering_head(self) -> bool:
        """Whether a part of a head has come."""
        return self._phase is _Phase.HEAD and bool(self._head)

    @property
    def is_awaiting_body(self) -> bool:
        """Whether a request's body has not ended, and the client may send more of it."""
        return self._phase is _Phase.BODY and not self.is_full

    @property
    def is_full(self) -> bool:
        """Whether so much of a body waits that nothing more is to be read."""
        return self._unacknowledged >= self._options.window_bytes

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen, and all output was taken."""
        return self._phase is _Phase.OVER and not self._out

    @property
    def has_output(self) -> bool:
        """Whether there is some."""
        return bool(self._out)

    # -------------------------------------------------------------- bytes in

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client."""
        if not data:  # which h11 takes for the end
            return
        try:
            if self._phase is _Phase.HEAD:
                self._head += data
                self._take_head()
            elif self._phase is _Phase.BODY:
                self._take_body(bytes(data))
            elif self._phase is _Phase.ANSWER:
                self._is_closing = True
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
        except BadRequestError as error:
            self._refuse(error.http_status, error.message)

    def events(self) -> list[Any]:
        """Take the events of what has come since the last time."""
        found, self._events = self._events, []
        return found

    def _take_head(self) -> None:
        head, options = self._head, self._options
        while head.startswith(b"\r\n"):  # some old clients end a body so (RFC 9112, 2.2)
            del head[:2]
            self._head_seen = 0
        if head and not 65 <= head[0] <= 90:
            raise BadRequestError(400, "a request begins with a method in upper case")
        found = _HEAD_END.search(head, max(0, self._head_seen - 2), options.head_bytes_max)
        if found is None:
            if len(head) >= options.head_bytes_max:
                raise BadRequestError(431, f"a head of more than {options.head_bytes_max} bytes")
            self._head_seen = len(head)
            return
        end = found.end()
        lines = head.count(b"\n", 0, end)
        if lines > options.head_fields_max + 2:  # the request line, and the empty one
            raise BadRequestError(431, f"more than {options.head_fields_max} header fields")
        if head.count(b"\r\n", 0, end) != lines or _FOLDED.search(head, 0, end):
            raise BadRequestError(400, "a line of the head is folded, or does not end with CRLF")
        data = bytes(head)
        head.clear()
        self._head_seen = 0
        self._phase = _Phase.BODY
        self._take_body(data)

    def _take_body(self, data: bytes) -> None:
        """Take a part of a request whose head is whole."""
        self._h11.receive_data(data)
        parts: list[bytes | bytearray] = []
        is_whole = False
        request: h11.Request | None = None
        while True:
            event = self._h11.next_event()
            if type(event) is h11.Data:
                parts.append(event.data)
                self._count_chunk(len(event.data))
            elif type(event) is h11.Request:
                request = event
                _check(event)
            elif type(event) is h11.EndOfMessage:
                is_whole = True
                self._phase = _Phase.ANSWER
                if self._h11.trailing_data[0]:
                    self._is_closing = True
                break
            else:
                break
        body = b"".join(parts)
        self._unacknowledged += len(body)
        if request is not None:
            self._begin(request, end_stream=is_whole and not body)
            if not body:
                return
        if body or is_whole:
            self._events.append(
                DataReceived(stream_id=self._stream_id, data=body, end_stream=is_whole)
            )

    def _begin(self, request: h11.Request, *, end_stream: bool) -> None:
        self._without_body = request.method == b"HEAD"
        fields = [
            (b":method", bytes(request.method)),
            (b":scheme", self._scheme),
            (b":path", bytes(request.target)),
        ]
        for name, value in request.headers:
            if name == b"host":
                fields.append((b":authority", bytes(value)))
        fields += [
            (bytes(name), bytes(value))
            for name, value in request.headers
            if name not in _HOP_BY_HOP
        ]
        self._events.append(
            RequestReceived(stream_id=self._stream_id, headers=tuple(fields), end_stream=end_stream)
        )

    def _count_chunk(self, size: int) -> None:
        self._chunks += 1
        self._body_bytes += size
        options = self._options
        beyond = self._chunks - options.chunks_free
        if beyond > 0 and self._body_bytes < self._chunks * options.chunk_bytes_min:
            raise BadRequestError(400, "the body comes in too many small chunks")

    def _refuse(self, http_status: int, message: str) -> None:
        """Answer what is no request, if that can still be done, and end the connection."""
        if self._phase is _Phase.OVER:
            return
        if not self._responded and self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = message.encode("ascii", "replace") + b"\n"
            self._out += self._answer_to_noise(http_status, body)
        if self._phase is not _Phase.HEAD:
            self._events.append(StreamReset(self._stream_id, 0))
        self._phase = _Phase.OVER
        self._head.clear()

    def _answer_to_noise(self, http_status: int, body: bytes) -> bytes:
        response = h11.Response(
            status_code=http_status,
            headers=[
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
                (b"x-content-type-options", b"nosniff"),
                (b"connection", b"close"),
            ],
            reason=_reason(http_status),
        )
        parts = [self._h11.send(response), self._h11.send(h11.Data(data=body))]
        return b"".join([part for part in parts if part])

    # ------------------------------------------------------------- bytes out

    def output(self, amount: int) -> bytes:
        """At most so many bytes to send; fewer than asked for: nothing else can be sent now."""
        out = self._out
        if (
            self._phase is _Phase.BODY
            and not self._responded
            and self._h11.they_are_waiting_for_100_continue
        ):
            out += self._send(h11.InformationalResponse(status_code=100, headers=[]))
        data = bytes(out[:amount])
        del out[:amount]
        if not out and self._responded and self._h11.our_state in {h11.DONE, h11.MUST_CLOSE}:
            self._finish()
        return data

    def queued_bytes(self, stream_id: int | None = None) -> int:  # noqa: ARG002 - there is one
        """Output that was not taken."""
        return len(self._out)

    def send_response(self, stream_id: int, headers: Headers, *, end_stream: bool = False) -> None:
        """Queue the head of an answer. Raises one of `StreamError`."""
        self._require(stream_id)
        if self._responded:
            raise StreamGoneError("the answer has begun")
        http_status = 500
        fields: list[tuple[bytes, bytes]] = []
        for name, value in headers:
            if name == b":status":
                http_status = int(value)
            else:
                fields.append((name, value))
        names = {name for name, _ in fields}
        if end_stream and http_status not in {204, 304} and b"content-length" not in names:
            fields.append((b"content-length", b"0"))
        if self._is_closing or self._phase is _Phase.BODY:
            fields.append((b"connection", b"close"))
        self._responded = True
        self._out += self._send(
            h11.Response(status_code=http_status, headers=fields, reason=_reason(http_status))
        )
        if end_stream:
            self._out += self._send(h11.EndOfMessage())

    def send_data(self, stream_id: int, data: bytes, *, end_stream: bool = False) -> None:
        """Queue a part of an answer's body. Raises one of `StreamError`."""
        self._require(stream_id)
        if self._h11.our_state is not h11.SEND_BODY:
            raise StreamGoneError("the answer has not begun, or has ended")
        if data and not self._without_body:
            self._out += self._send(h11.Data(data=data))
        if end_stream:
            self._out += self._send(h11.EndOfMessage())

    def send_trailers(self, stream_id: int, headers: Headers) -> None:  # noqa: ARG002
        """Not in HTTP/1.1: nothing that has trailers is served over it. Raises `StreamError`."""
        raise StreamGoneError("no trailers in HTTP/1.1")

    def _send(self, event: Any) -> bytes:
        return self._h11.send(event) or b""

    def _require(self, stream_id: int) -> None:
        if stream_id != self._stream_id or self._phase in {_Phase.HEAD, _Phase.OVER}:
            raise StreamGoneError("the request is over")

    def _finish(self) -> None:
        """The answer was given: begin with the next request, if there may be one."""
        if (
            self._phase is not _Phase.ANSWER
            or self._is_closing
            or self._h11.our_state is not h11.DONE
            or self._h11.their_state is not h11.DONE
        ):
            self._phase = _Phase.OVER
            return
        self._h11.start_next_cycle()
        self._phase = _Phase.HEAD
        self._stream_id += 2
        self._responded = self._without_body = False
        self._body_bytes = self._chunks = self._unacknowledged = 0

    # ------------------------------------------------------------------ ends

    def reset(self, stream_id: int, error_code: int) -> None:  # noqa: ARG002
        """Give a request up. The connection ends, behind the answer if that is whole."""
        self._require(stream_id)
        if self._h11.our_state not in {h11.DONE, h11.MUST_CLOSE}:
            self._out.clear()
        self._phase = _Phase.OVER

    def ping(self, payload: bytes) -> None:
        """There is no ping: it counts as answered at once."""
        self._events.append(PingAcknowledged(opaque_data=payload))

    def announce_shutdown(self) -> None:
        """Take no further request. One that is under way is answered."""
        self._is_closing = True
        if self._phase is _Phase.HEAD and not self._head:
            self._phase = _Phase.OVER

    def shut_down(self, error_code: int = 0, debug: bytes = b"") -> None:
        """As `announce_shutdown`; with an error, give up the request that is under way, too."""
        self.announce_shutdown()
        if error_code:
            self._refuse(503, debug.decode("ascii", "replace"))
            self._phase = _Phase.OVER

    def terminate(self, error_code: int = 0) -> None:  # noqa: ARG002
        """Drop everything."""
        self._out.clear()
        self._phase = _Phase.OVER

    # ------------------------------------------- what HTTP/2 has, and this not

    def acknowledge(self, amount: int, stream_id: int) -> None:
        """So many bytes of the body are used: as many more may be read."""
        if stream_id == self._stream_id:
            self._unacknowledged = max(0, self._unacknowledged - amount)

    def share_fairly(self, stream_id: int) -> None:
        """There is nothing to share: one answer at a time."""

    def has_lost_window(self, held_bytes: Any) -> bool:  # noqa: ARG002
        """There is no window."""
        return False

    def remote_window_bytes(self, stream_id: int) -> int:  # noqa: ARG002
        """There is no window."""
        return _UNLIMITED_BYTES

    def can_send_trailers(self, stream_id: int) -> bool:  # noqa: ARG002
        """Whether all that was queued is taken."""
        return not self._out


def _check(request: h11.Request) -> None:
    """Refuse what others may read differently. Raises `BadRequestError`."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version != b"1.1"
    ):
        raise BadRequestError(400, "transfer-encoding beside content-length, or in HTTP/1.0")
    if request.http_version not in {b"1.0", b"1.1"}:
        raise BadRequestError(505, "the version of HTTP must be 1.0, 1.1, or 2 by its own rules")
    if not request.target.startswith(b"/"):
        raise BadRequestError(400, "the target of a request must be a path")


def _reason(http_status: int) -> bytes:
    try:
        return HTTPStatus(http_status).phrase.encode("ascii")
    except ValueError:  # 499, which is nginx's
        return b"Client Closed Request" if http_status == 499 else b"Error"
