"""What becomes of the requests of one connection that do not say that they are gRPC.

`WebRequests.begin` looks at the head of each, in this order:
1. May it be answered at all? Requests that web pages of others could have made are refused
   (`dbos_actors.rpc.connect.origins`).
2. Is its path that of a method? If not, a GET gets a page (`dbos_actors.rpc.server.pages`), and
   anything else an error. A browser's question whether a page may call is answered, too.
3. Is it a call of the Connect protocol? If not, it gets an HTTP error. So a form of a web page,
   whose content types no call has, cannot do anything.
4. Then it goes the way of gRPC's calls (`admission`): whose call is it, and is there a place for
   it?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from grpclib.const import Status

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger
from dbos_actors.rpc.connect import answers, origins
from dbos_actors.rpc.connect.codes import CODES
from dbos_actors.rpc.connect.requests import (
    Codec,
    ConnectRequest,
    RefusedRequestError,
    is_connect_type,
    read_get,
    read_post,
)
from dbos_actors.rpc.server.admission import Admission
from dbos_actors.rpc.server.authentication import Refusal
from dbos_actors.rpc.server.connect_call import (
    ERROR_TYPE,
    AnswerFormat,
    ConnectStreamCall,
    ConnectUnaryCall,
    with_length,
)
from dbos_actors.rpc.server.connect_calls import ConnectCalls
from dbos_actors.rpc.server.connect_methods import ConnectMethod
from dbos_actors.rpc.server.flow_accounts import ResponseAccount
from dbos_actors.rpc.server.outbox import Outbox
from dbos_actors.rpc.server.pages import TEXT, Page
from dbos_actors.rpc.server.stream_call import StreamMethod
from dbos_actors.rpc.server.stream_calls import StreamCalls
from dbos_actors.rpc.server.unary import UnaryMethod
from dbos_actors.rpc.wire.http2 import Headers
from dbos_actors.rpc.wire.status import Fields

log = get_logger(__name__)

_PROTOCOL_HEADERS: Final = frozenset(
    {
        b"accept-encoding",
        b"connect-accept-encoding",
        b"connect-content-encoding",
        b"connect-protocol-version",
        b"connect-timeout-ms",
        b"content-encoding",
    }
)
"""Not metadata of the call."""


class WebRequests:
    """The requests of one connection."""

    __slots__ = (
        "_admission",
        "_calls",
        "_is_loopback",
        "_outbox",
        "_responses",
        "_shared",
        "_stream_calls",
    )

    def __init__(
        self,
        outbox: Outbox,
        admission: Admission,
        calls: ConnectCalls,
        stream_calls: StreamCalls,
        responses: ResponseAccount,
        *,
        is_loopback: bool,
    ) -> None:
        """``is_loopback``: whether the client came to an address that only this machine has."""
        self._outbox = outbox
        self._shared = outbox.shared
        self._admission = admission
        self._calls = calls
        self._stream_calls = stream_calls
        self._responses = responses
        self._is_loopback = is_loopback

    def begin(
        self,
        stream_id: int,
        headers: Headers,
        fields: dict[bytes, bytes],
        end_stream: bool,
        now_s: float,
    ) -> None:
        """Answer a request, or make a call of it."""
        request = _Request(stream_id, headers, fields, end_stream, now_s)
        policy = self._shared.web.policy
        problem = origins.host_problem(policy, fields, is_loopback=self._is_loopback)
        if problem:
            self._refuse(request, 421, problem)
            return
        if request.verb == b"OPTIONS":
            self._preflight(request)
            return
        method = self._shared.connect_methods.get(request.path)
        if method is None and request.verb in {b"GET", b"HEAD"}:
            self._send_page(request)
            return
        problem = origins.origin_problem(policy, fields)
        if problem:
            self._refuse(request, 403, problem)
            return
        request.cors = origins.cors_fields(policy, fields)
        if method is None:
            self._no_method(request)
            return
        try:
            said = self._read(method, request)
        except RefusedRequestError as refused:
            self._send_refusal(request, refused)
        else:
            self._make_call(method, request, said)

    # ----------------------------------------------------------------- calls

    def _read(self, method: ConnectMethod, request: _Request) -> ConnectRequest:
        """What the head of a call says. Raises `RefusedRequestError`."""
        has_json = method.json is not None
        if request.verb == b"GET" and method.has_get:
            return read_get(request.fields, request.query, has_json=has_json)
        if request.verb != b"POST":
            verbs = ["GET", "POST"] if method.has_get else ["POST"]
            raise RefusedRequestError(
                f"{method.path} is called by {' or '.join(verbs)}",
                http_status=405,
                fields=[(b"allow", ", ".join(verbs).encode("ascii"))],
            )
        said = read_post(request.fields, is_streaming=method.is_streaming, has_json=has_json)
        if method.needs_http2 and not self._outbox.is_http2:
            text = f"{method.path} has streams in both directions, which need HTTP/2"
            raise RefusedRequestError(text, http_status=505)
        return said

    def _make_call(self, method: ConnectMethod, request: _Request, said: ConnectRequest) -> None:
        shared, admission = self._shared, self._admission
        answer = AnswerFormat.of(
            said,
            to_json=method.to_json,
            cors=request.cors,
        )
        route = method.json if said.codec is Codec.JSON else method.proto
        assert route is not None
        fields = {**request.fields, b":path": request.path}
        client = admission.identify(route, fields, request.now_s)
        refusal = client if isinstance(client, Refusal) else None
        if isinstance(route, StreamMethod) and route.is_open:
            refusal = admission.open_refusal()
        if refusal is not None:
            admission.count_refused(method.path, refusal.status)
            error = answer.error(refusal.status, refusal.message, refusal.fields)
            self._answer(request, *error)
            return
        deadline_s = None if said.timeout_s is None else request.now_s + said.timeout_s
        headers = request.metadata()
        call: ConnectUnaryCall | ConnectStreamCall
        if isinstance(route, UnaryMethod):
            call = ConnectUnaryCall(
                self._calls, request.stream_id, route, headers, deadline_s, client
            )
        else:
            call = admission.make_stream(ConnectStreamCall, request.stream_id, route, headers)
            call.deadline, call.client = deadline_s, client
        call.format = answer
        call.query_message = said.message
        call.encoding = said.encoding
        call.accepts_gzip = said.accepts_gzip and shared.limits.compress_bytes_min is not None
        call.request_ended = request.is_whole
        shared.calls_connect += 1
        refusal = admission.admit(call, request.now_s)
        if refusal is not None:
            call.end(refusal.status, refusal.message)
            return
        if isinstance(call, ConnectStreamCall):
            # Of a unary one, this only finds whether there is a place for its handler.
            is_whole_stream = request.is_whole and answer.is_streaming
            self._stream_calls.begin(call, end_stream=is_whole_stream)
            if call.over or answer.is_streaming:
                return
        if request.is_whole:
            self._calls.run(call, said.message or b"")

    # ------------------------------------------------------- what is no call

    def _preflight(self, request: _Request) -> None:
        found = origins.preflight_fields(self._shared.web.policy, request.fields)
        if found:
            self._answer(request, [(b":status", b"204"), *found], b"")
        else:
            problem = origins.origin_problem(self._shared.web.policy, request.fields)
            self._refuse(request, 403, problem or "OPTIONS is only answered to pages")

    def _send_page(self, request: _Request) -> None:
        page = self._shared.web.pages(request.path.decode("ascii", "replace"))
        if page is None:
            page = Page(b"There is nothing here.\n", http_status=404)
        responses = self._responses
        if not responses.charge(responses.unsent_bytes + len(page.body)):
            page = Page(b"Too many answers are not read.\n", http_status=503)
        fields = with_length([*page.headers], page.body)
        body = b"" if request.verb == b"HEAD" else page.body
        responses.unsent_bytes += len(body)
        self._answer(request, answers.head(page.http_status, page.content_type, fields), body)

    def _no_method(self, request: _Request) -> None:
        text = f"unknown method {request.path[:256].decode('ascii', 'replace')}"
        if is_connect_type(request.fields.get(b"content-type", b"")):
            self._send_error(request, 404, Status.UNIMPLEMENTED, text)
        else:
            self._send_text(request, 404, text)

    def _send_refusal(self, request: _Request, refused: RefusedRequestError) -> None:
        """Answer what is no call of its method, in the form that it asks for."""
        status, text, fields = refused.status, refused.message, refused.fields
        if status is None:
            self._send_text(request, refused.http_status, text, fields)
        elif refused.stream_type is None:
            self._send_error(request, CODES[status][1], status, text, fields)
        else:
            head = answers.head(200, refused.stream_type, [*request.cors, *fields])
            self._answer(request, head, answers.end_of_stream(status, text))

    def _refuse(self, request: _Request, http_status: int, problem: str) -> None:
        """Refuse what may be the work of a web page; the page could not read why."""
        self._shared.web_refused += 1
        log_limited(log.warning, "web request refused", problem=problem, peer=self._outbox.peer)
        self._send_error(request, http_status, Status.PERMISSION_DENIED, problem)

    def _send_error(
        self,
        request: _Request,
        http_status: int,
        status: Status,
        text: str,
        fields: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        body = answers.error_body(status, text)
        all_fields = with_length([*request.cors, *fields], body)
        self._answer(request, answers.head(http_status, ERROR_TYPE, all_fields), body)

    def _send_text(
        self,
        request: _Request,
        http_status: int,
        text: str,
        fields: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        body = text.encode("utf-8", "replace") + b"\n"
        all_fields = with_length([*request.cors, *fields], body)
        self._answer(request, answers.head(http_status, TEXT, all_fields), body)

    def _answer(self, request: _Request, head: Fields, body: bytes) -> None:
        is_head = request.verb == b"HEAD"
        self._outbox.answer(
            request.stream_id, head, b"" if is_head else body, request_ended=request.is_whole
        )


class _Request:
    """One request's head."""

    __slots__ = (
        "cors",
        "fields",
        "headers",
        "is_whole",
        "now_s",
        "path",
        "query",
        "stream_id",
        "verb",
    )

    cors: Fields
    """Headers of the answer that let the page which has sent it read it."""

    def __init__(
        self,
        stream_id: int,
        headers: Headers,
        fields: dict[bytes, bytes],
        is_whole: bool,
        now_s: float,
    ) -> None:
        self.stream_id = stream_id
        self.headers = headers
        self.fields = fields
        self.is_whole = is_whole
        self.now_s = now_s
        self.verb = fields.get(b":method", b"")
        self.path, _, self.query = fields.get(b":path", b"").partition(b"?")
        self.cors = []

    def metadata(self) -> Headers:
        """The headers that the call has: without the protocol's own, and without the query."""
        return [
            (name, self.path if name == b":path" else value)
            for name, value in self.headers
            if name not in _PROTOCOL_HEADERS
        ]
