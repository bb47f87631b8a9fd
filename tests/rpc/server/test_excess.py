"""Clients beyond their quota: what refusing them costs, and that others do not pay for it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import pytest
import trio
from grpclib.const import Status

from dbos_actors.rpc.server.excess import LINES_MAX, REFUSAL_S, ExcessLine, ExcessLines
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall
from dbos_actors.rpc.wire.schemas import message_class
from dbos_actors.rpc.wire.status import STATUS_DETAILS_KEY, retry_fields
from tests.rpc.server.authenticators import Tokens

MakePipe = Callable[..., Any]
MakeServer = Callable[..., Server]
Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Connect = Callable[..., Any]

OWED_S: Final = 10 * REFUSAL_S
"""For each refusal: what it took, and the pause of nine times that. Only the pause is waited."""


def exhausted() -> Tokens:
    tokens = Tokens(b"calm", b"busy")
    tokens.exhausted.add(b"busy")
    return tokens


def test_a_call_beyond_the_quota_leaves_nothing_behind_and_says_when_to_retry(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append}, authenticator=exhausted())
    streams = [pipe.client.request(b"x", end=end, authorization=b"busy") for end in (True, False)]
    allowed = pipe.client.request(b"x", authorization=b"calm")
    pipe.run()
    for stream in streams:
        answer = pipe.client.answers[stream]
        assert (answer.status, answer.message) == (Status.RESOURCE_EXHAUSTED, "that is enough")
        expected = retry_fields(Status.RESOURCE_EXHAUSTED, "that is enough", 0.25)
        assert answer.headers[STATUS_DETAILS_KEY] == dict(expected)[STATUS_DETAILS_KEY]
    assert [call.stream_id for call in calls] == [allowed]
    assert (pipe.core.calls_live, pipe.core.excess_total) == (1, 2)


def test_a_delay_is_told_in_milliseconds_and_never_too_short() -> None:
    ((_, value),) = retry_fields(Status.RESOURCE_EXHAUSTED, "text", 1.2341)
    raw = base64.b64decode(value + b"=" * (-len(value) % 4))
    (detail,) = message_class("google.rpc.Status").FromString(raw).details
    delay = message_class("google.rpc.RetryInfo").FromString(detail.value).retry_delay
    assert (delay.seconds, delay.nanos) == (1, 235_000_000)


def test_what_is_sent_either_way_is_charged_to_whose_call_it_is(make_pipe: MakePipe) -> None:
    tokens = Tokens(b"calm", b"other")
    calls: list[UnaryCall] = []
    pipe = make_pipe({"Echo": calls.append}, authenticator=tokens)
    pipe.client.request(b"x" * 10, authorization=b"calm")
    pipe.client.request(b"x" * 20, authorization=b"other")
    pipe.run()
    assert tokens.charged == [(b"calm", 0, 15), (b"other", 0, 25)]
    for call in reversed(calls):
        call.reply(b"y" * 100)
    assert tokens.charged[2:] == [(b"other", 0, 100), (b"calm", 0, 100)]


def test_there_are_only_so_many_lines() -> None:
    lines = ExcessLines()
    for number in range(LINES_MAX + 10):
        lines.line_of(number)
    assert len(lines.lines) == LINES_MAX
    assert lines.line_of(LINES_MAX) is lines.line_of(LINES_MAX)


async def test_what_is_owed_is_waited_for_nine_times_over(autojump_clock: Any) -> None:
    line = ExcessLine()
    for took_s, waited_s in ((0.010, 0.09), (10.0, 1.0), (0.0, 0.0)):  # pings have to be read
        started_s = trio.current_time()
        line.owe(took_s, started_s)
        assert line.is_free(started_s) is not bool(waited_s)
        await line.wait_free()
        assert trio.current_time() - started_s == pytest.approx(waited_s)
        assert line.is_free(trio.current_time())


async def test_refusing_a_client_takes_a_tenth_of_the_time_over_all_its_connections(
    make_server: MakeServer, serve: Serve, connect: Connect
) -> None:
    """The bound is from below, so it holds on a busy machine too."""
    count = 3_000
    server = make_server({"Echo": lambda call: call.reply(b"")}, authenticator=exhausted())

    async def flood(client: Any) -> None:
        streams = [client.raw.request(b"x", authorization=b"busy") for _ in range(count)]
        for stream in streams:
            assert (await client.answer(stream)).status is Status.RESOURCE_EXHAUSTED

    async with serve(server) as address:
        clients = [await connect(address) for _ in range(4)]
        for client in clients:
            await client.call(b"x", authorization=b"busy")
        started_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(flood, client)
        elapsed_s = trio.current_time() - started_s
    # The last turn's debt is not waited for: of 32 KiB, some 1,000 calls.
    assert elapsed_s > (4 * count - 1_500) * (OWED_S - REFUSAL_S)
    assert server.statistics().calls_excess == 4 * count + 4


async def test_a_client_beside_one_in_excess_is_answered_at_once(
    make_server: MakeServer, serve: Serve, connect: Connect
) -> None:
    """Nor is one made to wait that was in excess and has paid."""
    tokens = exhausted()
    server = make_server({"Echo": lambda call: call.reply(b"")}, authenticator=tokens)
    async with serve(server) as address:
        busy, calm = await connect(address), await connect(address)
        await busy.call(b"x", authorization=b"busy")
        line = server._shared.excess.lines[b"busy"]
        line.owe(1.0, trio.current_time())
        waiting = busy.raw.request(b"x", authorization=b"busy")
        await busy.flush()
        for _ in range(20):
            assert (await calm.call(b"x", authorization=b"calm")).status is Status.OK
        assert server.statistics().calls_excess == 1, "the other one is not read yet"
        tokens.exhausted.clear()
        assert (await busy.answer(waiting)).status is Status.OK
        assert line.is_free(trio.current_time())
        assert (await busy.call(b"x", authorization=b"busy")).status is Status.OK


async def test_every_connection_of_a_client_waits_while_it_owes(
    make_server: MakeServer, serve: Serve, connect: Connect
) -> None:
    """So one that opens a connection for each few calls gains nothing."""
    tokens = exhausted()
    server = make_server({"Echo": lambda call: call.reply(b"")}, authenticator=tokens)
    async with serve(server) as address:
        first, second = await connect(address), await connect(address)
        await first.call(b"x", authorization=b"busy")
        tokens.exhausted.clear()
        await second.call(b"x", authorization=b"busy")
        line = server._shared.excess.lines[b"busy"]
        owed_until_s = trio.current_time() + 0.5
        line.owe(1.0, trio.current_time())
        assert (await second.call(b"x", authorization=b"busy")).status is Status.OK
        assert trio.current_time() > owed_until_s
