"""Requests and responses as the client's protocol writes and reads them: bytes, no sockets."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import pytest
from grpclib.const import Status

from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode
from tests.rpc.client.protocol_client import NOW_S, Client, messages
from tests.support.raw_server import HEADERS, OK, RawServer

# ------------------------------------------------------------------ requests


def test_a_request_is_what_the_specification_says() -> None:
    client = Client()
    call = client.start(b"hello", deadline_s=NOW_S + 1.5)
    request = client.server.requests[call.stream_id]
    assert request.headers == {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/test.Test/Echo",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"user-agent": b"grpc-python-trio/1",
        b"grpc-accept-encoding": b"identity,gzip",
        b"grpc-timeout": b"1500000u",
    }
    assert request.body == frame(b"hello")
    assert request.ended


def test_messages_go_out_in_order_and_the_end_with_the_last() -> None:
    client = Client()
    call = client.start(b"a", end=False, streaming=True)
    request = client.server.requests[call.stream_id]
    assert not request.ended
    client.queue(call, b"b")
    client.queue(call, b"c", end=True)
    client.run()
    assert request.body == frame(b"a") + frame(b"b") + frame(b"c")
    assert request.ended


def test_a_request_may_end_without_a_message() -> None:
    client = Client()
    call = client.make_call()
    call.queue(b"", end=True, replay_bytes_max=0)
    client.connection.start(call, NOW_S)
    client.run()
    request = client.server.requests[call.stream_id]
    assert (request.body, request.ended) == (b"", True)


def test_an_end_of_its_own_ends_a_request_that_has_begun() -> None:
    client = Client()
    call = client.start(b"a", end=False)
    call.queue(b"", end=True, replay_bytes_max=1000)
    client.run()
    request = client.server.requests[call.stream_id]
    assert (request.body, request.ended) == (frame(b"a"), True)


def test_no_call_is_started_before_the_server_has_greeted() -> None:
    client = Client(greet=False)
    assert not client.connection.can_start
    client.run()
    assert client.connection.can_start


# ----------------------------------------------------------------- responses


@pytest.mark.parametrize("size", [1, 2, 7, None])
def test_responses_are_the_same_however_their_bytes_are_cut_or_glued(size: int | None) -> None:
    client = Client()
    unary = client.start(b"q")
    streaming = client.start(b"q", streaming=True)
    failed = client.start(b"q")
    client.server.answer(unary.stream_id, b"one")
    client.server.answer(streaming.stream_id, b"two", b"", b"x" * 300)
    client.server.only_headers(
        failed.stream_id, [*HEADERS, (b"grpc-status", b"5"), (b"grpc-message", b"no%20such")]
    )
    client.run(size=size)
    assert [*messages(unary)] == [b"one"]
    assert [*messages(streaming)] == [b"two", b"", b"x" * 300]
    assert unary.status is streaming.status is Status.OK
    assert (failed.status, failed.message) == (Status.NOT_FOUND, "no such")
    assert client.connection.live == 0


def test_headers_and_trailers_of_a_response_are_kept() -> None:
    client = Client()
    call = client.start()
    client.server.headers(call.stream_id, (b"a", b"1"))
    client.server.data(call.stream_id, frame(b""))
    client.server.trailers(call.stream_id, [*OK, (b"b", b"2")])
    client.run()
    assert (b"a", b"1") in (call.headers or ())
    assert (b"b", b"2") in call.trailers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b":status", b"400")], Status.INTERNAL),
        ([(b":status", b"401")], Status.UNAUTHENTICATED),
        ([(b":status", b"403")], Status.PERMISSION_DENIED),
        ([(b":status", b"404")], Status.UNIMPLEMENTED),
        ([(b":status", b"429")], Status.UNAVAILABLE),
        ([(b":status", b"502")], Status.UNAVAILABLE),
        ([(b":status", b"500")], Status.UNKNOWN),
        ([(b":status", b"415"), (b"grpc-status", b"13")], Status.INTERNAL),
        ([(b":status", b"200")], Status.UNKNOWN),
        ([(b":status", b"200"), (b"content-type", b"text/html")], Status.UNKNOWN),
        (HEADERS, Status.UNKNOWN),
        ([*HEADERS, (b"grpc-status", b"99")], Status.UNKNOWN),
        ([*HEADERS, (b"grpc-status", b"x")], Status.UNKNOWN),
        ([*HEADERS, (b"grpc-status", b"0")], Status.UNIMPLEMENTED),  # and no message
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_a_response_of_headers_alone_has_a_status(
    headers: list[tuple[bytes, bytes]], status: Status, ended: bool
) -> None:
    client = Client()
    call = client.start()
    if ended:
        client.server.only_headers(call.stream_id, headers)
    elif dict(headers).get(b":status") == b"200" and b"content-type" in dict(headers):
        return  # the status is then the trailers'
    else:
        client.server.engine.send_response(call.stream_id, headers)
        if b"grpc-status" in dict(headers):
            return
    client.run()
    assert call.status is status
    client.run()
    assert client.connection.live == 0


def _two(server: RawServer, stream_id: int) -> None:
    server.answer(stream_id, b"a", b"b")


def _none(server: RawServer, stream_id: int) -> None:
    server.answer(stream_id)


def _cut(server: RawServer, stream_id: int) -> None:
    server.headers(stream_id)
    server.data(stream_id, frame(b"abc")[:-1])
    server.trailers(stream_id)


def _cut_prefix(server: RawServer, stream_id: int) -> None:
    server.headers(stream_id)
    server.data(stream_id, frame(b"abc")[:3])
    server.trailers(stream_id)


def _bad_flag(server: RawServer, stream_id: int) -> None:
    server.headers(stream_id)
    server.data(stream_id, b"\x07" + frame(b"abc")[1:])
    server.trailers(stream_id)


def _too_large(server: RawServer, stream_id: int) -> None:
    server.headers(stream_id)
    server.data(stream_id, frame(bytes(1001)))


def _no_trailers(server: RawServer, stream_id: int) -> None:
    server.headers(stream_id)
    server.data(stream_id, frame(b"abc"), end=True)


def _zipped(body: bytes, encoding: bytes | None) -> Callable[[RawServer, int], None]:
    def answer(server: RawServer, stream_id: int) -> None:
        server.headers(stream_id, *([] if encoding is None else [(b"grpc-encoding", encoding)]))
        server.data(stream_id, frame(body, compressed=True))
        server.trailers(stream_id)

    return answer


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "streaming_status"),
    [
        (_two, Status.UNIMPLEMENTED, Status.OK),
        (_none, Status.UNIMPLEMENTED, Status.OK),
        (_cut, Status.INTERNAL, Status.INTERNAL),
        (_cut_prefix, Status.INTERNAL, Status.INTERNAL),
        (_bad_flag, Status.INTERNAL, Status.INTERNAL),
        (_too_large, Status.RESOURCE_EXHAUSTED, Status.RESOURCE_EXHAUSTED),
        (_no_trailers, Status.INTERNAL, Status.INTERNAL),
        (_zipped(gzip.compress(b"abc"), b"gzip"), Status.OK, Status.OK),
        (_zipped(gzip.compress(b"abc"), None), Status.INTERNAL, Status.INTERNAL),
        (_zipped(gzip.compress(b"abc"), b"identity"), Status.INTERNAL, Status.INTERNAL),
        (_zipped(gzip.compress(b"abc"), b"br"), Status.INTERNAL, Status.INTERNAL),
        (_zipped(b"abc", b"gzip"), Status.INTERNAL, Status.INTERNAL),
        (
            _zipped(gzip.compress(bytes(1001)), b"gzip"),
            Status.RESOURCE_EXHAUSTED,
            Status.RESOURCE_EXHAUSTED,
        ),
    ],
)
@pytest.mark.parametrize("size", [1, None])
def test_a_response_that_is_wrong_fails_its_call(
    answer: Callable[[RawServer, int], None],
    status: Status,
    streaming_status: Status,
    streaming: bool,
    size: int | None,
) -> None:
    client = Client(message_bytes_max=1000)
    call = client.start(streaming=streaming)
    answer(client.server, call.stream_id)
    client.run(size=size)
    list(messages(call))
    call.end()
    assert call.status is (streaming_status if streaming else status), call.message
    assert list(messages(call)) == []
    client.run()
    other = client.start()
    client.server.answer(other.stream_id, b"fine")
    client.run()
    assert [*messages(other)] == [b"fine"]
    assert client.connection.live == 0


@pytest.mark.parametrize("code", [*range(14), 999])
def test_a_reset_has_the_status_that_the_specification_gives_it(code: int) -> None:
    client = Client()
    call = client.start()
    client.server.headers(call.stream_id)
    client.run()
    client.server.reset(call.stream_id, code)
    client.run()
    expected = {
        7: Status.UNAVAILABLE,
        8: Status.CANCELLED,
        11: Status.RESOURCE_EXHAUSTED,
        12: Status.PERMISSION_DENIED,
    }
    assert call.status is expected.get(code, Status.INTERNAL)
    assert client.connection.live == 0


def test_a_reset_without_error_after_the_status_changes_nothing() -> None:
    client = Client()
    call = client.start(b"x", end=False)
    client.server.answer(call.stream_id, b"early")
    client.to_client()
    client.server.reset(call.stream_id, int(ErrorCode.NO_ERROR))
    client.run()
    assert call.status is Status.OK
    assert [*messages(call)] == [b"early"]
    assert client.connection.live == 0


def test_the_server_is_told_when_its_answer_makes_the_rest_of_the_request_useless() -> None:
    client = Client()
    for _ in range(100):
        call = client.start(bytes(300_000))
        client.server.only_headers(call.stream_id, [*HEADERS, (b"grpc-status", b"12")])
        client.run()
        assert call.status is Status.UNIMPLEMENTED
        assert client.connection.live == 0


def test_a_call_that_is_answered_before_its_request_has_ended_leaves_no_stream() -> None:
    client = Client()
    call = client.start(b"x", end=False, streaming=True)
    client.server.answer(call.stream_id, b"early")
    client.run()
    assert [*messages(call)] == [b"early"]
    assert call.status is Status.OK
    assert client.server.requests[call.stream_id].reset == int(ErrorCode.CANCEL)
    assert client.connection.live == 0
