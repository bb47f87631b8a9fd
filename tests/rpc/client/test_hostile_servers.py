"""Servers that attack their clients: every call ends, and what is held is bounded."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from dbos_actors.rpc.client.channel import Channel
from dbos_actors.rpc.client.outcomes import DEBUG_BYTES_MAX
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode, Http2Options
from tests.rpc.client.protocol_client import Client, messages
from tests.rpc.client.scripted_network import PATH, End, Network, Plan, call
from tests.support.http2_frames import (
    ALTSVC,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    http2_frame,
)

MIB = 1024 * 1024
READ_BYTES = 256 * 1024

STATUS_200 = b"\x88"
STATUS_100 = b"\x08\x03100"


def literal(name: bytes, value: bytes) -> bytes:
    """A header field in HPACK, neither indexed nor compressed."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, size = len(text) - 127, b"\x7f"
    while rest >= 128:
        size += bytes([rest % 128 | 128])
        rest //= 128
    return size + bytes([rest]) + text


GRPC = STATUS_200 + literal(b"content-type", b"application/grpc")


@contextmanager
def memory_within(limit_bytes: int) -> Iterator[None]:
    """The most that is allocated at once, beyond what there is."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before <= limit_bytes
    finally:
        tracemalloc.stop()


def attack(client: Client, data: bytes) -> None:
    """Have bytes come, as reads of a socket bring them."""
    for start in range(0, len(data), READ_BYTES):
        if client.connection.closed:
            break
        client.connection.receive(data[start : start + READ_BYTES], client.now_s)


# ------------------------------------------------------- frames in their masses

ENDS_CONNECTION = {
    "pings": http2_frame(PING, 0, 0, b"x" * 8) * 20_000,
    "settings": http2_frame(SETTINGS, 0, 0) * 20_000,
    "a block of many continuations": http2_frame(HEADERS, 0, 1, STATUS_200)
    + http2_frame(CONTINUATION, 0, 1) * 100,
    "endless headers": http2_frame(HEADERS, 0, 1, STATUS_200)
    + http2_frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100) * 150) * 9,
    "a block of many fields": http2_frame(
        HEADERS, END_HEADERS, 1, GRPC + literal(b"a", b"b") * 300
    ),
    "giant headers": http2_frame(HEADERS, END_HEADERS, 1, GRPC + literal(b"x", b"y" * 16_300)),
    "giant trailers": http2_frame(HEADERS, END_HEADERS, 1, GRPC)
    + http2_frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"x", b"y" * 16_370)),
    "a reset of a stream that is idle": http2_frame(RST_STREAM, 0, 99, bytes(4)),
    "a pushed stream": http2_frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + STATUS_200),
    "a stream of the server's own": http2_frame(HEADERS, 5, 7, STATUS_200),
    "a window beyond all": http2_frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
    "a stream's window beyond all": http2_frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"),
    "a window that opens by nothing": http2_frame(WINDOW_UPDATE, 0, 1, bytes(4)),
    "data without bytes": http2_frame(HEADERS, END_HEADERS, 1, GRPC)
    + http2_frame(DATA, 0, 1) * 100_000,
    "more data than the window": http2_frame(HEADERS, END_HEADERS, 3, GRPC)
    + http2_frame(DATA, 0, 3, bytes(16_000)) * 100,
}


@pytest.mark.parametrize("data", ENDS_CONNECTION.values(), ids=list(ENDS_CONNECTION))
def test_some_attacks_end_their_connection_and_leave_no_call_without_an_end(data: bytes) -> None:
    client = Client(http2=Http2Options(stream_window_bytes=65_535))
    calls = [client.start(), client.start(streaming=True)]
    with memory_within(4 * MIB):
        attack(client, data)
        client.output()
    assert client.connection.closed
    assert client.connection.live == 0
    for one in calls:
        list(messages(one))
        assert one.over
        assert one.status in {Status.UNAVAILABLE, Status.INTERNAL}, one.status
        assert len(one.message or "") < 200


IS_ENDURED = {
    "informational responses": http2_frame(HEADERS, END_HEADERS, 1, STATUS_100) * 20_000,
    "resets of a stream that has ended": http2_frame(RST_STREAM, 0, 1, b"\0\0\0\x08") * 20_000,
    "frames of no known type": http2_frame(200, 255, 1, bytes(16_000)) * 1_000,
    "alternative services": http2_frame(ALTSVC, 0, 0, b"\0\1a" + bytes(16_000)) * 1_000,
    "windows that open and close": (
        http2_frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")
        + http2_frame(SETTINGS, 0, 0, b"\0\4\x7f\xff\xff\xff")
    )
    * 400,
    "a larger table for headers": http2_frame(SETTINGS, 0, 0, b"\0\1\xff\xff\xff\xff"),
    "data after the end": http2_frame(HEADERS, END_HEADERS | END_STREAM, 1, GRPC)
    + http2_frame(DATA, 0, 1, frame(b"late")) * 100,
    "headers after the end": http2_frame(HEADERS, END_HEADERS | END_STREAM, 1, GRPC)
    + http2_frame(HEADERS, END_HEADERS | END_STREAM, 1, GRPC) * 100,
}


@pytest.mark.parametrize("data", IS_ENDURED.values(), ids=list(IS_ENDURED))
def test_other_attacks_cost_nothing_that_stays_and_the_calls_beside_them_go_on(
    data: bytes,
) -> None:
    client = Client()
    client.start(streaming=True)
    beside = client.start()
    with memory_within(16 * MIB):  # the events of one read, and those that it is made of
        attack(client, data)
    client.output()
    answer = http2_frame(HEADERS, END_HEADERS, 3, GRPC) + http2_frame(DATA, 0, 3, frame(b"fine"))
    trailers = literal(b"grpc-status", b"0")
    attack(client, answer + http2_frame(HEADERS, END_HEADERS | END_STREAM, 3, trailers))
    assert [*messages(beside)] == [b"fine"]
    assert beside.status is Status.OK


def test_no_message_comes_after_the_end_of_its_response() -> None:
    client = Client()
    ended = client.start(streaming=True)
    attack(
        client,
        http2_frame(HEADERS, END_HEADERS, 1, GRPC)
        + http2_frame(DATA, 0, 1, frame(b"in time"))
        + http2_frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"grpc-status", b"0"))
        + http2_frame(DATA, 0, 1, frame(b"late")),
    )
    assert [*messages(ended)] == [b"in time"]
    assert ended.status is Status.OK


def test_what_a_goaway_says_is_kept_in_part() -> None:
    client = Client()
    client.start()
    attack(client, http2_frame(GOAWAY, 0, 0, b"\0\0\0\1" + bytes(4) + b"x" * 16_000) * 100)
    assert len(client.connection.reason) < DEBUG_BYTES_MAX + 100


FIELDS = [
    STATUS_200,
    GRPC,
    STATUS_100,
    literal(b"grpc-status", b"0"),
    literal(b"grpc-status", b"999"),
    literal(b"grpc-status-details-bin", b"!"),
    literal(b"grpc-encoding", b"gzip"),
    literal(b"x-bin", b"%%%"),
    b"\xff",
    b"",
]
PAYLOADS = [
    frame(b"hello"),
    frame(b"hello")[:7],
    frame(gzip.compress(b"hello"), compressed=True),
    b"\x01\xff\xff\xff\xff",
    b"\x07",
    b"",
    bytes(4),
    bytes(8),
    b"\0\4\0\0\0\0",
    b"\0\3\0\0\0\0",
]

hostile_frames = st.builds(
    http2_frame,
    st.sampled_from(
        [DATA, DATA, HEADERS, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE]
    ),
    st.sampled_from([0, END_STREAM, END_HEADERS, END_HEADERS | END_STREAM, 255]),
    st.sampled_from([0, 1, 3, 5, 7, 9, 2]),
    st.one_of(
        st.lists(st.sampled_from(FIELDS), max_size=4).map(b"".join), st.sampled_from(PAYLOADS)
    ),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(hostile_frames, max_size=30), st.sampled_from([1, 7, READ_BYTES]), st.booleans())
def test_no_sequence_of_frames_raises_or_leaves_a_call_without_one_end(
    frames: list[bytes], size: int, takes: bool
) -> None:
    client = Client(message_bytes_max=1_000)
    calls = [client.start(b"q", streaming=bool(n % 2), end=n % 3 > 0) for n in range(5)]
    data = b"".join(frames)
    for start in range(0, len(data), size):
        client.connection.receive(data[start : start + size], client.now_s)
        client.output()
        for one in calls if takes else ():
            list(messages(one))
    for one in calls[:2]:
        one.cancel()
    client.connection.lost("end")
    client.output()
    assert client.connection.live == 0
    assert client.connection._held_bytes() == 0
    assert sorted(map(id, client.over + client.refused)) == sorted(map(id, calls))
    for one in client.over:
        list(messages(one))
        one.end()
        assert one.status is not None


# ------------------------------------------------------------ messages, windows


def test_a_gzip_bomb_holds_one_message_at_a_time_and_no_larger_one() -> None:
    """4 MiB of zeros are 4 KB of gzip: the window has room for some 60 of them."""
    largest = 4 * MIB
    client = Client(message_bytes_max=largest)
    bombed = client.start(streaming=True)
    bomb = frame(gzip.compress(bytes(largest)), compressed=True)
    over = frame(gzip.compress(bytes(largest + 1)), compressed=True)
    encoding = literal(b"grpc-encoding", b"gzip")
    frames = http2_frame(HEADERS, END_HEADERS, 1, GRPC + encoding)
    for part in [bomb] * 20 + [over]:
        frames += http2_frame(DATA, 0, 1, part)
    with memory_within(4 * largest):  # the message, the buffer that it grows in, and its copies
        attack(client, frames)
        assert sum(len(body) == largest for body in messages(bombed)) == 20
    assert bombed.status is Status.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("streaming", [False, True])
def test_a_response_that_nobody_takes_is_held_up_to_its_limits(streaming: bool) -> None:
    """The window, and of the message that is longer than it, what it announces."""
    client = Client(message_bytes_max=MIB, http2=Http2Options(stream_window_bytes=100_000))
    unread = client.start(streaming=streaming)
    server = client.server
    server.headers(unread.stream_id)
    server.data(unread.stream_id, frame(bytes(MIB))[:-1])
    client.run()
    server.data(unread.stream_id, b"\0" + frame(bytes(1_000)) * 10_000)
    client.run()
    assert unread.reader.buffered_bytes <= MIB + 2 * 100_000


def test_a_server_that_opens_no_window_holds_a_part_of_the_request() -> None:
    client = Client()
    client.connection.receive(http2_frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0"), client.now_s)
    stopped = client.start(b"x" * MIB, end=False)
    assert not stopped.can_send
    assert client.connection._engine.queued_bytes() <= 64 * 1024


# --------------------------------------------------- connections, again and again


def goaway(at: int, *, code: int, begun: bool) -> Plan:
    """Send GOAWAY at a step of a call, and serve no other call."""

    async def serve(end: End) -> None:
        async def step(number: int) -> None:
            if number == at:
                end.raw.goaway(max(end.raw.requests, default=0) if begun else 0, code=code)
                await end.flush()

        await step(0)
        await end.flush()
        await step(1)
        stream_id = await end.request()
        await step(2)
        end.raw.headers(stream_id)
        await end.flush()
        await step(3)
        end.raw.data(stream_id, end.raw.requests[stream_id].body)
        await end.flush()
        await step(4)
        end.raw.trailers(stream_id)
        await end.flush()
        await step(5)
        await trio.sleep_forever()

    return serve


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.ENHANCE_YOUR_CALM, 999])
async def test_a_goaway_at_any_step_ends_no_call_that_it_does_not_name(
    nursery: trio.Nursery, at: int, begun: bool, code: int
) -> None:
    network = Network(nursery, goaway(at, code=int(code), begun=begun))
    async with network.channel(wait_for_ready=True) as channel:
        with trio.fail_after(10):
            first = await call(channel, timeout=5)
            # Refused before its response has begun, it is sent again, and served.
            lost = not begun and at in {3, 4}
            assert first == (Status.UNAVAILABLE if lost else b"x"), (at, begun)
            assert await call(channel, timeout=5) == b"x"
        assert channel.statistics().calls_live == 0


@pytest.mark.parametrize("at", [2, 3])
async def test_a_server_that_refuses_and_leaves_is_asked_as_often_as_a_call_may_be_sent(
    nursery: trio.Nursery, at: int
) -> None:
    plans = [goaway(at, code=0, begun=False) for _ in range(20)]
    network = Network(nursery, *plans)
    async with network.channel(replays_max=3) as channel:
        with trio.fail_after(10):
            assert await call(channel, timeout=5) is Status.UNAVAILABLE
    assert len(network.attempts_s) == (4 if at == 2 else 1)


async def leave_hanging(end: End) -> None:
    """Take one call, go away, and never end it."""
    stream_id = await end.request()
    end.raw.headers(stream_id)
    end.raw.goaway(stream_id)
    await end.flush()
    await trio.sleep_forever()


async def test_a_server_that_leaves_each_call_hanging_gets_so_many_connections_and_no_more(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    network = Network(nursery, *[leave_hanging] * 50)
    failures: list[str | None] = []

    async def hang(channel: Channel) -> None:
        stream = channel.request(PATH, Cardinality.UNARY_STREAM, bytes, bytes)
        try:
            await stream.send_message(b"", end=True)
            await stream.recv_message()
        except GRPCError as error:
            failures.append(error.message)

    async with network.channel(connections_max=5) as channel, trio.open_nursery() as calls:
        for _ in range(8):
            calls.start_soon(hang, channel)
            await wait_all_tasks_blocked()
        assert channel.statistics().connections == 5
        assert len(network.attempts_s) == 5
        assert (
            failures
            == ["cannot connect to server.test:1234: 5 connections wait for their last calls"] * 3
        )
        # A call that waits for the server gets a connection when another one has ended.
        waiting: list[bytes | Status] = []

        async def wait() -> None:
            waiting.append(await call(channel, wait_for_ready=True))

        network.plans = []
        calls.start_soon(wait)
        await wait_all_tasks_blocked()
        await network.ends[0].stream.aclose()
        await wait_all_tasks_blocked()
        mock_clock.jump(130)  # the longest pause between two attempts
        await wait_all_tasks_blocked()
        assert waiting == [b"x"]
        calls.cancel_scope.cancel()
