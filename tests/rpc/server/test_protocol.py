"""The server's protocol on one connection, in memory: every byte split, every misuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.shared_state import AnswerRound
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Options

MakePipe = Callable[..., Any]
Handler = Callable[[UnaryCall], None]


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("calls", [1, 3])
def test_a_call_is_answered_however_its_bytes_arrive(
    make_pipe: MakePipe, echo_handler: Handler, chunk: int | None, calls: int
) -> None:
    pipe = make_pipe({"Echo": echo_handler})
    streams = [pipe.client.request(b"hello %d" % number) for number in range(calls)]
    pipe.run(chunk=chunk)
    for number, stream in enumerate(streams):
        answer = pipe.client.answers[stream]
        assert answer.http_status == 200
        assert answer.headers[b"content-type"] == b"application/grpc"
        assert answer.body == frame(b"hello %d" % number)
        assert answer.status is Status.OK
        assert answer.closed
    assert pipe.core.calls_live == 0


def test_a_message_in_many_data_frames_is_one_message(
    make_pipe: MakePipe, echo_handler: Handler
) -> None:
    pipe = make_pipe({"Echo": echo_handler})
    stream = pipe.client.request(None, end=False)
    for byte in frame(b"abcdef"):
        pipe.client.send(stream, bytes([byte]))
        pipe.run()
    pipe.client.send(stream, b"", end=True)
    pipe.run()
    assert pipe.client.answers[stream].body == frame(b"abcdef")


def test_a_reply_may_come_after_the_batch_and_is_flushed_with_its_fellows(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    wakes: list[int] = []
    pipe.core.wake = lambda: wakes.append(1)
    streams = [pipe.client.request(b"%d" % number) for number in range(500)]
    pipe.run()
    pipe.flushes = 0
    for call in calls:
        call.reply(call.request)
    assert (len(wakes), pipe.flushes) == (1, 0)
    pipe.core.flush()
    assert pipe.flushes == 1
    pipe.run()
    assert [pipe.client.answers[stream].body for stream in streams] == [
        frame(b"%d" % number) for number in range(500)
    ]


def test_the_answers_of_a_round_are_flushed_at_its_end_and_wake_nobody(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    one = make_pipe({"Echo": calls.append})
    two = make_pipe({}, core=one.core)
    wakes: list[int] = []
    one.core.wake = lambda: wakes.append(1)
    streams = [one.client.request(b"a"), one.client.request(b"b"), two.client.request(b"c")]
    for pipe in (one, two):
        pipe.run()
        pipe.flushes = 0
    with AnswerRound(one.core):
        for call in calls:
            call.reply(call.request)
        assert (one.flushes, two.flushes) == (0, 0)
    assert (one.flushes, two.flushes, wakes) == (1, 1, [])
    one.run()
    assert [one.client.answers[stream].body for stream in streams[:2]] == [frame(b"a"), frame(b"b")]
    two.client.request(b"d")
    two.run()
    calls[-1].reply(b"d")
    assert (two.flushes, wakes) == (2, [1])


@pytest.mark.parametrize(
    ("changes", "http_status", "status"),
    [
        ({"path": b"/test.Test/Nothing"}, 200, Status.UNIMPLEMENTED),
        ({"path": b"/no.Service/Echo"}, 200, Status.UNIMPLEMENTED),
        ({"path": b"/"}, 200, Status.UNIMPLEMENTED),
        ({"method": b"GET"}, 405, Status.INTERNAL),
        ({"content_type": b"application/grpc+json"}, 415, Status.INTERNAL),
        ({"content_type": b"application/grpcx"}, 415, Status.INTERNAL),
        ({"te": None}, 400, Status.INTERNAL),
        ({"grpc_timeout": b"soon"}, 400, Status.INTERNAL),
        ({"grpc_timeout": b"123456789S"}, 400, Status.INTERNAL),
        ({"grpc_timeout": b"0n"}, 200, Status.DEADLINE_EXCEEDED),
    ],
)
@pytest.mark.parametrize("end", [True, False])
def test_what_is_not_a_call_of_this_server_is_refused_in_one_header_block(
    make_pipe: MakePipe,
    changes: dict[str, bytes | None],
    http_status: int,
    status: Status,
    end: bool,
) -> None:
    pipe = make_pipe({"Echo": lambda call: call.reply(call.request)})
    stream = pipe.client.request(b"x", end=end, **changes)
    pipe.run()
    answer = pipe.client.answers[stream]
    assert (answer.http_status, answer.status) == (http_status, status)
    assert answer.trailers == {}
    assert answer.body == b""
    assert answer.closed
    assert answer.reset == (None if end else 0)
    assert pipe.core.calls_live == 0


@pytest.mark.parametrize(
    "content_type",
    [b"application/grpc", b"application/grpc+proto", b"application/grpc+proto; charset=utf-8"],
)
def test_protobufs_content_types_are_served(
    make_pipe: MakePipe, echo_handler: Handler, content_type: bytes
) -> None:
    pipe = make_pipe({"Echo": echo_handler})
    stream = pipe.client.request(b"x", content_type=content_type)
    pipe.run()
    assert pipe.client.answers[stream].status is Status.OK


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", Status.UNIMPLEMENTED),
        (frame(b"a") + frame(b"b"), Status.UNIMPLEMENTED),
        (frame(b"a") + b"\0", Status.UNIMPLEMENTED),
        (frame(b"abc")[:-1], Status.INTERNAL),
        (b"\0\0", Status.INTERNAL),
        (frame(b"a", compressed=True), Status.INTERNAL),
        (b"\x07" + frame(b"a")[1:], Status.INTERNAL),
        (frame(b"x" * 101), Status.RESOURCE_EXHAUSTED),
        (b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_anything_but_one_whole_message_is_refused(
    make_pipe: MakePipe, echo_handler: Handler, data: bytes, status: Status, size: int
) -> None:
    pipe = make_pipe({"Echo": echo_handler}, limits=ServerLimits(message_bytes_max=100))
    stream = pipe.client.request(None, end=False)
    answer = pipe.client.answers[stream]
    for start in range(0, len(data), size):
        if not answer.closed:
            pipe.client.send(stream, data[start : start + size])
            if size == 1:
                pipe.run()
    if not answer.closed:
        pipe.client.send(stream, b"", end=True)
    pipe.run()
    assert answer.status is status
    assert answer.closed
    assert pipe.core.calls_live == 0


def test_a_request_that_ends_at_its_headers_has_no_message(
    make_pipe: MakePipe, echo_handler: Handler
) -> None:
    pipe = make_pipe({"Echo": echo_handler})
    stream = pipe.client.request(None)
    pipe.run()
    assert pipe.client.answers[stream].status is Status.UNIMPLEMENTED


def test_errors_become_statuses(make_pipe: MakePipe) -> None:
    def handler(call: UnaryCall) -> None:
        match call.request:
            case b"grpc":
                raise GRPCError(Status.ABORTED, "raised: 100% \u00e9")
            case b"fail":
                call.fail(GRPCError(Status.DATA_LOSS, "failed"))
            case b"table":
                call.fail(LookupError("who"))
            case _:
                raise ZeroDivisionError("secret")

    pipe = make_pipe({"Echo": handler})
    answers = [
        pipe.client.answers[pipe.client.request(body)]
        for body in (b"grpc", b"fail", b"table", b"bug")
    ]
    pipe.run()
    assert [(answer.status, answer.message) for answer in answers] == [
        (Status.ABORTED, "raised: 100%25 %C3%A9"),
        (Status.DATA_LOSS, "failed"),
        (Status.NOT_FOUND, "who"),
        (Status.INTERNAL, "internal error"),
    ]


def test_an_undecodable_request_harms_nobody_else(
    make_pipe: MakePipe, echo_handler: Handler
) -> None:
    def decode(data: bytes) -> bytes:
        if data == b"bad":
            raise ValueError(data)
        return data

    pipe = make_pipe({"Echo": echo_handler}, decode=decode)
    bad, good = pipe.client.request(b"bad"), pipe.client.request(b"good")
    pipe.run()
    assert pipe.client.answers[bad].status is Status.INTERNAL
    assert pipe.client.answers[good].status is Status.OK


def test_malformed_binary_metadata_fails_the_call_that_asks_for_it(make_pipe: MakePipe) -> None:
    pipe = make_pipe({"Echo": lambda call: call.reply(str(list(call.metadata.items())).encode())})
    bad = pipe.client.request(b"", x_bin=b"!")
    good = pipe.client.request(b"", x_bin=b"AA", y=b"z")
    pipe.run()
    assert pipe.client.answers[bad].status is Status.INTERNAL
    assert pipe.client.answers[good].body[5:] == b"[('x-bin', b'\\x00'), ('y', 'z')]"


def test_metadata_keeps_its_order_and_repeated_keys(make_pipe: MakePipe) -> None:
    def handler(call: UnaryCall) -> None:
        assert call.header(b"a") == b"3"
        assert call.header(b"nothing") is None
        assert (b"a", b"1") in call.headers
        call.reply(str(list(call.metadata.items())).encode())

    pipe = make_pipe({"Echo": handler})
    stream = pipe.client.request(b"", extra=[(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    pipe.run()
    assert pipe.client.answers[stream].body[5:] == b"[('a', '1'), ('b', '2'), ('a', '3')]"


def test_a_call_is_answered_once_and_then_never_again(make_pipe: MakePipe) -> None:
    def handler(call: UnaryCall) -> None:
        assert not call.answered
        call.reply(b"first")
        assert call.answered
        call.reply(b"second")
        call.fail(LookupError())
        call.expire()

    pipe = make_pipe({"Echo": handler})
    stream = pipe.client.request(b"")
    pipe.run()
    assert pipe.client.answers[stream].body == frame(b"first")
    assert pipe.client.answers[stream].status is Status.OK


def test_a_deadline_answers_for_the_handler_that_did_not(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    stream = pipe.client.request(b"", grpc_timeout=b"5S")
    pipe.run()
    assert calls[0].deadline == pipe.now_s + 5
    pipe.core.deadlines.expire(pipe.now_s + 4.999)
    assert not calls[0].answered
    pipe.core.deadlines.expire(pipe.now_s + 5)
    assert calls[0].answered
    calls[0].reply(b"late")
    pipe.core.flush()
    pipe.run()
    assert pipe.client.answers[stream].status is Status.DEADLINE_EXCEEDED
    assert pipe.core.calls_live == 0


def test_a_deadline_passes_while_the_request_is_still_arriving(
    make_pipe: MakePipe, echo_handler: Handler
) -> None:
    pipe = make_pipe({"Echo": echo_handler})
    stream = pipe.client.request(b"x", end=False, grpc_timeout=b"5S")
    pipe.run()
    pipe.core.deadlines.expire(pipe.now_s + 5)
    pipe.core.flush()
    pipe.run()
    answer = pipe.client.answers[stream]
    assert (answer.status, answer.reset) == (Status.DEADLINE_EXCEEDED, 0)


def test_a_cancelled_call_is_answered_and_a_late_reply_is_dropped(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    first, second = pipe.client.request(b"1"), pipe.client.request(b"2")
    pipe.run()
    pipe.client.reset(first)
    pipe.run()
    assert [call.answered for call in calls] == [True, False]
    for call in calls:
        call.reply(b"done")
    pipe.core.flush()
    pipe.run()
    assert pipe.client.answers[first].body == b""
    assert pipe.client.answers[second].body == frame(b"done")
    assert pipe.core.calls_live == 0


def test_a_request_and_its_reset_in_one_read_disturb_nothing(
    make_pipe: MakePipe, echo_handler: Handler
) -> None:
    pipe = make_pipe({"Echo": echo_handler})
    output = b""
    for _ in range(50):
        stream = pipe.client.request(b"x")
        output += pipe.client.output()
        pipe.client.reset(stream)
        output += pipe.client.output()
    pipe.server.receive(output, pipe.now_s)
    pipe.flush()
    alive = pipe.client.request(b"alive")
    pipe.run()
    assert pipe.client.answers[alive].body == frame(b"alive")
    assert pipe.core.calls_live == 0


def test_a_lost_connection_answers_its_calls_for_good(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    pipe.client.request(b"1", grpc_timeout=b"1S")
    pipe.run()
    pipe.server.lost()
    assert calls[0].answered
    calls[0].reply(b"late")
    assert pipe.core.calls_live == 0
    assert pipe.core.dirty == []


def test_a_call_too_many_is_refused_and_the_next_one_after_an_answer_is_not(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append}, limits=ServerLimits(calls_live_max=2))
    streams = [pipe.client.request(b"%d" % number) for number in range(3)]
    pipe.run()
    assert pipe.client.answers[streams[2]].status is Status.RESOURCE_EXHAUSTED
    calls[0].reply(b"")
    later = pipe.client.request(b"later")
    pipe.run()
    assert len(calls) == 3
    assert not pipe.client.answers[later].closed


def test_a_message_much_larger_than_its_window_arrives(make_pipe: MakePipe) -> None:
    sizes: list[int] = []

    def handler(call: UnaryCall) -> None:
        sizes.append(len(call.request))
        call.reply(b"")

    pipe = make_pipe({"Echo": handler})
    body = b"x" * (4 * 1024 * 1024)
    streams = [pipe.client.request(body) for _ in range(6)]
    pipe.run()
    assert sizes == [len(body)] * 6
    assert all(pipe.client.answers[stream].status is Status.OK for stream in streams)


def test_unfinished_uploads_are_bounded_and_still_all_arrive(make_pipe: MakePipe) -> None:
    """Catches acknowledging as bytes arrive, and reserving room piecemeal (deadlock)."""
    done: list[int] = []
    limits = ServerLimits(upload_bytes_max=2_500_000)

    def handler(call: UnaryCall) -> None:
        done.append(1)
        call.reply(b"")

    pipe = make_pipe({"Echo": handler}, limits=limits)
    body = frame(b"x" * 1_000_000)
    streams = [pipe.client.request(None, end=False) for _ in range(10)]
    for stream in streams:
        pipe.client.send(stream, body[:500_000])
    pipe.run()
    held = [pipe.client.engine.queued_bytes(stream) for stream in streams]
    assert [size == 0 for size in held] == [True] * 2 + [False] * 8
    pipe.client.reset(streams[0])  # its room goes to another
    for stream in streams[1:]:
        pipe.client.send(stream, body[500_000:], end=True)
    pipe.run()
    assert len(done) == 9


def test_bytes_of_cancelled_uploads_do_not_leak_the_connections_window(
    make_pipe: MakePipe, echo_handler: Handler
) -> None:
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=10))
    pipe = make_pipe({"Echo": echo_handler}, limits=limits)
    for _ in range(1_000):
        stream = pipe.client.request(None, end=False)
        pipe.client.send(stream, frame(b"x" * 30_000)[:20_000])
        pipe.run()
        pipe.client.reset(stream)
        pipe.run()
    stream = pipe.client.request(b"x" * 1_048_576)
    pipe.run()
    assert pipe.client.answers[stream].status is Status.OK


def test_uploads_to_nowhere_get_their_status_and_leak_nothing(
    make_pipe: MakePipe, echo_handler: Handler
) -> None:
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=10))
    pipe = make_pipe({"Echo": echo_handler}, limits=limits)
    for _ in range(200):
        stream = pipe.client.request(b"x" * 3_000_000, path=b"/nobody/Home")
        pipe.run()
        assert pipe.client.answers[stream].status is Status.UNIMPLEMENTED
        assert pipe.client.answers[stream].reset == 0
    stream = pipe.client.request(b"x" * 1_048_576)
    pipe.run()
    assert pipe.client.answers[stream].status is Status.OK


def test_a_client_that_does_not_take_its_answers_gets_no_further_call_begun(
    make_pipe: MakePipe, make_client: Callable[..., Any]
) -> None:
    begun: list[int] = []

    def big(call: UnaryCall) -> None:
        begun.append(1)
        call.reply(b"x" * 100_000)

    limits = ServerLimits(unsent_bytes_max=1_000_000)
    pipe = make_pipe({"Echo": big}, limits=limits, client=make_client(acknowledge=False))
    streams = [pipe.client.request(b"") for _ in range(100)]
    pipe.client.engine._engine.set_local_window_size(0)
    pipe.run()
    assert len(begun) < 40
    for stream in streams:  # it begins to read
        pipe.client.engine._engine.set_local_window_size(2**30)
        pipe.client.engine._engine.set_local_window_size(1_000_000, stream_id=stream)
    pipe.run()
    assert len(begun) == 100
    assert all(len(pipe.client.answers[stream].body) == 100_005 for stream in streams)


def test_unread_answers_of_all_connections_together_are_bounded(
    make_pipe: MakePipe, make_client: Callable[..., Any]
) -> None:
    limits = ServerLimits(unsent_bytes_free=1_000, unsent_bytes_shared=10_000)
    pipe = make_pipe(
        {"Echo": lambda call: call.reply(b"x" * 5_000)},
        limits=limits,
        client=make_client(Http2Options(stream_window_bytes=0), acknowledge=False),
    )
    pipe.run()
    streams = [pipe.client.request(b"") for _ in range(3)]
    pipe.run()
    answers = [pipe.client.answers[stream] for stream in streams]
    assert [answer.closed for answer in answers] == [False, False, True]
    assert answers[2].status is Status.RESOURCE_EXHAUSTED
    assert pipe.core.unsent_free == 1_000
    pipe.server.lost()
    assert pipe.core.unsent_free == 10_000


def test_bytes_that_are_not_http2_end_the_connection_quietly(make_pipe: MakePipe) -> None:
    pipe = make_pipe({})
    pipe.server.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", pipe.now_s)
    assert pipe.server.closed
    assert pipe.server.output(1 << 16) == b""


def test_a_shutdown_lets_open_calls_finish_and_ends_the_connection(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append})
    stream = pipe.client.request(b"x")
    pipe.run()
    pipe.server.announce_shutdown(pipe.now_s)
    pipe.flush()
    pipe.run()
    assert not pipe.server.closed
    calls[0].reply(b"y")
    pipe.core.flush()
    pipe.run()
    assert pipe.client.answers[stream].body == frame(b"y")
    assert pipe.server.closed
