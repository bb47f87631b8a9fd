"""Calls that need no authentication, and connections that have shown none, have bounds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from grpclib.const import Cardinality, Handler, Status

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall
from tests.rpc.server.authenticators import Tokens

MakePipe = Callable[..., Any]
MakeServer = Callable[..., Server]
Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Connect = Callable[..., Any]

WATCH = b"/test.Open/Watch"


class Open:
    """A service of one method that needs no authentication, and never ends."""

    async def watch(self, stream: Any) -> None:
        await trio.sleep_forever()

    def __mapping__(self) -> dict[str, Handler]:
        message = type("Message", (), {"FromString": bytes})
        return {WATCH.decode(): Handler(self.watch, Cardinality.UNARY_STREAM, message, message)}


def open_pipe(make_pipe: MakePipe, calls: list[UnaryCall], **limits: Any) -> Any:
    return make_pipe(
        {"Echo": calls.append},
        limits=ServerLimits(**limits),
        open_services=[Open()],
        authenticator=Tokens(b"known"),
    )


def test_a_call_that_is_not_authenticated_leaves_nothing_behind(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    pipe = open_pipe(make_pipe, calls, calls_live_max=1)
    for end in (True, False):
        pipe.client.request(b"x", end=end, authorization=b"unknown")
    first = pipe.client.request(b"x", authorization=b"known")
    pipe.run()
    statuses = [answer.status for answer in pipe.client.answers.values() if answer.headers]
    assert statuses == [Status.UNAUTHENTICATED, Status.UNAUTHENTICATED]
    assert [call.stream_id for call in calls] == [first]
    assert pipe.core.calls_live == 1
    assert pipe.core.calls_unauthenticated == 2


def test_a_call_that_its_client_may_not_make_leaves_nothing_behind(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    tokens = Tokens(b"known")
    tokens.denied.add((b"known", b"/test.Test/Echo"))
    pipe = make_pipe({"Echo": calls.append, "Other": calls.append}, authenticator=tokens)
    streams = [pipe.client.request(b"x", end=end, authorization=b"known") for end in (True, False)]
    allowed = pipe.client.request(b"x", path=b"/test.Test/Other", authorization=b"known")
    pipe.run()
    for stream in streams:
        answer = pipe.client.answers[stream]
        assert (answer.status, answer.message) == (Status.PERMISSION_DENIED, "it is not for you")
    assert [(call.stream_id, call.client) for call in calls] == [(allowed, b"known")]
    assert pipe.core.calls_live == 1
    assert pipe.core.calls_denied == 2
    assert len(pipe.core.strangers) == 0


def test_a_live_call_ends_when_its_client_may_make_it_no_longer(make_pipe: MakePipe) -> None:
    calls: list[UnaryCall] = []
    tokens = Tokens(b"known", b"other")
    pipe = make_pipe({"Echo": calls.append}, authenticator=tokens)
    denied = pipe.client.request(b"x", authorization=b"known")
    kept = pipe.client.request(b"x", authorization=b"other")
    pipe.run()
    tokens.denied.add((b"known", b"/test.Test/Echo"))
    pipe.server.reauthenticate()
    pipe.flush()
    pipe.run()
    assert pipe.client.answers[denied].status is Status.PERMISSION_DENIED
    assert not pipe.client.answers[kept].headers


def test_open_calls_are_few_on_one_connection_and_take_nothing_from_others(
    make_pipe: MakePipe,
) -> None:
    calls: list[UnaryCall] = []
    pipe = open_pipe(make_pipe, calls, calls_live_max=1, open_calls_connection_max=3)
    for _ in range(5):
        pipe.client.request(b"", path=WATCH)
    pipe.client.request(b"x", authorization=b"known")
    pipe.run()
    refused = [answer.status for answer in pipe.client.answers.values() if answer.headers]
    assert refused == [Status.RESOURCE_EXHAUSTED] * 2
    assert len(calls) == 1
    for call in pipe.started:
        pipe.client.reset(call.stream_id)
        pipe.run()
        call.finished()
    again = pipe.client.request(b"", path=WATCH)
    pipe.client.request(b"x", authorization=b"known")
    pipe.run()
    assert not pipe.client.answers[again].headers
    assert len(calls) == 1, "the places of open calls are not for others"
    assert pipe.core.calls_live == 2


@pytest.mark.parametrize("is_known", [False, True])
def test_the_oldest_open_call_makes_room_for_a_new_one(make_pipe: MakePipe, is_known: bool) -> None:
    calls: list[UnaryCall] = []
    pipe = open_pipe(make_pipe, calls, open_calls_strangers_max=2, open_calls_clients_max=2)
    if is_known:
        pipe.client.request(b"x", authorization=b"known")
    streams = [pipe.client.request(b"", path=WATCH) for _ in range(3)]
    pipe.run()
    answers = [pipe.client.answers[stream] for stream in streams]
    assert answers[0].status is Status.RESOURCE_EXHAUSTED
    assert not answers[1].headers
    assert not answers[2].headers


def test_strangers_take_no_open_calls_from_clients(make_pipe: MakePipe) -> None:
    client = open_pipe(make_pipe, [], open_calls_strangers_max=2, open_calls_clients_max=2)
    stranger = make_pipe({}, core=client.core)
    standing = client.client.request(b"", path=WATCH)  # before the client is known
    client.client.request(b"x", authorization=b"known")
    client.run()
    for _ in range(5):
        stranger.client.request(b"", path=WATCH)
    stranger.run()
    client.run()
    assert not client.client.answers[standing].headers
    assert len(client.core.open_calls_of_strangers) == 2
    assert len(client.core.open_calls_of_clients) == 1


def test_the_request_of_an_open_call_is_small(make_pipe: MakePipe) -> None:
    pipe = open_pipe(make_pipe, [], open_message_bytes_max=10)
    stream = pipe.client.request(b"x" * 11, path=WATCH)
    pipe.run()
    assert pipe.client.answers[stream].status is Status.RESOURCE_EXHAUSTED


def test_a_connection_is_a_stranger_until_a_call_of_it_is_authenticated(
    make_pipe: MakePipe,
) -> None:
    pipe = open_pipe(make_pipe, [])
    assert len(pipe.core.strangers) == 1
    pipe.client.request(b"", path=WATCH)
    pipe.client.request(b"x", authorization=b"unknown")
    pipe.run()
    assert len(pipe.core.strangers) == 1
    pipe.client.request(b"x", authorization=b"known")
    pipe.run()
    assert len(pipe.core.strangers) == 0


async def test_the_oldest_idle_stranger_makes_place_for_a_new_connection(
    make_server: MakeServer, serve: Serve, connect: Connect
) -> None:
    limits = ServerLimits(connections_strangers_max=3)
    server = make_server(
        {"Echo": lambda call: call.reply(b"")},
        limits=limits,
        open_services=[Open()],
        authenticator=Tokens(b"known"),
    )
    async with serve(server) as address:
        busy = await connect(address)
        busy.raw.request(b"", path=WATCH)
        await busy.flush()
        while server.statistics().calls_open == 0:
            await trio.testing.wait_all_tasks_blocked()
        idle = [await connect(address) for _ in range(2)]
        for stranger in idle:
            await stranger.flush()
            assert await stranger.receive()
        while server.statistics().connections_strangers < 3:
            await trio.testing.wait_all_tasks_blocked()
        client = await connect(address)
        assert (await client.call(b"x", authorization=b"known")).status is Status.OK
        with trio.fail_after(5):
            while await idle[0].receive():
                pass
        assert idle[0].raw.goaway is not None
        statistics = server.statistics()
        assert statistics.connections == 3
        assert statistics.connections_dismissed == 1
        assert statistics.calls_open == 1
        # The last place is not taken from a client that is known.
        assert (await client.call(b"x", authorization=b"known")).status is Status.OK


async def test_strangers_go_first_when_every_place_is_taken(
    make_server: MakeServer, serve: Serve, connect: Connect
) -> None:
    limits = ServerLimits(connections_max=2)
    server = make_server(
        {"Echo": lambda call: call.reply(b"")}, limits=limits, authenticator=Tokens(b"known")
    )
    async with serve(server) as address:
        clients = [await connect(address)]
        assert (await clients[0].call(b"x", authorization=b"known")).status is Status.OK
        stranger = await connect(address)
        while server.statistics().connections < 2:
            await trio.testing.wait_all_tasks_blocked()
        clients.append(await connect(address))
        assert (await clients[1].call(b"x", authorization=b"known")).status is Status.OK
        with trio.fail_after(5):
            while await stranger.receive():
                pass
        refused = await connect(address)
        with trio.fail_after(5), pytest.raises((EOFError, trio.BrokenResourceError)):
            await refused.call(b"x", authorization=b"known")
        assert server.statistics().connections_refused == 1
        for client in clients:
            assert (await client.call(b"x", authorization=b"known")).status is Status.OK
