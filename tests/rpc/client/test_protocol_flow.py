"""Cancelled calls, deadlines and flow control of the client's protocol, without sockets."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
from grpclib.const import Status

from dbos_actors.rpc.client.connection import QUANTUM_BYTES
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode, Http2Options
from tests.rpc.client.protocol_client import NOW_S, Client, messages
from tests.support.raw_server import RawServer

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
