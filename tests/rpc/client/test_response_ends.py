"""How a response ends when it ends without a status: by a reset, or by nothing at all."""

from __future__ import annotations

import pytest
import trio
from grpclib.const import Status
from trio.testing import MockClock

from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode
from dbos_actors.rpc.wire.metadata import decode_timeout
from tests.rpc.client.protocol_client import NOW_S, Client, messages
from tests.rpc.client.scripted_network import End, Network, call


@pytest.mark.parametrize(
    ("code", "after_s", "status"),
    [
        (ErrorCode.CANCEL, 0.999, Status.CANCELLED),
        (ErrorCode.CANCEL, 1.0, Status.DEADLINE_EXCEEDED),
        (ErrorCode.CANCEL, 1.001, Status.DEADLINE_EXCEEDED),
        (ErrorCode.INTERNAL_ERROR, 1.001, Status.INTERNAL),
        (ErrorCode.ENHANCE_YOUR_CALM, 1.001, Status.RESOURCE_EXHAUSTED),
    ],
)
@pytest.mark.parametrize("headers_came", [False, True])
def test_a_server_that_cancels_at_the_deadline_does_so_because_of_it(
    code: ErrorCode, after_s: float, status: Status, headers_came: bool
) -> None:
    client = Client()
    late = client.start(deadline_s=NOW_S + 1)
    if headers_came:
        client.server.headers(late.stream_id)
        client.run()
    client.server.reset(late.stream_id, int(code))
    client.now_s = NOW_S + after_s
    client.run()
    assert late.status is status
    assert client.connection.live == 0


async def test_no_call_is_cancelled_by_a_server_whose_timer_is_faster(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """grpc-go resets a call (CANCEL) when its deadline passes, often before our timer fires."""

    async def reset_in_time(end: End) -> None:
        async def reset(stream_id: int, timeout: bytes) -> None:
            await trio.sleep(decode_timeout(timeout))
            end.raw.reset(stream_id, int(ErrorCode.CANCEL))
            await end.flush()

        begun: set[int] = set()
        async with trio.open_nursery() as timers:
            await end.flush()
            while await end.receive():
                for stream_id in end.raw.requests.keys() - begun:
                    begun.add(stream_id)
                    timeout = end.raw.requests[stream_id].headers[b"grpc-timeout"]
                    timers.start_soon(reset, stream_id, timeout)
                await end.flush()
            timers.cancel_scope.cancel()

    statuses: list[bytes | Status] = []

    async def make_call(number: int) -> None:
        statuses.append(await call(channel, timeout=0.05 + number * 0.00037))

    network = Network(nursery, reset_in_time)
    async with network.channel() as channel, trio.open_nursery() as calls:
        for number in range(100):
            calls.start_soon(make_call, number)
    assert statuses == [Status.DEADLINE_EXCEEDED] * 100


@pytest.mark.parametrize("size", [1, None])
@pytest.mark.parametrize("request_ended", [False, True])
def test_a_response_without_trailers_keeps_the_messages_that_came_before(
    size: int | None, request_ended: bool
) -> None:
    client = Client()
    cut = client.start(b"x", end=request_ended, streaming=True)
    client.server.headers(cut.stream_id)
    client.server.data(cut.stream_id, frame(b"a") + frame(b"b"), end=True)
    client.run(size=size)
    assert [*messages(cut)] == [b"a", b"b"]
    cut.end()
    assert cut.status is Status.INTERNAL
    assert cut.message == "the response has ended without trailers"
    client.run()
    assert client.connection.live == 0


def test_trailers_without_a_status_keep_the_messages_that_came_before() -> None:
    client = Client()
    odd = client.start(streaming=True)
    client.server.headers(odd.stream_id)
    client.server.data(odd.stream_id, frame(b"a"))
    client.server.trailers(odd.stream_id, [(b"x", b"y")])
    client.run()
    assert [*messages(odd)] == [b"a"]
    assert odd.status is Status.UNKNOWN


def test_headers_of_another_protocol_leave_nothing_to_take() -> None:
    client = Client()
    odd = client.start(streaming=True)
    client.server.engine.send_response(odd.stream_id, [(b":status", b"200")])
    client.server.data(odd.stream_id, frame(b"a"), end=True)
    client.run()
    assert [*messages(odd)] == []
    assert odd.status is Status.UNKNOWN
