"""Which stream handlers are woken to send more: those that can, and no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from grpclib.const import Cardinality, Handler, Status

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Options
from tests.support.blob import Blob

MakePipe = Callable[..., Any]

STALLED = 900
CHUNK = bytes(6_000)
QUEUED_MAX = 4_000


class Pour:
    """A method whose handlers the tests play themselves."""

    async def pour(self, stream: Any) -> None:
        raise AssertionError

    def __mapping__(self) -> dict[str, Handler]:
        return {"/test.Test/Pour": Handler(self.pour, Cardinality.UNARY_STREAM, Blob, Blob)}


class Stalled:
    """A pipe whose client has opened many streams and gives them no window."""

    def __init__(self, make_pipe: MakePipe, make_client: Any, count: int = STALLED) -> None:
        self.woken: Counter[int] = Counter()
        client = make_client(options=Http2Options(stream_window_bytes=1_000), acknowledge=False)
        limits = ServerLimits(stream_unsent_bytes=QUEUED_MAX)
        echo = {"Echo": lambda call: call.reply(call.request)}
        self.pipe = make_pipe(echo, services=[Pour()], client=client, limits=limits)
        self.streams = [client.request(b"", path=b"/test.Test/Pour") for _ in range(count)]
        self.pipe.run()
        for call in self.pipe.started:
            call.on_change = self.counter(call)
            call.send_headers([])
            assert call.can_send(len(CHUNK))
            call.send(CHUNK, None)
            assert not call.can_send(len(CHUNK))
        self.pipe.core.flush()
        self.pipe.run()

    def counter(self, call: StreamCall) -> Callable[[], None]:
        def on_change() -> None:
            self.woken[call.stream_id] += 1
            call.can_send(len(CHUNK))

        return on_change

    def open_window(self, stream_id: int) -> None:
        self.pipe.client.engine.acknowledge(1_000, stream_id)
        self.pipe.run()


def test_stalled_streams_are_not_woken_by_the_traffic_of_others(
    make_pipe: MakePipe, make_client: Any
) -> None:
    stalled = Stalled(make_pipe, make_client)
    stalled.woken.clear()
    pipe = stalled.pipe
    for _ in range(100):
        stream = pipe.client.request(b"x")
        pipe.run()
        assert pipe.client.answers[stream].status is Status.OK
        pipe.server.tick(pipe.now_s, 0)
    assert sum(stalled.woken.values()) == 0


def test_a_stream_is_woken_when_its_own_window_opens(make_pipe: MakePipe, make_client: Any) -> None:
    stalled = Stalled(make_pipe, make_client)
    stalled.woken.clear()
    stream = stalled.streams[450]
    answer = stalled.pipe.client.answers[stream]
    while not stalled.woken:
        assert len(frame(CHUNK)) - len(answer.body) >= QUEUED_MAX
        stalled.open_window(stream)
    assert len(frame(CHUNK)) - len(answer.body) < QUEUED_MAX
    assert stalled.woken == {stream: 1}


def test_every_stream_is_woken_when_settings_open_all_windows(
    make_pipe: MakePipe, make_client: Any
) -> None:
    stalled = Stalled(make_pipe, make_client, count=20)
    stalled.woken.clear()
    # SETTINGS_INITIAL_WINDOW_SIZE = 1 MiB, RFC 9113, 6.5
    settings = b"\0\0\x06\x04\0\0\0\0\0" + b"\0\x04" + (1 << 20).to_bytes(4)
    stalled.pipe.server.receive(settings, stalled.pipe.now_s)
    stalled.pipe.flush()
    assert stalled.woken.keys() == set(stalled.streams)


def test_a_stream_that_is_over_is_not_woken_again(make_pipe: MakePipe, make_client: Any) -> None:
    stalled = Stalled(make_pipe, make_client, count=20)
    for stream in stalled.streams:
        stalled.pipe.client.reset(stream)
    stalled.pipe.run()
    assert all(call.over for call in stalled.pipe.started)
    stalled.woken.clear()
    stream = stalled.pipe.client.request(b"x")
    stalled.pipe.run()
    assert stalled.pipe.client.answers[stream].body == frame(b"x")
    assert not stalled.woken


@pytest.mark.parametrize("released", [1, 3])
def test_streams_that_wait_for_shared_memory_are_woken_as_far_as_there_is_some(
    make_pipe: MakePipe, make_client: Any, released: int
) -> None:
    limits = ServerLimits(unsent_bytes_free=0, unsent_bytes_shared=len(CHUNK) * 5)
    pipe = make_pipe({}, services=[Pour()], limits=limits)
    for _ in range(20):
        pipe.client.request(b"", path=b"/test.Test/Pour")
    pipe.run()
    woken: list[StreamCall] = []
    pipe.core.unsent_free = 0  # another connection has it all
    for call in pipe.started:
        call.on_change = lambda call=call: woken.append(call)
        assert not call.can_send(len(CHUNK))
    pipe.server.tick(pipe.now_s, 0)
    pipe.flush()
    assert not woken
    pipe.core.unsent_free = len(CHUNK) * released
    pipe.server.tick(pipe.now_s, 0)
    assert woken == pipe.started[:released]
