"""Anything a client, a handler and a clock may do, in any order, against what must always hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbos_actors.rpc.server.flow_accounts import Uploads
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Options

# Small enough for every limit to be met.
LIMITS = ServerLimits(
    message_bytes_max=600,
    calls_live_max=8,
    upload_bytes_max=700,
    held_bytes_free=100,
    held_bytes_shared=100_000,
    unsent_bytes_max=2_000,
    unsent_bytes_free=500,
    unsent_bytes_shared=3_000,
    stream_unsent_bytes=300,
    http2=Http2Options(stream_window_bytes=100, concurrent_streams_max=10),
)

PATHS = [b"/test.Test/Keep", b"/test.Test/Echo", b"/test.Test/Down", b"/test.Test/Both", b"/no/No"]

STEPS = st.one_of(
    st.tuples(st.just("request"), st.integers(0, 4), st.integers(0, 700), st.booleans()),
    st.tuples(st.just("timed request"), st.integers(0, 4), st.integers(0, 100), st.booleans()),
    st.tuples(st.just("send"), st.integers(0, 9), st.integers(0, 700), st.booleans()),
    st.tuples(st.just("reset"), st.integers(0, 9)),
    st.tuples(st.just("answer"), st.integers(0, 9), st.sampled_from([0, 10, 1_000, 20_000])),
    st.tuples(st.just("take"), st.integers(0, 9)),
    st.tuples(st.just("respond"), st.integers(0, 9), st.sampled_from([0, 10, 400])),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("finish"), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.5, 3.0])),
    st.tuples(st.just("carry"), st.sampled_from([None, 1, 13])),
    st.tuples(st.just("half carry"), st.booleans()),
)


class Service:
    """Two methods whose handlers are the test itself."""

    def __mapping__(self) -> dict[str, Handler]:
        message = type("Message", (), {"FromString": bytes})
        return {
            "/test.Test/Down": Handler(None, Cardinality.UNARY_STREAM, message, message),
            "/test.Test/Both": Handler(None, Cardinality.STREAM_STREAM, message, message),
        }


class World:
    """A connection, and what is done to it."""

    def __init__(self, make_pipe: Callable[..., Any]) -> None:
        self.kept: list[UnaryCall] = []
        self.ends: dict[int, int] = {}
        methods = {"Keep": self.kept.append, "Echo": lambda call: call.reply(call.request)}
        self.pipe = make_pipe(methods, limits=LIMITS, services=[Service()])
        self.streams: list[int] = []
        self.ended: set[int] = set()

    def started(self) -> list[StreamCall]:
        calls: list[StreamCall] = self.pipe.started
        return [call for call in calls if call.handling]

    def pick(self, items: list[Any], number: int) -> Any | None:
        return items[number % len(items)] if items else None

    def do(self, step: tuple[Any, ...]) -> None:  # noqa: PLR0915 - one case a kind of step
        pipe, client = self.pipe, self.pipe.client
        match step:
            case ("request" | "timed request", path, size, end):
                if client.engine.can_send_request and len(self.streams) < 40:
                    timeout = {"grpc_timeout": b"1S"} if step[0] == "timed request" else {}
                    stream = client.request(bytes(size), end=end, path=PATHS[path], **timeout)
                    self.streams.append(stream)
                    if end:
                        self.ended.add(stream)
            case ("send", number, size, end):
                stream = self.pick(self.streams, number)
                if stream is not None and self.is_open(stream) and stream not in self.ended:
                    client.send(stream, frame(bytes(size)), end=end)
                    if end:
                        self.ended.add(stream)
            case ("reset", number):
                stream = self.pick(self.streams, number)
                if self.is_open(stream):
                    client.reset(stream)
                    client.answers[stream].closed = True
            case ("answer", number, size):
                call = self.pick(self.kept, number)
                if call is not None:
                    call.reply(bytes(size))
                    assert call.answered
            case ("take", number):
                if call := self.pick(self.started(), number):
                    try:
                        call.take()
                    except GRPCError as error:
                        call.end(error.status, error.message)
            case ("respond", number, size):
                call = self.pick(self.started(), number)
                if call and not call.over and call.can_send(size):
                    if not call.headers_sent:
                        call.send_headers([])
                    call.send(bytes(size), None)
            case ("end", number):
                if call := self.pick(self.started(), number):
                    call.end(Status.OK)
            case ("cancel", number):
                if call := self.pick(self.started(), number):
                    call.cancel()
            case ("finish", number):
                if call := self.pick(self.started(), number):
                    call.end(Status.OK)
                    call.finished()
            case ("wait", seconds):
                pipe.now_s += seconds
                pipe.core.deadlines.expire(pipe.now_s)
                pipe.server.tick(pipe.now_s, 0)
            case ("carry", chunk):
                pipe.run(chunk=chunk)
            case ("half carry", to_server):
                if to_server:
                    pipe.to_server()
                else:
                    pipe.to_client()
        pipe.core.flush()

    def is_open(self, stream: int | None) -> bool:
        if stream is None or self.pipe.client.closed:
            return False
        answer = self.pipe.client.answers[stream]
        return not answer.closed and answer.reset is None

    def check(self) -> None:
        server, core = self.pipe.server, self.pipe.core
        calls = list(server._streams.values())
        unary = [call for call in calls if isinstance(call, UnaryCall)]
        waiting = [call for call in calls if isinstance(call, StreamCall) and not call.handling]
        assert core.calls_live == len(unary) + len(waiting) + len(self.started())
        assert core.streams_live == len(waiting) + len(self.started())
        assert server._stream_calls.handlers == len(self.started())
        assert not any(call.answered for call in unary)
        held = sum(len(call.buffer) for call in unary if call.buffer is not None)
        held += sum(c.reader.buffered_bytes for c in calls if isinstance(c, StreamCall))
        assert server._requests.held == held
        assert core.held_free == LIMITS.held_bytes_shared - server._requests.charged
        assert core.unsent_free == LIMITS.unsent_bytes_shared - server._responses.charged
        assert core.unsent_free >= 0
        assert core.dirty == []


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(STEPS, max_size=60))
def test_whatever_happens_the_books_balance(
    make_pipe: Callable[..., Any], steps: list[tuple[Any, ...]]
) -> None:
    world = World(make_pipe)
    pipe = world.pipe
    pipe.run()
    for step in steps:
        world.do(step)
        world.check()
    # Let everything end, and see that the connection is as good as new.
    pipe.run()
    pipe.now_s += 10
    pipe.core.deadlines.expire(pipe.now_s)
    pipe.core.flush()
    while world.started() or not all(call.answered for call in world.kept):
        for unary in world.kept:
            unary.reply(b"late")
        for call in world.started():
            call.end(Status.OK)
            call.finished()
        pipe.core.flush()
        pipe.run()
    for stream in world.streams:
        if world.is_open(stream):
            pipe.client.reset(stream)
    pipe.run()
    world.check()
    assert pipe.core.calls_live == 0
    assert len(pipe.core.deadlines) == 0
    assert pipe.server._responses.charged == 0
    assert not pipe.server._requests.uploads._reserved
    assert not pipe.server._requests.uploads._waiting
    stream = pipe.client.request(bytes(500), path=b"/test.Test/Echo")
    pipe.run()
    answer = pipe.client.answers[stream]
    assert (answer.status, answer.body) == (Status.OK, frame(bytes(500)))
    pipe.server.lost()
    assert pipe.core.held_free == LIMITS.held_bytes_shared


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 120), st.booleans()), max_size=40))
def test_room_for_uploads_is_given_in_turn_and_never_beyond_the_limit(
    steps: list[tuple[int, int, bool]],
) -> None:
    uploads = Uploads(100)
    sizes: dict[int, int] = {}
    granted: set[int] = set()
    for stream, size, release in steps:
        if release:
            uploads.release(stream)
            sizes.pop(stream, None)
            granted.discard(stream)
        elif not uploads.knows(stream):
            sizes[stream] = size
            uploads.request(stream, size, partial(granted.add, stream))
        assert sorted(granted) == sorted(s for s in sizes if uploads.has_room(s))
        assert sum(sizes[s] for s in granted) <= 100 or len(granted) == 1
        assert bool(granted) == bool(sizes)  # never all waiting
