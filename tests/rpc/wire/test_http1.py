"""HTTP/1.1 without sockets: requests whole, byte by byte and with the next one attached."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.wire.http1 import Http1Connection, Http1Options
from dbos_actors.rpc.wire.http2 import (
    DataReceived,
    PingAcknowledged,
    RequestReceived,
    StreamError,
    StreamReset,
)

POST = b"POST /a/B HTTP/1.1\r\nHost: localhost:1\r\nContent-Length: 5\r\nX-One: 1\r\n\r\nhello"
CHUNKED = (
    b"POST /a/B HTTP/1.1\r\nHost: localhost:1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;extension=1\r\nllo\r\n0\r\n\r\n"
)
GET = b"GET /a/B?message=x HTTP/1.1\r\nHost: localhost:1\r\n\r\n"
OK = [(b":status", b"200"), (b"content-length", b"2")]


def take(engine: Http1Connection, *parts: bytes) -> list[Any]:
    events = []
    for part in parts:
        engine.receive(part)
        events += engine.events()
    return events


def body_of(events: list[Any]) -> bytes:
    return b"".join(event.data for event in events if type(event) is DataReceived)


def is_whole(events: list[Any]) -> bool:
    last = events[-1]
    return type(last) in {RequestReceived, DataReceived} and bool(last.end_stream)


def answer(engine: Http1Connection, stream_id: int, body: bytes = b"ok") -> bytes:
    head = [(b":status", b"200"), (b"content-length", b"%d" % len(body))]
    engine.send_response(stream_id, head, end_stream=not body)
    if body:
        engine.send_data(stream_id, body, end_stream=True)
    return engine.output(1 << 20)


def parsed(output: bytes, method: str = "POST") -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of a response, as h11's client reads it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(output)
    client.receive_data(b"")
    body = b""
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            status, headers = event.status_code, dict(event.headers)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, headers, body


@pytest.mark.parametrize("request_", [POST, CHUNKED])
@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_a_request_is_the_same_in_any_slices(request_: bytes, size: int) -> None:
    engine = Http1Connection(Http1Options(), is_tls=True)
    slices = [request_[start : start + size] for start in range(0, len(request_), size)]
    events = take(engine, *slices)
    first = events[0]
    assert type(first) is RequestReceived
    assert not first.end_stream
    assert first.headers[:4] == (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", b"/a/B"),
        (b":authority", b"localhost:1"),
    )
    assert body_of(events) == b"hello"
    assert is_whole(events)
    assert {event.stream_id for event in events} == {1}


def test_a_connection_serves_one_request_after_the_other() -> None:
    engine = Http1Connection(Http1Options())
    for stream_id in (1, 3, 5):
        events = take(engine, POST if stream_id != 3 else GET)
        assert is_whole(events)
        assert events[0].stream_id == stream_id
        status, headers, body = parsed(answer(engine, stream_id))
        assert (status, body) == (200, b"ok")
        assert b"connection" not in headers
        assert not engine.is_over


@pytest.mark.parametrize("behind", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"x", b"\r\n"])
@pytest.mark.parametrize("at_once", [True, False])
def test_bytes_behind_a_request_are_dropped_and_the_connection_ends_behind_its_answer(
    behind: bytes, at_once: bool
) -> None:
    """They could be a second request that somebody smuggled past a proxy."""
    engine = Http1Connection(Http1Options())
    events = take(engine, POST + behind) if at_once else take(engine, POST, behind)
    assert [event.stream_id for event in events if type(event) is RequestReceived] == [1]
    _, headers, body = parsed(answer(engine, 1))
    assert (headers[b"connection"], body) == (b"close", b"ok")
    assert engine.is_over
    assert take(engine, GET) == []


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02", 400),  # TLS
        (b"\0", 400),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),  # bare LF
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),  # a space before the colon
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 505),
        (b"GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        (
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            ),
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 501),
        (
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            ),
            501,
        ),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 16_400 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_answered_and_ends_the_connection(
    request_: bytes, status: int
) -> None:
    for size in (1, len(request_)):
        engine = Http1Connection(Http1Options())
        slices = [request_[start : start + size] for start in range(0, len(request_), size)]
        events = take(engine, *slices)
        assert not [event for event in events if type(event) is RequestReceived]
        found, headers, _ = parsed(engine.output(1 << 20))
        assert found == status
        assert headers[b"connection"] == b"close"
        assert engine.is_over


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"2\r\nheXX", b"-1\r\n", b"1\nx\r\n", b"ffffffffffffffffffffffff\r\n"]
)
def test_broken_chunks_end_the_call_and_the_connection(body: bytes) -> None:
    engine = Http1Connection(Http1Options())
    head = CHUNKED[: CHUNKED.index(b"2\r\n")]
    events = take(engine, head, body)
    assert [type(event) for event in events if type(event) is not DataReceived] == [
        RequestReceived,
        StreamReset,
    ]
    assert parsed(engine.output(1 << 20))[0] == 400
    assert engine.is_over
    with pytest.raises(StreamError):
        engine.send_response(1, OK)


def test_many_tiny_chunks_are_refused_and_many_of_some_size_are_not() -> None:
    head = CHUNKED[: CHUNKED.index(b"2\r\n")]
    engine = Http1Connection(Http1Options())
    take(engine, head, b"1\r\nx\r\n" * 1_000)
    assert not engine.has_output
    take(engine, b"1\r\nx\r\n")
    assert parsed(engine.output(1 << 20))[0] == 400
    engine = Http1Connection(Http1Options())
    take(engine, head)
    for _ in range(2_000):
        take(engine, b"64\r\n" + b"x" * 100 + b"\r\n")
    assert not engine.has_output


def test_an_answer_without_a_length_comes_in_chunks() -> None:
    engine = Http1Connection(Http1Options())
    take(engine, POST)
    engine.send_response(1, [(b":status", b"200"), (b"content-type", b"a/b")])
    engine.send_data(1, b"one")
    output = engine.output(1 << 20)
    assert not engine.is_over
    engine.send_data(1, b"two", end_stream=True)
    status, headers, body = parsed(output + engine.output(1 << 20))
    assert (status, headers[b"transfer-encoding"], body) == (200, b"chunked", b"onetwo")
    assert take(engine, GET)[0].stream_id == 3


def test_a_client_of_http_1_0_gets_an_answer_that_ends_with_the_connection() -> None:
    engine = Http1Connection(Http1Options())
    take(engine, b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    engine.send_response(1, [(b":status", b"200")])
    engine.send_data(1, b"one", end_stream=True)
    output = engine.output(1 << 20)
    assert output.endswith(b"\r\n\r\none")
    assert engine.is_over


def test_an_answer_before_the_end_of_its_request_ends_the_connection() -> None:
    engine = Http1Connection(Http1Options())
    take(engine, POST[:-3])
    _, headers, _ = parsed(answer(engine, 1))
    assert headers[b"connection"] == b"close"
    assert engine.is_over


def test_a_client_that_waits_is_told_to_go_on_unless_it_is_refused() -> None:
    request_ = POST[:-5].replace(b"X-One: 1", b"Expect: 100-continue")
    engine = Http1Connection(Http1Options())
    take(engine, request_)
    assert engine.output(1 << 20) == b"HTTP/1.1 100 \r\n\r\n"
    assert engine.output(1 << 20) == b""
    assert is_whole(take(engine, b"hello"))
    engine = Http1Connection(Http1Options())
    take(engine, request_)
    assert parsed(answer(engine, 1))[0] == 200
    assert engine.is_over


def test_the_answer_to_a_head_request_has_a_length_and_no_body() -> None:
    engine = Http1Connection(Http1Options())
    take(engine, GET.replace(b"GET", b"HEAD"))
    engine.send_response(1, OK, end_stream=True)
    output = engine.output(1 << 20)
    assert parsed(output, "HEAD")[1][b"content-length"] == b"2"
    assert output.endswith(b"\r\n\r\n")
    assert take(engine, GET)[0].stream_id == 3


def test_a_body_is_read_no_further_than_its_window_unless_it_is_used() -> None:
    engine = Http1Connection(Http1Options(window_bytes=100))
    take(engine, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", b"x" * 99)
    assert not engine.is_full
    assert engine.is_awaiting_body
    take(engine, b"x")
    assert engine.is_full
    assert not engine.is_awaiting_body
    engine.acknowledge(1, 1)
    assert not engine.is_full


def test_a_shutdown_ends_an_idle_connection_at_once_and_a_busy_one_behind_its_answer() -> None:
    idle, busy = Http1Connection(Http1Options()), Http1Connection(Http1Options())
    take(busy, POST)
    for engine in (idle, busy):
        engine.announce_shutdown()
        engine.ping(b"12345678")
        assert [type(event) for event in engine.events()] == [PingAcknowledged]
    assert idle.is_over
    assert not busy.is_over
    assert parsed(answer(busy, 1))[1][b"connection"] == b"close"
    assert busy.is_over


def test_a_reset_cuts_the_answer_and_the_connection() -> None:
    engine = Http1Connection(Http1Options())
    take(engine, POST)
    engine.send_response(1, [(b":status", b"200")])
    engine.send_data(1, b"part")
    engine.reset(1, 8)
    assert engine.is_over
    assert engine.output(1 << 20) == b""


def test_a_late_send_raises_as_that_of_http2_does() -> None:
    engine = Http1Connection(Http1Options())
    take(engine, POST)
    with pytest.raises(StreamError):
        engine.send_data(1, b"no head yet")
    with pytest.raises(StreamError):
        engine.send_trailers(1, [])
    with pytest.raises(StreamError):
        engine.send_response(3, OK)
    answer(engine, 1)
    with pytest.raises(StreamError):
        engine.send_response(1, OK)


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(0, 200))
def test_whatever_comes_the_engine_never_raises_and_its_output_is_http(
    parts: list[bytes], cut: int
) -> None:
    engine = Http1Connection(Http1Options())
    seen: list[Any] = []
    for part in [POST[:cut], *parts]:
        engine.receive(part)
        seen += engine.events()
        output = engine.output(1 << 20)
        assert output == b"" or output.startswith(b"HTTP/1.1 ")
    assert sum(type(event) is RequestReceived for event in seen) <= 1
