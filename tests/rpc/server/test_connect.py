"""Connect calls over both versions of HTTP, to both kinds of methods."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from structlog.testing import capture_logs

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.framing import frame
from tests.support.http_client import HttpClient, open_http

Serve = Callable[[Server], AbstractAsyncContextManager[str]]


def described() -> Any:
    """A service ``t.T`` whose method Read has no side effects, and its message."""
    file = FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    message = file.message_type.add(name="Text")
    message.field.add(name="text", number=1, type=9, label=1)
    message.field.add(name="big_number", number=2, type=4, label=1)
    service = file.service.add(name="T")
    for name in ("Read", "ReadStream", "Write", "Up", "Both", "ReadInTask", "Wait"):
        method = service.method.add(name=name, input_type=".t.Text", output_type=".t.Text")
        if name.startswith("Read") or name == "Wait":
            method.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("t.Text"))


Text = described()
PARAMETERS = [pytest.param(False, id="http1"), pytest.param(True, id="http2")]


def read(call: UnaryCall) -> None:
    """Answers with the text, doubled; or as the text says."""
    text = call.request.text
    if text == "missing":
        raise GRPCError(Status.NOT_FOUND, "no such text", [StringValue(value="detail")])
    if text == "broken":
        raise ZeroDivisionError("secret")
    if text == "garbage":
        call.reply(b"\xff\xff")
        return
    call.reply(Text(text=text * 2, big_number=call.request.big_number))


class Streams:
    """Methods of every cardinality."""

    async def read_in_task(self, stream: Any) -> None:
        request = await stream.recv_message()
        if request.text == "missing":
            details = [StringValue(value="detail")]
            await stream.send_trailing_metadata(
                status=Status.NOT_FOUND,
                status_message="no such text",
                status_details=details,
                metadata={"x-trailer": "t"},
            )
            return
        if request.text == "broken":
            raise ZeroDivisionError("secret")
        await stream.send_initial_metadata(metadata={"x-head": stream.metadata.get("x-sent", "")})
        await stream.send_message(Text(text=request.text * 2, big_number=request.big_number))
        await stream.send_trailing_metadata(metadata={"x-trailer": "t", "x-bin": b"\0\1"})

    async def read_stream(self, stream: Any) -> None:
        request = await stream.recv_message()
        for number in range(int(request.big_number)):
            await stream.send_message(Text(text=f"{request.text} {number}"))
        if request.text == "missing":
            raise GRPCError(Status.NOT_FOUND, "no such text")

    async def up(self, stream: Any) -> None:
        texts = [request.text async for request in stream]
        await stream.send_message(Text(text=" ".join(texts)))

    async def both(self, stream: Any) -> None:
        async for request in stream:
            await stream.send_message(request)

    async def wait(self, stream: Any) -> None:
        await stream.recv_message()
        await trio.sleep_forever()

    def __mapping__(self) -> dict[str, Handler]:
        methods = {
            "ReadInTask": (self.read_in_task, Cardinality.UNARY_UNARY),
            "ReadStream": (self.read_stream, Cardinality.UNARY_STREAM),
            "Up": (self.up, Cardinality.STREAM_UNARY),
            "Both": (self.both, Cardinality.STREAM_STREAM),
            "Wait": (self.wait, Cardinality.UNARY_UNARY),
        }
        return {f"/t.T/{name}": Handler(*method, Text, Text) for name, method in methods.items()}


def status_of(error: Exception) -> tuple[Status, str]:
    return Status.UNKNOWN, "untold"


def make(**options: Any) -> Server:
    method = UnaryMethod(read, Text.FromString, None, Text, Text)
    return Server(
        unary={
            "/t.T/Read": method,
            "/t.T/Write": method,
            "/t.T/Raw": UnaryMethod(lambda call: call.reply(call.request), bytes),
        },
        services=[Streams()],
        status_of=status_of,
        **options,
    )


@pytest.fixture(params=PARAMETERS)
async def client(request: pytest.FixtureRequest, serve: Serve) -> AsyncIterator[HttpClient]:
    async with serve(make()) as address, open_http(address, is_http2=request.param) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/t.T/Read", "/t.T/ReadInTask"])
async def test_a_unary_call_in_either_codec(client: HttpClient, path: str) -> None:
    answer = await client.post(path, {"text": "a", "bigNumber": "18446744073709551615"})
    assert (answer.status, answer.header("content-type")) == (200, "application/json")
    assert answer.json() == {"text": "aa", "bigNumber": "18446744073709551615"}
    body = Text(text="a").SerializeToString()
    answer = await client.post(path, body, "application/proto")
    assert (answer.status, answer.header("content-type")) == (200, "application/proto")
    assert Text.FromString(answer.body).text == "aa"
    assert answer.header("x-content-type-options") == "nosniff"
    empty = await client.post(path, b"", "application/proto")
    assert (empty.status, empty.body) == (200, b"")


async def test_metadata_goes_in_headers_and_trailers_in_headers_with_a_prefix(
    client: HttpClient,
) -> None:
    answer = await client.post("/t.T/ReadInTask", {"text": "a"}, x_sent="here")
    assert answer.header("x-head") == "here"
    assert answer.header("trailer-x-trailer") == "t"
    assert answer.header("trailer-x-bin") == "AAE"


@pytest.mark.parametrize("path", ["/t.T/Read", "/t.T/ReadInTask"])
async def test_an_error_has_its_http_status_and_a_json_body(client: HttpClient, path: str) -> None:
    for content_type, body in (
        ("application/json", b'{"text": "missing"}'),
        ("application/proto", Text(text="missing").SerializeToString()),
    ):
        answer = await client.post(path, body, content_type)
        assert (answer.status, answer.header("content-type")) == (404, "application/json")
        assert answer.json() == {
            "code": "not_found",
            "message": "no such text",
            "details": [{"type": "google.protobuf.StringValue", "value": "CgZkZXRhaWw"}],
        }
    with capture_logs() as logs:
        answer = await client.post(path, {"text": "broken"})
    assert (answer.status, answer.json()["message"]) == (500, "internal error")
    assert [log["event"] for log in logs] == ["handler failed"]


async def test_a_response_that_is_none_is_an_error_of_the_handler(client: HttpClient) -> None:
    with capture_logs() as logs:
        answer = await client.post("/t.T/Read", {"text": "garbage"})
    assert (answer.status, answer.json()["code"]) == (500, "internal")
    assert [log["event"] for log in logs] == ["response without JSON"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b'{"text": 5}', "application/json"),
        (b"\xff\xff", "application/proto"),
    ],
)
@pytest.mark.parametrize("path", ["/t.T/Read", "/t.T/ReadInTask", "/t.T/ReadStream"])
async def test_a_request_that_cannot_be_read_is_an_invalid_argument(
    client: HttpClient, path: str, body: bytes, content_type: str
) -> None:
    if path == "/t.T/ReadStream":
        kind = content_type.replace("/", "/connect+")
        _, end = (await client.post(path, frame(body), kind)).envelopes()
        assert end["error"]["code"] == "invalid_argument"
    else:
        answer = await client.post(path, body, content_type)
        assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")


async def test_a_stream_of_responses_ends_with_its_status(client: HttpClient) -> None:
    request = frame(b'{"text": "a", "bigNumber": 3}')
    answer = await client.post("/t.T/ReadStream", request, "application/connect+json")
    messages, end = answer.envelopes()
    assert answer.status == 200
    assert [json.loads(message)["text"] for message in messages] == ["a 0", "a 1", "a 2"]
    assert end == {}
    request = frame(Text(text="missing", big_number=1).SerializeToString())
    answer = await client.post("/t.T/ReadStream", request, "application/connect+proto")
    messages, end = answer.envelopes()
    assert (answer.status, len(messages)) == (200, 1)
    assert end == {"error": {"code": "not_found", "message": "no such text"}}


async def test_a_stream_of_requests_gets_one_response(client: HttpClient) -> None:
    request = b"".join([frame(b'{"text": "%d"}' % number) for number in range(3)])
    answer = await client.post("/t.T/Up", request, "application/connect+json")
    messages, end = answer.envelopes()
    assert ([json.loads(message) for message in messages], end) == ([{"text": "0 1 2"}], {})


async def test_streams_in_both_directions_need_http2(client: HttpClient) -> None:
    request = b"".join([frame(b'{"text": "%d"}' % number) for number in range(3)])
    answer = await client.post("/t.T/Both", request, "application/connect+json")
    if not client.is_http2:
        assert answer.status == 505
        return
    messages, _ = answer.envelopes()
    assert [json.loads(message)["text"] for message in messages] == ["0", "1", "2"]


async def test_grpc_needs_http2(client: HttpClient) -> None:
    answer = await client.post("/t.T/Read", frame(b""), "application/grpc", te="trailers")
    assert answer.status == (200 if client.is_http2 else 505)


@pytest.mark.parametrize("path", ["/t.T/Read", "/t.T/ReadInTask"])
async def test_a_method_without_effects_may_be_called_by_get(client: HttpClient, path: str) -> None:
    answer = await client.get(f"{path}?connect=v1&encoding=json&message=%7B%22text%22:%22a%22%7D")
    assert (answer.status, answer.json()["text"]) == (200, "aa")
    message = b64encode(Text(text="a").SerializeToString()).decode().rstrip("=")
    answer = await client.get(f"{path}?encoding=proto&base64=1&message={message}")
    assert Text.FromString(answer.body).text == "aa"
    answer = await client.get(f"{path}?encoding=json&message=%7B")
    assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")
    answer = await client.get(f"{path}?encoding=json")
    assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")


@pytest.mark.parametrize("path", ["/t.T/Write", "/t.T/Up", "/t.T/ReadStream", "/t.T/Raw"])
async def test_any_other_method_may_not(client: HttpClient, path: str) -> None:
    for verb in ("GET", "HEAD", "PUT", "DELETE"):
        answer = await client.request(verb, f"{path}?encoding=json&message=%7B%7D")
        assert (answer.status, answer.header("allow")) == (405, "POST")


async def test_the_path_that_a_handler_sees_has_no_query(serve: Serve) -> None:
    seen = []

    def look(call: UnaryCall) -> None:
        seen.append((call.path, call.metadata.get("x-sent"), "connect-timeout-ms" in call.metadata))
        call.reply(b"")

    method = UnaryMethod(look, Text.FromString, None, Text, Text)
    server = Server(unary={"/t.T/Read": method}, status_of=status_of)
    async with serve(server) as address, open_http(address) as client:
        query = "?encoding=json&message=%7B%7D"
        await client.get(f"/t.T/Read{query}", x_sent="1", connect_timeout_ms="10000")
    assert seen == [("/t.T/Read", "1", False)]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_what_a_web_form_can_send_is_refused_before_it_is_read(
    client: HttpClient, content_type: str
) -> None:
    answer = await client.post("/t.T/Write", b'{"text": "a"}', content_type)
    assert (answer.status, answer.header("accept-post")) == (
        415,
        "application/proto, application/json",
    )


async def test_methods_without_descriptors_speak_binary_only(client: HttpClient) -> None:
    answer = await client.post("/t.T/Raw", b"abc", "application/proto")
    assert (answer.status, answer.body) == (200, b"abc")
    assert (await client.post("/t.T/Raw", b"{}")).status == 415


async def test_an_unknown_method_is_unimplemented(client: HttpClient) -> None:
    answer = await client.post("/t.T/Nothing")
    assert (answer.status, answer.json()["code"]) == (404, "unimplemented")


@pytest.mark.parametrize("is_http2", PARAMETERS)
async def test_gzip_both_ways(serve: Serve, is_http2: bool) -> None:
    server = make(limits=ServerLimits(compress_bytes_min=100))
    text = "x" * 1_000
    async with serve(server) as address, open_http(address, is_http2=is_http2) as client:
        body = gzip.compress(json.dumps({"text": text}).encode())
        for path in ("/t.T/Read", "/t.T/ReadInTask"):
            answer = await client.post(path, body, content_encoding="gzip", accept_encoding="gzip")
            assert answer.header("content-encoding") == "gzip"
            assert json.loads(gzip.decompress(answer.body))["text"] == text * 2
            answer = await client.post(path, {"text": "a"}, accept_encoding="gzip")
            assert answer.header("content-encoding") is None
            answer = await client.post(path, body, content_encoding="br")
            assert (answer.status, answer.json()["code"]) == (501, "unimplemented")
            answer = await client.post(path, b"no gzip", content_encoding="gzip")
            assert answer.status == 500
        stream = frame(
            gzip.compress(b'{"text": "%s", "bigNumber": 1}' % text.encode()), compressed=True
        )
        answer = await client.post(
            "/t.T/ReadStream",
            stream,
            "application/connect+json",
            connect_content_encoding="gzip",
            connect_accept_encoding="gzip",
        )
        messages, _ = answer.envelopes()
        assert json.loads(messages[0])["text"] == text + " 0"
        assert answer.header("connect-content-encoding") == "gzip"
        assert answer.body[0] == 1


@pytest.mark.parametrize("is_http2", PARAMETERS)
@pytest.mark.parametrize("path", ["/t.T/Read", "/t.T/ReadInTask"])
async def test_a_message_beyond_the_limit_is_refused_also_once_inflated(
    serve: Serve, is_http2: bool, path: str
) -> None:
    server = make(limits=ServerLimits(message_bytes_max=100_000))
    async with serve(server) as address:
        for body, headers in (
            (b'{"text": "%s"}' % (b"x" * 300_000), {}),
            (gzip.compress(b'{"text": "%s"}' % (b"x" * 300_000)), {"content_encoding": "gzip"}),
        ):
            async with open_http(address, is_http2=is_http2) as client:
                answer = await client.post(path, body, **headers)
                assert (answer.status, answer.json()["code"]) == (429, "resource_exhausted")
        async with open_http(address, is_http2=is_http2) as client:
            large = b'{"text": "%s"}' % (b"x" * 90_000)  # more than a window
            for _ in range(5):
                assert (await client.post(path, large)).status == 200
        statistics = server.statistics()
        assert (statistics.held_bytes, statistics.calls_live) == (0, 0)


@pytest.mark.parametrize("is_http2", PARAMETERS)
async def test_a_call_ends_at_its_deadline(serve: Serve, is_http2: bool) -> None:
    kept: list[UnaryCall] = []
    method = UnaryMethod(kept.append, Text.FromString, None, Text, Text)
    server = Server(
        unary={"/t.T/Read": method},
        services=[Streams()],
        status_of=status_of,
    )
    async with serve(server) as address, open_http(address, is_http2=is_http2) as client:
        for path in ("/t.T/Read", "/t.T/Wait"):
            answer = await client.post(path, connect_timeout_ms="20")
            assert (answer.status, answer.json()["code"]) == (504, "deadline_exceeded")
            answer = await client.post(path, connect_timeout_ms="0")
            assert answer.status == 504
        answer = await client.post("/t.T/Read", connect_timeout_ms="soon")
        assert (answer.status, answer.json()["code"]) == (400, "invalid_argument")
        kept[0].reply(b"late")
        assert server.statistics().deadlines == 0


@pytest.mark.parametrize("is_http2", PARAMETERS)
async def test_a_handler_is_cancelled_when_its_client_goes(serve: Serve, is_http2: bool) -> None:
    server = make()
    async with serve(server) as address:
        async with open_http(address, is_http2=is_http2) as client, trio.open_nursery() as nursery:

            async def call() -> None:
                await client.post("/t.T/Wait")

            nursery.start_soon(call)
            while server.statistics().calls_live == 0:
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            while server.statistics().calls_live:
                await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("is_http2", PARAMETERS)
async def test_the_limit_of_live_calls_holds(serve: Serve, is_http2: bool) -> None:
    server = make(limits=ServerLimits(calls_live_max=0))
    async with serve(server) as address, open_http(address, is_http2=is_http2) as client:
        for path in ("/t.T/Read", "/t.T/ReadInTask"):
            answer = await client.post(path)
            assert (answer.status, answer.json()["message"]) == (429, "too many calls")
        answer = await client.post("/t.T/ReadStream", frame(b"{}"), "application/connect+json")
        assert answer.envelopes()[1]["error"]["code"] == "resource_exhausted"
        statistics = server.statistics()
        assert (statistics.calls_live, statistics.calls_connect) == (0, 3)


@pytest.mark.parametrize("is_http2", PARAMETERS)
async def test_a_drain_lets_calls_finish_and_cuts_the_others_with_a_status(
    serve: Serve, is_http2: bool
) -> None:
    server = make()
    answers = []
    async with serve(server) as address:
        async with (
            open_http(address, is_http2=is_http2) as busy,
            open_http(address, is_http2=is_http2) as idle,
            trio.open_nursery() as nursery,
        ):
            assert (await idle.post("/t.T/Read")).status == 200

            async def call() -> None:
                answers.append(await busy.post("/t.T/Wait"))

            nursery.start_soon(call)
            while server.statistics().calls_live == 0:
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                await server.drain(0.2)
        assert [(answer.status, answer.json()["code"]) for answer in answers] == [
            (503, "unavailable")
        ]


async def test_bytes_of_a_large_answer_come_in_order_to_a_slow_client(serve: Serve) -> None:
    def much(call: UnaryCall) -> None:
        call.reply(bytes(range(256)) * 16_384)

    server = Server(unary={"/t.T/Raw": UnaryMethod(much, bytes)}, status_of=status_of)
    async with serve(server) as address, open_http(address) as client:
        stream = client.stream
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(6, 10, 1_024)  # TCP_WINDOW_CLAMP, where there is one
        for _ in range(2):
            answer = await client.post("/t.T/Raw", b"", "application/proto")
            assert answer.body == bytes(range(256)) * 16_384


async def test_connections_are_freed_without_the_garbage_collector(serve: Serve) -> None:
    import gc  # noqa: PLC0415

    from dbos_actors.rpc.server.connection import ServerConnection  # noqa: PLC0415

    server = make()

    def living() -> int:
        return sum(isinstance(one, ServerConnection) for one in gc.get_objects())

    async with serve(server) as address:
        before = living()
        gc.disable()
        try:
            for is_http2 in (False, True):
                async with open_http(address, is_http2=is_http2) as client:
                    assert (await client.post("/t.T/ReadInTask")).status == 200
                    assert (await client.get("/")).status == 200
            with trio.fail_after(5):
                while server.statistics().connections:
                    await trio.testing.wait_all_tasks_blocked()
            assert living() == before
        finally:
            gc.enable()
