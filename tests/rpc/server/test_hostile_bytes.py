"""Bytes that no client should send: nothing but their own connection may suffer."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import pytest
import trio
from grpclib.const import Cardinality, Handler, Status

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Error, Http2Options
from tests.support.http2_frames import (
    CONTINUATION,
    DATA,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    http2_frame,
)

MakePipe = Callable[..., Any]
MakeServer = Callable[..., Server]
Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Connect = Callable[..., Any]
EchoHandler = Callable[[UnaryCall], None]


def real_traffic(make_client: Callable[..., Any]) -> bytes:
    """What a client says in a few calls of every kind."""
    client = make_client()
    for path in (b"/test.Test/Echo", b"/test.Test/Stream", b"/no/Where"):
        for timeout in (None, b"10S"):
            changes = {"grpc_timeout": timeout} if timeout else {}
            client.request(b"hello" * 20, path=path, **changes)
            stream = client.request(b"x", end=False, path=path, a_bin=b"AAEC")
            client.send(stream, frame(b"y" * 300))
        client.reset(stream)
    client.engine.ping(b"12345678")
    return bytes(client.output())


class Stream:
    """A grpclib service whose handlers never run: nothing drives them here."""

    def __mapping__(self) -> dict[str, Handler]:
        message = type("Message", (), {"FromString": bytes})
        return {"/test.Test/Stream": Handler(None, Cardinality.STREAM_STREAM, message, message)}


@pytest.mark.parametrize("seed", range(300))
def test_mutated_traffic_ends_in_order_or_in_goaway(
    make_pipe: MakePipe, make_client: Callable[..., Any], echo_handler: EchoHandler, seed: int
) -> None:
    choice = random.Random(seed)
    data = bytearray(real_traffic(make_client))
    for _ in range(choice.choice([1, 1, 2, 5, 20])):
        position = choice.randrange(24, len(data))
        match choice.randrange(4):
            case 0:
                data[position] ^= 1 << choice.randrange(8)
            case 1:
                data[position : position + choice.randrange(30)] = b""
            case 2:
                data[position:position] = choice.randbytes(choice.randrange(30))
            case 3:
                end = position + choice.randrange(200)
                data[position:position] = data[position:end]
    pipe = make_pipe({"Echo": echo_handler}, services=[Stream()])
    position = 0
    while position < len(data) and not pipe.server.closed:
        size = choice.choice([1, 9, 100, 5_000])
        pipe.server.receive(data[position : position + size], pipe.now_s)
        pipe.flush()
        position += size
    pipe.core.deadlines.expire(pipe.now_s + 100)
    pipe.core.flush()
    pipe.server.lost()
    for call in pipe.started:
        assert call.over
        call.finished()
    assert pipe.core.calls_live == 0
    assert pipe.core.unsent_free == ServerLimits().unsent_bytes_shared
    assert pipe.core.held_free == ServerLimits().held_bytes_shared
    assert pipe.server._requests.held == 0
    pipe.core.deadlines.expire(float("inf"))
    assert len(pipe.core.deadlines) == 0


GREETING = PREFACE + http2_frame(SETTINGS, 0, 0)

ATTACKS = {
    "no preface": b"\0" * 100,
    "http 1": b"GET / HTTP/1.1\r\n\r\n",
    "oversized frame": GREETING + b"\xff\xff\xff\0\0\0\0\0\1",
    "data on stream 0": GREETING + http2_frame(DATA, 0, 0, b"x"),
    "even stream": GREETING + http2_frame(HEADERS, 5, 2, b"\x82"),
    "bad hpack": GREETING + http2_frame(HEADERS, 5, 1, b"\xff" * 9),
    "window overflow": GREETING + http2_frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
    "continuation flood": GREETING
    + http2_frame(HEADERS, 1, 1, b"\x82")
    + http2_frame(CONTINUATION, 0, 1, b"\x84") * 20,
    "settings flood": GREETING + http2_frame(SETTINGS, 0, 0) * 20_000,
    "ping flood": GREETING + http2_frame(PING, 0, 0, b"x" * 8) * 20_000,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
async def test_an_attack_ends_its_own_connection_and_no_other(
    serve: Serve,
    connect: Connect,
    make_server: MakeServer,
    echo_handler: EchoHandler,
    attack: bytes,
) -> None:
    async with serve(make_server({"Echo": echo_handler})) as address:
        good = await connect(address)
        host, _, port = address.rpartition(":")
        bad = await trio.open_tcp_stream(host, int(port))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bad.send_all, attack)
                with trio.fail_after(10):
                    while await bad.receive_some():
                        pass
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            pass  # closed while we were still sending
        await trio.aclose_forcefully(bad)
        assert (await good.call(b"fine")).status is Status.OK


def test_rapid_resets_are_cut_off_and_a_thousand_cancellations_a_second_are_not(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    limits = ServerLimits(http2=Http2Options(reset_burst=2_000, reset_rate_per_s=10))
    pipe = make_pipe({"Echo": calls.append}, limits=limits)
    for _ in range(1_000):
        stream = pipe.client.request(b"x")
        pipe.run()
        pipe.client.reset(stream)
        pipe.run()
    assert not pipe.server.closed
    for _ in range(1_500):
        if pipe.client.goaway is None:
            stream = pipe.client.request(b"x")
            pipe.run()
            pipe.client.reset(stream)
            pipe.run()
    assert pipe.client.goaway is not None
    assert pipe.core.calls_live == 0


def test_headers_beyond_the_limit_end_the_connection(
    make_pipe: MakePipe, echo_handler: EchoHandler
) -> None:
    limits = ServerLimits(http2=Http2Options(header_list_bytes_max=8_000))
    pipe = make_pipe({"Echo": echo_handler}, limits=limits)
    fine = pipe.client.request(b"x", big=b"y" * 7_000)
    pipe.run()
    assert pipe.client.answers[fine].status is Status.OK
    pipe.client.request(b"x", big=b"y" * 9_000)
    with suppress(Http2Error):
        pipe.run()
    assert pipe.server.closed


@pytest.mark.parametrize("path", [b"/test.Test/Echo", b"/test.Test/Stream"])
def test_requests_that_never_end_are_bounded_for_all_connections_together(
    make_pipe: MakePipe, echo_handler: EchoHandler, path: bytes
) -> None:
    limits = ServerLimits(held_bytes_free=100_000, held_bytes_shared=1_000_000)
    pipe = make_pipe({"Echo": echo_handler}, limits=limits, services=[Stream()])
    for _ in range(40):
        if pipe.client.goaway is None:
            stream = pipe.client.request(None, end=False, path=path)
            pipe.client.send(stream, frame(bytes(60_000))[:50_000])
            pipe.run()
            pipe.core.flush()
            pipe.run()
    assert pipe.client.goaway.debug_data == b"too much unread request data"
    assert pipe.server.closed
    assert pipe.core.held_free == 1_000_000


def test_requests_that_wait_for_answers_to_be_read_are_counted_too(
    make_pipe: MakePipe, make_client: Callable[..., Any]
) -> None:
    """Catches acknowledging requests that are only parked."""
    limits = ServerLimits(unsent_bytes_max=100_000, held_bytes_free=0, held_bytes_shared=4_000_000)
    pipe = make_pipe(
        {"Echo": lambda call: call.reply(bytes(200_000))},
        limits=limits,
        client=make_client(acknowledge=False),
    )
    for _ in range(50):
        if pipe.client.goaway is None:
            pipe.client.request(bytes(200_000))
            pipe.run()
            pipe.core.flush()
            pipe.run()
            assert pipe.core.held_free >= 0
    assert pipe.server.closed
    assert pipe.core.held_free == 4_000_000
