"""The client's protocol from bytes to bytes, without sockets or time."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from grpclib.const import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.client.connection import QUANTUM_BYTES, ClientConnection
from dbos_actors.rpc.client.options import ChannelOptions
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode, Http2Options, Setting
from tests.support.raw_server import HEADERS, OK, RawServer

NOW_S = 100.0


class Client:
    """A `ClientConnection` joined to a `RawServer` by memory; also the owner of both its calls
    and itself.
    """

    def __init__(
        self, server: RawServer | None = None, *, greet: bool = True, **options: Any
    ) -> None:
        self.options = ChannelOptions(**options)
        self.connection = ClientConnection(self, self.options, now_s=NOW_S)
        self.server = server or RawServer()
        self.over: list[ClientCall] = []
        self.refused: list[ClientCall] = []
        self.flushes_due = 0
        if greet:
            self.run()

    def call_over(self, call: ClientCall) -> None:
        self.over.append(call)

    def call_refused(self, call: ClientCall) -> None:
        self.refused.append(call)

    def has_output(self) -> None:
        self.flushes_due += 1

    def may_start(self) -> None:
        pass

    def make_call(
        self,
        *bodies: bytes,
        end: bool = True,
        streaming: bool = False,
        deadline_s: float | None = None,
    ) -> ClientCall:
        call = ClientCall(
            self,
            b"/test.Test/Echo",
            [],
            server_streaming=streaming,
            deadline_s=deadline_s,
            wait_for_ready=False,
            limit=self.options.message_bytes_max,
        )
        for index, body in enumerate(bodies):
            self.queue(call, body, end=end and index == len(bodies) - 1)
        return call

    def queue(self, call: ClientCall, body: bytes, *, end: bool = False) -> None:
        call.queue(frame(body), end=end, replay_bytes_max=self.options.replay_bytes_max)

    def start(self, *bodies: bytes, **options: Any) -> ClientCall:
        """Start a call, and let the server see it."""
        call = self.make_call(*(bodies or (b"",)), **options)
        self.connection.start(call, NOW_S)
        self.run()
        return call

    def output(self) -> bytes:
        parts = []
        while True:
            data = self.connection.output(1 << 16)
            parts.append(data)
            if data:
                self.connection.sent()
            if len(data) < 1 << 16 and not self.connection.refill():
                return b"".join(parts)

    def to_server(self) -> bool:
        if data := self.output():
            self.server.receive(data)
        return bool(data)

    def to_client(self, *, size: int | None = None) -> bool:
        data = self.server.output()
        for start in range(0, len(data), size or len(data) or 1):
            self.connection.receive(data[start : start + (size or len(data))], NOW_S)
        return bool(data)

    def run(self, *, size: int | None = None) -> None:
        """Carry bytes both ways until none move."""
        while self.to_server() | self.to_client(size=size):
            pass


def messages(call: ClientCall) -> Iterator[bytes]:
    while (body := call.take()) is not None:
        yield body


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


# --------------------------------------------------------------- end by us


@pytest.mark.parametrize("headers_came", [False, True])
def test_a_call_that_is_cancelled_resets_its_stream(headers_came: bool) -> None:
    client = Client()
    call = client.start(streaming=True)
    if headers_came:
        client.server.headers(call.stream_id)
        client.server.data(call.stream_id, frame(b"unread"))
        client.run()
    call.cancel()
    assert call.status is Status.CANCELLED
    assert call.take() is None
    assert client.flushes_due
    client.run()
    assert client.server.requests[call.stream_id].reset == int(ErrorCode.CANCEL)
    assert client.connection.live == 0
    call.cancel()
    call.expire()
    assert client.over == [call]


def test_a_call_may_be_cancelled_before_it_is_sent() -> None:
    client = Client()
    call = client.make_call(b"x")
    client.connection.start(call, NOW_S)
    call.cancel()
    client.run()
    assert client.server.requests == {}
    assert client.connection.live == 0


def test_every_order_of_deadline_answer_and_reset_leaves_one_status() -> None:
    for seed in range(200):
        client = Client()
        call = client.start()
        client.server.answer(call.stream_id, b"x")
        data = client.server.output()
        steps: list[Callable[[], None]] = [
            call.expire,
            call.cancel,
            partial(client.connection.receive, data[:20], NOW_S),
        ]
        random.Random(seed).shuffle(steps)
        for step in steps:
            step()
        client.connection.receive(data[20:], NOW_S)
        client.run()
        assert client.over == [call], seed
        assert client.connection.live == 0, seed


# ------------------------------------------------------------- flow control


def test_unread_responses_are_held_back_by_the_window() -> None:
    client = Client(http2=Http2Options(stream_window_bytes=100_000))
    call = client.start(streaming=True)
    body = frame(bytes(1_000))
    client.server.headers(call.stream_id)
    for _ in range(1_000):
        client.server.data(call.stream_id, body)
    client.run()
    assert call.reader.buffered_bytes <= 100_000
    taken = 0
    for _ in range(100):
        taken += len([*messages(call)])
        client.run()
        assert call.reader.buffered_bytes <= 100_000
    assert taken == 1_000


def test_a_message_larger_than_the_window_arrives_even_after_others_unread() -> None:
    client = Client(http2=Http2Options(stream_window_bytes=65_535))
    call = client.start(streaming=True)
    client.server.headers(call.stream_id)
    for body in (bytes(10_000), bytes(1_000_000), bytes(70_000)):
        client.server.data(call.stream_id, frame(body))
    client.server.trailers(call.stream_id)
    sizes = []
    for _ in range(100):
        client.run()
        sizes += [len(body) for body in messages(call)]
    assert sizes == [10_000, 1_000_000, 70_000]
    assert call.status is Status.OK


@pytest.mark.parametrize("seed", range(60))
def test_messages_of_any_sizes_arrive_however_they_are_taken(seed: int) -> None:
    rng = random.Random(seed)
    window = 65_535
    client = Client(http2=Http2Options(stream_window_bytes=window, concurrent_streams_max=1))
    call = client.start(streaming=True)
    near = [window // 4, window // 2, window, 2 * window]
    sizes = [
        max(0, rng.choice([rng.randrange(50), *near]) + rng.randrange(-9, 9)) for _ in range(60)
    ]
    client.server.headers(call.stream_id)
    for size in sizes:
        client.server.data(call.stream_id, frame(bytes(size)))
    client.server.trailers(call.stream_id)
    taken: list[int] = []
    while len(taken) < len(sizes):
        client.run()
        assert call.reader.buffered_bytes <= 2 * window + max(sizes)
        before = len(taken)
        for _ in range(rng.randrange(1, 4)):
            body = call.take()
            if body is not None:
                taken.append(len(body))
        assert len(taken) > before, "deadlock"
    assert taken == sizes
    assert call.status is Status.OK


def test_what_cancelled_calls_leave_unread_does_not_use_up_the_connection() -> None:
    options = Http2Options(stream_window_bytes=65_535, concurrent_streams_max=1)
    client = Client(http2=options)  # a connection window of one stream's
    for _ in range(300):
        call = client.start(streaming=True)
        client.server.headers(call.stream_id)
        client.server.data(call.stream_id, frame(bytes(20_000)))
        client.to_client()
        call.cancel()
        client.run()
    call = client.start()
    client.server.answer(call.stream_id, bytes(1_000_000))
    client.run()
    assert call.status is Status.OK
    assert len(call.take() or b"") == 1_000_000


def test_what_comes_for_cancelled_calls_does_not_use_up_the_connection() -> None:
    options = Http2Options(stream_window_bytes=65_535, concurrent_streams_max=1)
    client = Client(http2=options)
    for _ in range(300):
        call = client.start(streaming=True)
        client.server.headers(call.stream_id)
        client.server.data(call.stream_id, frame(bytes(20_000)))
        call.cancel()
        client.to_client()  # sent before the server knew
        client.run()
    call = client.start()
    client.server.answer(call.stream_id, bytes(1_000_000))
    client.run()
    assert call.status is Status.OK


def test_a_sender_waits_for_its_server() -> None:
    client = Client(RawServer(acknowledge=False))
    call = client.start(bytes(200_000), end=False, streaming=True)
    assert not call.can_send
    woken: list[None] = []
    call.on_change = lambda: woken.append(None)
    assert client.server.requests[call.stream_id].body == frame(bytes(200_000))[:65_535]
    client.server.engine.acknowledge(65_535, call.stream_id)
    client.run()
    client.server.engine.acknowledge(65_535, call.stream_id)
    client.run()
    assert call.can_send
    assert woken
    client.queue(call, b"x", end=True)
    client.server.engine.acknowledge(65_535, call.stream_id)
    client.run()
    assert client.server.requests[call.stream_id].body == frame(bytes(200_000)) + frame(b"x")
    assert client.server.requests[call.stream_id].ended


def test_a_small_request_does_not_wait_behind_a_large_one() -> None:
    server = RawServer(Http2Options(stream_window_bytes=20_000_000))
    client = Client(server)
    large = client.make_call(bytes(10_000_000))
    client.connection.start(large, NOW_S)
    first = client.connection.output(1 << 16)
    server.receive(first)
    sent = len(first)
    small = client.make_call(b"x")
    client.connection.start(small, NOW_S)
    while small.stream_id not in server.requests or not server.requests[small.stream_id].ended:
        data = client.connection.output(1 << 16)
        sent += len(data)
        server.receive(data)
        if len(data) < 1 << 16:
            client.connection.refill()
    assert sent < 4 * QUANTUM_BYTES
    client.run()
    assert server.requests[large.stream_id].ended


def test_large_requests_share_the_connection() -> None:
    server = RawServer(Http2Options(stream_window_bytes=20_000_000))
    client = Client(server)
    calls = [client.make_call(bytes(1_000_000)) for _ in range(4)]
    for call in calls:
        client.connection.start(call, NOW_S)
    received = 0
    while received < 2_000_000:
        data = client.connection.output(1 << 16)
        received += len(data)
        server.receive(data)
        if len(data) < 1 << 16:
            client.connection.refill()
    sizes = [len(server.requests[call.stream_id].body) for call in calls]
    assert max(sizes) - min(sizes) <= 2 * QUANTUM_BYTES


# -------------------------------------------------------- refusal and goaway


def test_a_refused_call_may_be_sent_again_and_is_the_same() -> None:
    client = Client()
    call = client.start(b"a", end=False, streaming=True)
    client.queue(call, b"b", end=True)
    client.run()
    client.server.reset(call.stream_id, int(ErrorCode.REFUSED_STREAM))
    client.run()
    assert client.refused == [call]
    assert not call.over
    client.connection.start(call, NOW_S)
    client.run()
    request = client.server.requests[call.stream_id]
    assert (request.body, request.ended) == (frame(b"a") + frame(b"b"), True)
    assert call.stream_id == 3


def test_a_call_whose_messages_are_too_many_to_keep_is_not_sent_again() -> None:
    client = Client(replay_bytes_max=1_000)
    call = client.start(bytes(5_000), end=False, streaming=True)  # the first is always kept
    assert call.outbox is not None
    client.queue(call, b"b")
    client.run()
    client.server.reset(call.stream_id, int(ErrorCode.REFUSED_STREAM))
    client.run()
    assert client.refused == []
    assert call.status is Status.UNAVAILABLE


def test_a_call_that_has_begun_is_not_sent_again() -> None:
    client = Client()
    call = client.start(streaming=True)
    client.server.headers(call.stream_id)
    client.run()
    client.server.reset(call.stream_id, int(ErrorCode.REFUSED_STREAM))
    client.run()
    assert client.refused == []
    assert call.status is Status.UNAVAILABLE


def test_after_goaway_earlier_calls_finish_and_later_ones_are_refused() -> None:
    client = Client()
    first, second, third = (client.start() for _ in range(3))
    client.server.goaway(3, debug=b"bye")
    client.run()
    assert {*client.refused} == {third}
    assert not client.connection.can_start
    assert not client.connection.closed
    client.server.answer(first.stream_id, b"1")
    client.server.answer(second.stream_id, b"2")
    client.run()
    assert first.status is second.status is Status.OK
    assert client.connection.closed
    assert client.connection.reason == "the server is going away (bye)"


def test_a_goaway_without_calls_closes_the_connection() -> None:
    client = Client()
    client.server.goaway(0)
    client.run()
    assert client.connection.closed


def test_a_complaint_about_pings_is_noticed() -> None:
    client = Client()
    client.server.goaway(0, code=int(ErrorCode.ENHANCE_YOUR_CALM), debug=b"too_many_pings")
    client.run()
    assert client.connection.too_many_pings


def test_the_servers_limit_of_streams_holds_until_they_are_closed() -> None:
    client = Client(RawServer(Http2Options(concurrent_streams_max=2)))
    first, _ = client.start(), client.start()
    assert not client.connection.can_start
    first.cancel()
    assert not client.connection.can_start  # the server does not know yet
    client.run()
    assert client.connection.can_start
    client.server.change_settings({Setting.MAX_CONCURRENT_STREAMS: 1})
    client.run()
    assert not client.connection.can_start
    client.server.change_settings({Setting.MAX_CONCURRENT_STREAMS: 0})
    client.run()
    assert not client.connection.can_start


def test_a_lost_connection_ends_its_calls_but_keeps_what_has_come() -> None:
    client = Client()
    call = client.start(streaming=True)
    client.server.headers(call.stream_id)
    client.server.data(call.stream_id, frame(b"came"))
    client.run()
    client.connection.lost("gone")
    assert [*messages(call)] == [b"came"]
    assert (call.status, call.message) == (Status.UNAVAILABLE, "gone")
    assert not client.connection.can_start
    client.connection.lost("again")
    assert client.over == [call]


def test_of_a_lost_connection_calls_that_were_not_sent_are_not_lost() -> None:
    client = Client()
    sent = client.start()
    unsent = client.make_call(b"x")
    client.connection.start(unsent, NOW_S)
    ended = client.make_call(b"x")
    client.connection.start(ended, NOW_S)
    ended.cancel()
    client.connection.lost("gone")
    assert sent.status is Status.UNAVAILABLE
    assert client.refused == [unsent]
    assert unsent.status is None
    assert unsent.connection is None


def test_metadata_beyond_the_servers_limit_fails_its_call_not_the_connection() -> None:
    client = Client(RawServer(Http2Options(header_list_bytes_max=2_000)))
    call = client.make_call(b"x")
    call.fields.append((b"a", b"x" * 2_000))
    client.connection.start(call, NOW_S)
    assert call.status is Status.RESOURCE_EXHAUSTED
    other = client.start()
    client.server.answer(other.stream_id, b"fine")
    client.run()
    assert other.status is Status.OK


def test_a_server_that_speaks_something_else_is_given_up() -> None:
    client = Client(greet=False)
    client.connection.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n", NOW_S)
    client.output()
    assert client.connection.closed
    assert client.connection.reason


def test_keepalive_pings_a_silent_server_that_is_asked_and_gives_it_up() -> None:
    client = Client(keepalive_s=10.0, keepalive_answer_s_max=3.0)
    client.connection.tick(NOW_S + 100)
    assert client.server.seen.pings == []  # nobody is waiting for it
    call = client.start()
    client.connection.tick(NOW_S + 109)
    client.to_server()
    assert client.server.seen.pings == []
    client.connection.tick(NOW_S + 111)
    client.to_server()
    assert len(client.server.seen.pings) == 1
    client.connection.receive(client.server.output(), NOW_S + 113)
    client.connection.tick(NOW_S + 115)
    client.connection.tick(NOW_S + 124)
    client.to_server()
    assert len(client.server.seen.pings) == 2
    client.connection.tick(NOW_S + 126)
    assert not call.over
    client.connection.tick(NOW_S + 127)
    assert (call.status, call.message) == (Status.UNAVAILABLE, "the server does not answer pings")


# ------------------------------------------------------------------ hostile


def scenario(client: Client) -> bytes:
    """A server's bytes of several calls, and what it sends when they are over."""
    calls = [client.start(b"q", streaming=bool(n % 2)) for n in range(6)]
    server = client.server
    server.answer(calls[0].stream_id, b"one")
    server.headers(calls[1].stream_id)
    server.data(calls[1].stream_id, frame(b"x" * 500) + frame(b"y"))
    server.reset(calls[2].stream_id, 7)
    server.only_headers(calls[3].stream_id, [*HEADERS, (b"grpc-status", b"3")])
    server.trailers(calls[1].stream_id, [*OK, (b"x-bin", b"AAEC")])
    server.engine.ping(b"abcdefgh")
    server.goaway(calls[4].stream_id)
    server.answer(calls[4].stream_id, b"z" * 300)
    return server.output()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_of_a_server_raise_or_leave_a_call_without_an_end(data: st.DataObject) -> None:
    client = Client()
    raw = bytearray(scenario(client))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip":
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 20))]
                raw = raw or bytearray(1)
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=20))
            case "repeat":
                raw[at:at] = raw[at : at + 40]
    size = data.draw(st.sampled_from([1, 3, 50, 10_000]))
    for start in range(0, len(raw), size):
        client.connection.receive(bytes(raw[start : start + size]), NOW_S)
        client.output()
    client.connection.lost("end")
    client.output()
    assert client.connection.live == 0
    assert len(client.over) == len({*client.over})
    ended = {*client.over, *client.refused}
    assert len(ended) == 6
    for call in client.over:
        list(messages(call))
        call.end()
        assert call.status is not None


def test_a_connection_whose_window_half_read_downloads_have_used_up_is_replaced() -> None:
    """The engine gives nothing back for the rest of a DATA frame that a reset has cut."""
    options = Http2Options(concurrent_streams_max=20, reset_burst=10**9)
    client = Client(http2=options)
    running = client.start(b"x")
    downloads = 0
    while not client.connection.draining:
        assert downloads < 800
        downloads += 1
        call = client.start(b"", streaming=True)
        client.server.headers(call.stream_id)
        client.server.data(call.stream_id, frame(bytes(20_000)))
        data = client.server.output()
        client.connection.receive(data[:1_000], NOW_S)
        call.cancel()
        client.output()
        client.connection.receive(data[1_000:], NOW_S)
        client.run()
    assert client.server.engine.remote_window_bytes(0) > 20 * 65_535 // 5
    assert not client.connection.can_start
    assert not client.connection.closed
    client.server.answer(running.stream_id, b"done")
    client.run()
    assert list(messages(running)) == [b"done"]
    assert client.connection.closed
