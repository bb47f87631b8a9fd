"""Which frames of a client are on streams that may not have them."""

from __future__ import annotations

import random

import pytest

from dbos_actors.rpc.wire.frame_order import FRAMES_CHECKED, FrameOrder, OrderViolation
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode
from tests.rpc.conftest import Pipe, RawClient, echo
from tests.support.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    http2_frame,
)


def opened(stream_id: int, *, end: bool = False) -> bytes:
    flags = END_HEADERS | (END_STREAM if end else 0)
    return http2_frame(HEADERS, flags, stream_id, b"\x82\x84\x86")


def data(stream_id: int, *, end: bool = False) -> bytes:
    return http2_frame(DATA, END_STREAM if end else 0, stream_id, b"hello")


def reset(stream_id: int) -> bytes:
    return http2_frame(RST_STREAM, 0, stream_id, b"\0\0\0\x08")


def found(frames: list[bytes], *, size: int | None = None) -> OrderViolation | None:
    """What is found in frames, whole or in pieces; its offset is counted from the first frame."""
    order = FrameOrder()
    stream = PREFACE + http2_frame(SETTINGS, 0, 0) + b"".join(frames)
    before = len(stream) - len(b"".join(frames))
    for start in range(0, len(stream), size or len(stream)):
        violation = order.check(stream[start : start + (size or len(stream))])
        if violation is not None:
            offset = start + violation.offset - before
            return OrderViolation(offset, violation.code, violation.reason)
    return None


CLOSED, PROTOCOL = ErrorCode.STREAM_CLOSED, ErrorCode.PROTOCOL_ERROR

VIOLATIONS = {
    "headers after the end": ([opened(1, end=True), opened(1, end=True)], CLOSED),
    "data after the end": ([opened(1), data(1, end=True), data(1)], CLOSED),
    "headers after a reset": ([opened(1), reset(1), opened(1, end=True)], CLOSED),
    "data after a reset": ([opened(1), reset(1), data(1)], CLOSED),
    "headers after trailers": ([opened(1), opened(1, end=True), opened(1, end=True)], CLOSED),
    "a stream below": ([opened(5, end=True), opened(3, end=True)], PROTOCOL),
    "data on a stream that was left out": ([opened(5), data(3)], PROTOCOL),
    "priority on stream 0": ([http2_frame(PRIORITY, 0, 0, bytes(5))], PROTOCOL),
}

ALLOWED = {
    "calls one after the other": [opened(1, end=True), opened(3), data(3), data(3, end=True)],
    "trailers": [opened(1), data(1), opened(1, end=True)],
    "a reset after the end": [opened(1, end=True), reset(1)],
    "two resets": [opened(1), reset(1), reset(1)],
    "windows of streams that have ended": [
        opened(1, end=True),
        http2_frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"),
        http2_frame(PRIORITY, 0, 1, bytes(5)),
    ],
    "streams left out": [opened(7), opened(101), data(7, end=True)],
    "a reserved bit": [opened(1 | 1 << 31), data(1, end=True)],
    "frames whose type nobody knows": [http2_frame(200, 255, 0, bytes(300)), opened(1, end=True)],
    "what the engine judges": [data(0), opened(2, end=True), data(9), reset(9)],
    "payload that looks like a frame": [
        opened(3, end=True),
        opened(5),
        http2_frame(DATA, 0, 5, opened(1) + data(3)),
    ],
}


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 100, None])
@pytest.mark.parametrize(("frames", "code"), VIOLATIONS.values(), ids=list(VIOLATIONS))
def test_a_frame_where_none_may_be_is_found_however_the_bytes_are_cut(
    frames: list[bytes], code: ErrorCode, size: int | None
) -> None:
    violation = found(frames, size=size)
    assert violation is not None
    assert violation.code is code
    begin = len(b"".join(frames[:-1]))
    assert begin <= violation.offset < begin + 9  # before it only if its head was cut
    if size is None:
        assert violation.offset == begin


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 100, None])
@pytest.mark.parametrize("frames", ALLOWED.values(), ids=list(ALLOWED))
def test_what_a_client_may_send_passes_however_the_bytes_are_cut(
    frames: list[bytes], size: int | None
) -> None:
    assert found(frames, size=size) is None


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_found_in_what_a_real_client_sends(seed: int) -> None:
    choice = random.Random(seed)
    pipe = Pipe({"Echo": echo})
    client = pipe.client
    order = FrameOrder()
    live: list[int] = []
    while not order.is_done:
        match choice.randrange(5):
            case 0:
                client.request(choice.randbytes(choice.randrange(40_000)))
            case 1:
                live.append(client.request(b"x", end=False))
            case 2 if live:
                client.send(choice.choice(live), frame(b"y"))
            case 3 if live:
                client.send(live.pop(), b"", end=True)
            case 4 if live:
                client.reset(live.pop())
        output = client.output()
        cut = choice.randrange(len(output) + 1)
        for part in (output[:cut], output[cut:]):
            assert order.check(part) is None
            pipe.server.receive(part, pipe.now_s)
            pipe.flush()
        pipe.to_client()
        live = [one for one in live if not client.answers[one].closed]
    assert not pipe.server.closed


def test_only_the_first_frames_of_a_connection_are_looked_at() -> None:
    order = FrameOrder()
    order.check(PREFACE)
    for number in range(FRAMES_CHECKED):
        assert not order.is_done
        assert order.check(opened(2 * number + 1, end=True)) is None
    assert order.is_done
    assert order.check(opened(1)) is None
    # What it keeps is bounded by that, too, whatever follows.
    assert len(order._open) + len(order._ended) <= FRAMES_CHECKED
    order.check(bytes(10_000))
    assert order._head == b""


def greet() -> Pipe:
    pipe = Pipe({"Echo": echo}, client=RawClient())
    pipe.run()
    return pipe


def test_a_violation_ends_the_connection_after_the_calls_before_it_are_answered() -> None:
    pipe = greet()
    calls = [pipe.client.request(b"%d" % number) for number in range(10)]
    read = pipe.client.output() + opened(calls[3], end=True) + opened(calls[-1] + 2, end=True)
    pipe.server.receive(read, pipe.now_s)
    pipe.flush()
    pipe.to_client()
    assert [pipe.client.answers[one].body for one in calls] == [
        frame(b"%d" % number) for number in range(10)
    ]
    goaway = pipe.client.goaway
    assert goaway is not None
    assert goaway.error_code == ErrorCode.STREAM_CLOSED
    assert b"ended" in goaway.debug_data
    assert pipe.server.closed
    assert pipe.core.calls_live == 0


def test_a_frame_that_was_under_way_when_the_server_ended_its_stream_is_no_violation() -> None:
    """The client has not ended it, and cannot know yet that the server has."""
    pipe = greet()
    early = pipe.client.request(b"x", end=False, path=b"/no/Where")
    pipe.to_server()  # answered UNIMPLEMENTED, and reset; the client has not read that
    pipe.server.receive(data(early) + data(early, end=True), pipe.now_s)
    pipe.flush()
    pipe.to_client()
    call = pipe.client.request(b"y")
    pipe.run()
    assert pipe.client.answers[call].body == frame(b"y")
    assert pipe.client.goaway is None


def test_a_connection_is_no_longer_checked_once_it_has_shown_what_it_is() -> None:
    pipe = greet()
    for _ in range(FRAMES_CHECKED):
        pipe.client.request(b"x")
        pipe.run()
    assert pipe.server._frame_order is None
