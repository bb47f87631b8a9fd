"""What web pages of others get (nothing), what those of the server get, and plain pages."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.testing
from grpclib.const import Status
from structlog.testing import capture_logs

from dbos_actors.rpc.connect.origins import WebPolicy
from dbos_actors.rpc.server.authentication import Refusal
from dbos_actors.rpc.server.health import Health
from dbos_actors.rpc.server.interceptors import Interceptor
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.pages import Page
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.server.web_options import WebOptions
from dbos_actors.rpc.wire.framing import frame
from tests.support.http_client import HttpClient, open_http

Serve = Callable[[Server], AbstractAsyncContextManager[str]]

VERSIONS = pytest.mark.parametrize(
    "is_http2", [pytest.param(False, id="http1"), pytest.param(True, id="http2")]
)
ORIGIN = "https://console.example.net"
TYPE = "application/proto"


class Writes:
    """A method that counts how often it was carried out."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, call: UnaryCall) -> None:
        self.count += 1
        call.reply(b"done")


def status_of(error: Exception) -> tuple[Status, str]:
    return Status.UNKNOWN, "untold"


def server_of(writes: Writes, **options: object) -> Server:
    unary = {"/t.T/Write": UnaryMethod(writes, bytes)}
    return Server(unary=unary, status_of=status_of, **options)  # type: ignore[arg-type]


@VERSIONS
@pytest.mark.parametrize(
    "hostile",
    [
        ("POST", "/t.T/Write", {"host": "evil.example:50051"}, 421),
        ("GET", "/", {"host": "evil.example"}, 421),
        ("POST", "/t.T/Write", {"host": "evil.example", "origin": "http://evil.example"}, 421),
        ("POST", "/t.T/Write", {"origin": "http://evil.example"}, 403),
        ("POST", "/t.T/Write", {"origin": "null"}, 403),
        ("POST", "/t.T/Write", {"origin": "http://localhost:3000"}, 403),
        ("POST", "/t.T/Write", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", "/t.T/Write", {"sec-fetch-site": "cross-site"}, 403),
        (
            "OPTIONS",
            "/t.T/Write",
            {"origin": "http://evil.example", "access-control-request-method": "POST"},
            403,
        ),
        ("OPTIONS", "/t.T/Write", {}, 403),
    ],
)
async def test_a_page_of_another_origin_gets_nothing(
    serve: Serve, is_http2: bool, hostile: tuple[str, str, dict[str, str], int]
) -> None:
    verb, path, headers, status = hostile
    writes = Writes()
    server = server_of(writes)
    with capture_logs() as logs:
        async with serve(server) as address, open_http(address, is_http2=is_http2) as client:
            body = b"x" if verb == "POST" else b""
            answer = await client.request(verb, path, body, content_type=TYPE, **headers)
    assert answer.status == status
    assert not [name for name in answer.headers or {} if name.startswith(b"access-control")]
    assert writes.count == 0
    assert server.statistics().web_refused == 1
    assert [log["event"] for log in logs] == ["web request refused"]


@VERSIONS
async def test_a_simple_request_of_a_page_cannot_write_even_if_it_had_no_origin(
    serve: Serve, is_http2: bool
) -> None:
    """A form's content types; older browsers send them to anybody, and without an origin."""
    writes = Writes()
    async with (
        serve(server_of(writes)) as address,
        open_http(address, is_http2=is_http2) as client,
    ):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            assert (await client.post("/t.T/Write", b"x", kind)).status == 415
    assert writes.count == 0


@VERSIONS
async def test_pages_of_the_server_itself_may_call_it(serve: Serve, is_http2: bool) -> None:
    writes = Writes()
    async with (
        serve(server_of(writes)) as address,
        open_http(address, is_http2=is_http2) as client,
    ):
        origin = f"http://{address}"
        answer = await client.post("/t.T/Write", b"x", TYPE, origin=origin)
    assert (answer.status, answer.body, writes.count) == (200, b"done", 1)


@VERSIONS
async def test_pages_of_a_named_origin_may_call_and_read(serve: Serve, is_http2: bool) -> None:
    writes = Writes()
    web = WebOptions(policy=WebPolicy.of(origins=[ORIGIN]))
    async with (
        serve(server_of(writes, web=web)) as address,
        open_http(address, is_http2=is_http2) as client,
    ):
        asked = await client.request(
            "OPTIONS",
            "/t.T/Write",
            origin=ORIGIN,
            access_control_request_method="POST",
            access_control_request_headers="content-type,connect-protocol-version",
        )
        assert asked.status == 204
        assert asked.header("access-control-allow-methods") == "GET, POST"
        assert asked.header("access-control-allow-headers") == (
            "content-type,connect-protocol-version"
        )
        for path, kind, status in (
            ("/t.T/Write", TYPE, 200),
            ("/t.T/Write", "text/plain", 415),
            ("/t.T/Nothing", TYPE, 404),
        ):
            answer = await client.post(path, b"x", kind, origin=ORIGIN)
            assert answer.status == status
            assert answer.header("access-control-allow-origin") == ORIGIN
            assert answer.header("vary") == "origin"
    assert writes.count == 1


@VERSIONS
async def test_a_name_that_the_server_was_told_of_is_answered(serve: Serve, is_http2: bool) -> None:
    writes = Writes()
    web = WebOptions(policy=WebPolicy.of(hosts=["dbos.example"]))
    async with (
        serve(server_of(writes, web=web)) as address,
        open_http(address, is_http2=is_http2) as client,
    ):
        answer = await client.post("/t.T/Write", b"x", TYPE, host="dbos.example:1")
        assert (answer.status, writes.count) == (200, 1)


# ------------------------------------------------------------------------- pages


@VERSIONS
async def test_a_server_without_pages_says_what_it_is(serve: Serve, is_http2: bool) -> None:
    async with (
        serve(server_of(Writes())) as address,
        open_http(address, is_http2=is_http2) as client,
    ):
        answer = await client.get("/")
        assert (answer.status, answer.body) == (200, b"This server speaks gRPC and Connect.\n")
        assert answer.header("content-type") == "text/plain; charset=utf-8"
        assert answer.header("x-content-type-options") == "nosniff"
        head = await client.request("HEAD", "/")
        assert (head.status, head.body) == (200, b"")
        assert head.header("content-length") == str(len(answer.body))
        assert (await client.get("/favicon.ico")).status == 404
        assert (await client.get("/?x=1")).status == 200
        assert (await client.request("POST", "/", b"x", content_type="a/b")).status == 404


@VERSIONS
async def test_a_service_answers_paths_with_pages(serve: Serve, is_http2: bool) -> None:
    pages = {
        "/a.css": Page(b"a{}", b"text/css", headers=[(b"cache-control", b"no-cache")]),
        "/empty": Page(b"", http_status=204),
    }
    async with (
        serve(server_of(Writes(), web=WebOptions(pages=pages.get))) as address,
        open_http(address, is_http2=is_http2) as client,
    ):
        answer = await client.get("/a.css?v=1", sec_fetch_site="cross-site")
        assert (answer.status, answer.body) == (200, b"a{}")
        assert answer.header("content-type") == "text/css"
        assert answer.header("cache-control") == "no-cache"
        assert (await client.get("/b.css")).status == 404


async def test_pages_that_are_not_read_use_no_more_memory_than_responses_may(
    serve: Serve,
) -> None:
    page = Page(b"x" * 200_000)
    limits = ServerLimits(unsent_bytes_free=1_000_000, unsent_bytes_shared=0)
    server = server_of(Writes(), limits=limits, web=WebOptions(pages=lambda _path: page))
    async with (
        serve(server) as address,
        open_http(address, is_http2=True) as client,
        trio.open_nursery() as nursery,
    ):
        statuses: list[int] = []

        async def get(engine: HttpClient) -> None:
            statuses.append((await engine.get("/")).status)

        nursery.start_soon(get, client)
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().mailbox_bytes == 0
        assert statuses == [200]


# ------------------------------------------------------ tokens, metrics, strangers


class Tokens:
    """Knows three tokens, of which one may not write, and one has called too often."""

    def __init__(self) -> None:
        self.charged_bytes = 0

    def identify(
        self, headers: Mapping[bytes, bytes], certificate_names: Sequence[str]
    ) -> Hashable | None:
        token = headers.get(b"authorization")
        return token if token in {b"Bearer writer", b"Bearer reader", b"Bearer busy"} else None

    def is_valid(self, client: Hashable) -> bool:
        return True

    def admit(self, client: Hashable, path: bytes, now_s: float) -> Refusal | None:
        assert path == b"/t.T/Write"
        if client == b"Bearer reader":
            return Refusal(Status.PERMISSION_DENIED, "a reader may not write")
        if client == b"Bearer busy":
            return Refusal(Status.RESOURCE_EXHAUSTED, "too often", retry_after_s=1.5)
        return None

    def charge(self, client: Hashable, messages: int, size_bytes: int) -> None:
        self.charged_bytes += size_bytes

    def delay_s(self, client: Hashable, now_s: float) -> float:
        return 0.0

    def denial(self, client: Hashable, path: bytes) -> str | None:
        return None


class Counted(Interceptor):
    """Notes what has happened to each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Status | None]] = []

    def unary(self, path: str, handler: Callable[[UnaryCall], None]) -> Callable[..., None]:
        def wrapped(call: UnaryCall) -> None:
            call.when_answered(lambda status: self.calls.append((path, status)))
            handler(call)

        return wrapped

    def refused(self, path: str, status: Status) -> None:
        self.calls.append((path, status))


@pytest.fixture
def guarded() -> tuple[Server, Writes, Counted]:
    writes, counted = Writes(), Counted()
    health = Health(["t.T"])
    health.set(True)
    return (
        server_of(writes, authenticator=Tokens(), open_services=[health], interceptors=[counted]),
        writes,
        counted,
    )


@VERSIONS
async def test_tokens_and_interceptors_apply_to_connect_as_to_grpc(
    serve: Serve, is_http2: bool, guarded: tuple[Server, Writes, Counted]
) -> None:
    server, writes, counted = guarded
    async with serve(server) as address, open_http(address, is_http2=is_http2) as client:
        for token, status, code in (
            (None, 401, "unauthenticated"),
            ("Bearer nobody", 401, "unauthenticated"),
            ("Bearer reader", 403, "permission_denied"),
        ):
            headers = {} if token is None else {"authorization": token}
            answer = await client.post("/t.T/Write", b"x", TYPE, **headers)
            assert (answer.status, answer.json()["code"]) == (status, code)
        assert writes.count == 0
        answer = await client.post("/t.T/Write", b"x", TYPE, authorization="Bearer writer")
        assert (answer.status, writes.count) == (200, 1)
        statistics = server.statistics()
        assert (statistics.calls_unauthenticated, statistics.calls_denied) == (2, 1)
        assert statistics.connections_strangers == 0
    path = "/t.T/Write"
    assert counted.calls == [
        (path, Status.UNAUTHENTICATED),
        (path, Status.UNAUTHENTICATED),
        (path, Status.PERMISSION_DENIED),
        (path, Status.OK),
    ]


@VERSIONS
async def test_a_client_beyond_its_quota_is_told_when_to_come_back(
    serve: Serve, is_http2: bool
) -> None:
    tokens, writes = Tokens(), Writes()
    server = server_of(writes, authenticator=tokens)
    async with serve(server) as address, open_http(address, is_http2=is_http2) as client:
        answer = await client.post("/t.T/Write", b"x", TYPE, authorization="Bearer busy")
        assert (answer.status, writes.count) == (429, 0)
        [detail] = answer.json()["details"]
        assert detail["type"] == "google.rpc.RetryInfo"
        assert not [name for name in answer.headers or {} if name.startswith(b"trailer-")]
        assert tokens.charged_bytes == 0
        answer = await client.post("/t.T/Write", b"12345", TYPE, authorization="Bearer writer")
        assert (answer.status, tokens.charged_bytes) == (200, len(b"12345done"))


@VERSIONS
async def test_health_is_asked_without_a_token(
    serve: Serve, is_http2: bool, guarded: tuple[Server, Writes, Counted]
) -> None:
    server, _, _ = guarded
    path = "/grpc.health.v1.Health/Check"
    async with serve(server) as address, open_http(address, is_http2=is_http2) as client:
        answer = await client.post(path, {"service": "t.T"})
        assert (answer.status, answer.json()) == (200, {"status": "SERVING"})
        assert (await client.post(path, {"service": "x"})).status == 404
        answer = await client.post(path, {"service": "x" * 5_000})
        assert (answer.status, answer.json()["code"]) == (429, "resource_exhausted")
        assert server.statistics().connections_strangers == 1


async def test_watchers_of_health_are_bounded_and_end_with_the_server(
    serve: Serve, guarded: tuple[Server, Writes, Counted]
) -> None:
    server, _, _ = guarded
    ends = []
    async with (
        serve(server) as address,
        open_http(address) as client,
        trio.open_nursery() as nursery,
    ):

        async def watch() -> None:
            body, kind = frame(b'{"service": "t.T"}'), "application/connect+json"
            answer = await client.post("/grpc.health.v1.Health/Watch", body, kind)
            ends.append(answer.envelopes())

        nursery.start_soon(watch)
        while server.statistics().calls_open == 0:
            await trio.testing.wait_all_tasks_blocked()
        await server.drain(0.1)
    messages, end = ends[0]
    assert messages == [b'{"status":"SERVING"}']
    assert end["error"]["code"] == "unavailable"


async def test_a_get_is_no_method_of_a_service_without_the_option() -> None:
    """The health service's descriptor promises nothing, so its methods have no GET."""
    health = Health()
    server = Server(unary={}, open_services=[health], status_of=status_of)
    methods = server._shared.connect_methods
    assert set(methods) == {b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"}
    assert not any(method.has_get for method in methods.values())
