"""The server over real sockets, with clients written by others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import grpclib.client
import grpclib.const
import grpclib.exceptions
import pytest
import trio
from grpclib.const import Status
from structlog.testing import capture_logs

from dbos_actors.api import messages
from dbos_actors.api.sdk import dbos as sdk
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import bound_address, open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Options

Handler = Callable[[UnaryCall], None]
Serve = Callable[[Server], AbstractAsyncContextManager[str]]
MakeServer = Callable[..., Server]
Connect = Callable[..., Any]


def grpcio_call(address: str, bodies: list[bytes], **options: Any) -> list[bytes | Status]:
    """Unary calls of bytes by gRPC core; blocking."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        method = channel.unary_unary("/test.Test/Echo")
        results: list[bytes | Status] = []
        futures = [method.future(body, timeout=10, **options) for body in bodies]
        for future in futures:
            try:
                results.append(future.result())
            except grpc.RpcError as error:
                results.append(Status(error.code().value[0]))
        return results


async def test_grpcio_is_answered(
    serve: Serve, make_server: MakeServer, echo_handler: Handler
) -> None:
    bodies = [b"", b"x", b"y" * 100_000, b"z" * 1_000_000]
    async with serve(make_server({"Echo": echo_handler})) as address:
        assert await trio.to_thread.run_sync(grpcio_call, address, bodies) == bodies


async def test_grpcios_asyncio_client_is_answered(
    serve: Serve, make_server: MakeServer, echo_handler: Handler
) -> None:
    async def client(address: str) -> list[bytes]:
        async with grpc.aio.insecure_channel(address) as channel:
            method = channel.unary_unary("/test.Test/Echo")
            calls = [method(b"%d" % n, timeout=10) for n in range(100)]
            return [bytes(reply) for reply in await asyncio.gather(*calls)]

    async with serve(make_server({"Echo": echo_handler})) as address:
        replies = await trio.to_thread.run_sync(asyncio.run, client(address))
    assert replies == [b"%d" % n for n in range(100)]


async def test_the_sdk_is_answered_on_grpclibs_channel(serve: Serve) -> None:
    def get_agent(call: UnaryCall) -> None:
        agent = messages.Agent(id=call.request.agent_id, hostname=str(call.metadata["who"]))
        call.reply(messages.GetAgentResponse(found=True, agent=agent))

    method = UnaryMethod(get_agent, messages.GetAgentRequest.FromString)
    server = Server(
        unary={"/dbos.DBOS/GetAgent": method}, status_of=lambda e: (Status.UNKNOWN, str(e))
    )

    async def client(address: str) -> Any:
        host, _, port = address.rpartition(":")
        async with grpclib.client.Channel(host, int(port)) as channel:
            stub = sdk.DbosStub(channel, metadata={"who": "me"}, timeout=10)
            return await stub.get_agent(sdk.GetAgentRequest(agent_id="a1"))

    async with serve(server) as address:
        response = await trio.to_thread.run_sync(asyncio.run, client(address))
    assert (response.found, response.agent.id, response.agent.hostname) == (True, "a1", "me")


async def test_a_unix_socket_serves_too(
    tmp_path: Path, make_server: MakeServer, echo_handler: Handler
) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners(f"unix:{tmp_path}/s")
        peers: list[str] = []

        def handler(call: UnaryCall) -> None:
            peers.append(call.peer)
            call.reply(call.request)

        server = make_server({"Echo": handler})
        await nursery.start(server.serve, listeners)
        assert await trio.to_thread.run_sync(grpcio_call, f"unix:{tmp_path}/s", [b"x"]) == [b"x"]
        assert peers == ["unix:"]
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "s").exists()


async def test_calls_completed_together_by_another_task_are_written_together(
    serve: Serve, make_server: MakeServer, connect: Connect
) -> None:
    """Catches a flush per reply: 500 answers must not be 500 packets."""
    calls: list[UnaryCall] = []
    complete = trio.Event()

    def handler(call: UnaryCall) -> None:
        calls.append(call)
        if len(calls) == 500:
            complete.set()

    async with serve(make_server({"Echo": handler})) as address:
        client = await connect(address)
        streams = [client.raw.request(b"%d" % number) for number in range(500)]
        await client.flush()
        while not complete.is_set():
            with trio.move_on_after(0.01):
                await client.receive()
        for call in calls:
            call.reply(call.request)
        reads = 0
        while not all(client.raw.answers[stream].closed for stream in streams):
            await client.receive()
            reads += 1
        assert reads <= 3


async def test_a_deadline_is_kept_by_the_server(
    serve: Serve, make_server: MakeServer, connect: Connect, autojump_clock: trio.testing.MockClock
) -> None:
    server = make_server({"Echo": lambda _: None})
    async with serve(server) as address:
        client = await connect(address)
        autojump_clock.autojump_threshold = 0.05
        started = trio.current_time()
        later = client.raw.request(b"", grpc_timeout=b"30S")
        sooner = client.raw.request(b"", grpc_timeout=b"10S")
        await client.flush()
        with trio.fail_after(100):
            while not client.raw.answers[sooner].closed:
                await client.receive()
            assert 10 <= trio.current_time() - started < 11
            while not client.raw.answers[later].closed:
                await client.receive()
            assert 30 <= trio.current_time() - started < 31
        assert client.raw.answers[later].status is Status.DEADLINE_EXCEEDED
        assert server.statistics().calls_live == 0


async def test_a_client_that_vanishes_leaves_its_call_answered_and_others_alone(
    serve: Serve, make_server: MakeServer, connect: Connect
) -> None:
    calls: list[UnaryCall] = []
    arrived = trio.Event()

    def handler(call: UnaryCall) -> None:
        if call.request == b"stay":
            call.reply(b"here")
        else:
            calls.append(call)
            arrived.set()

    server = make_server({"Echo": handler})
    async with serve(server) as address:
        doomed, other = await connect(address), await connect(address)
        doomed.raw.request(b"wait")
        await doomed.flush()
        await arrived.wait()
        await trio.aclose_forcefully(doomed.stream)
        while not calls[0].answered:
            await trio.lowlevel.checkpoint()
        assert (await other.call(b"stay")).body == frame(b"here")
        assert server.statistics().calls_live == 0


async def test_garbage_on_one_connection_harms_no_other(
    serve: Serve, make_server: MakeServer, connect: Connect, echo_handler: Handler
) -> None:
    async with serve(make_server({"Echo": echo_handler})) as address:
        bad, good = await connect(address), await connect(address)
        await bad.stream.send_all(b"\x16\x03\x01 not http2" * 100)
        with trio.fail_after(5):
            while await bad.stream.receive_some():
                pass
        assert (await good.call(b"fine")).status is Status.OK


async def test_a_bug_in_a_handler_is_logged_and_answered_and_the_server_lives(
    serve: Serve, make_server: MakeServer, connect: Connect
) -> None:
    def handler(call: UnaryCall) -> None:
        raise ZeroDivisionError("secret")

    async with serve(make_server({"Echo": handler})) as address:
        client = await connect(address)
        with capture_logs() as logs:
            answer = await client.call(b"")
        assert (answer.status, answer.message) == (Status.INTERNAL, "internal error")
        assert [entry["event"] for entry in logs] == ["handler failed"]
        assert (await client.call(b"")).status is Status.INTERNAL


async def test_a_slow_reader_gets_every_byte_in_order_and_blocks_nobody(
    serve: Serve, make_server: MakeServer, connect: Connect
) -> None:
    """Catches a second writer beside the one that waits, and lost parts of writes."""

    def handler(call: UnaryCall) -> None:
        number = int(call.request)
        call.reply(b"%07d" % number * 100_000)

    async with serve(make_server({"Echo": handler})) as address:
        wide = Http2Options(stream_window_bytes=2**20)
        slow, quick = await connect(address, options=wide), await connect(address)
        streams = [slow.raw.request(b"%d" % number) for number in range(20)]
        cancelled = streams[::5]
        await slow.flush()
        for number in range(5):
            assert (await quick.call(b"%d" % number)).status is Status.OK
        for stream in cancelled:
            slow.raw.reset(stream)
        await slow.flush()
        for number, stream in enumerate(streams):
            if stream not in cancelled:
                answer = await slow.answer(stream)
                assert answer.body == frame(b"%07d" % number * 100_000)


async def test_connections_beyond_the_limit_are_closed(
    serve: Serve, make_server: MakeServer, connect: Connect, echo_handler: Handler
) -> None:
    limits = ServerLimits(connections_max=1)
    async with serve(make_server({"Echo": echo_handler}, limits=limits)) as address:
        first = await connect(address)
        assert (await first.call(b"x")).status is Status.OK
        second = await connect(address)
        with trio.fail_after(5):
            with suppress(trio.BrokenResourceError):
                assert await second.stream.receive_some() == b""
        assert (await first.call(b"x")).status is Status.OK


async def test_a_drain_finishes_open_calls_and_refuses_connections(
    serve: Serve, make_server: MakeServer, connect: Connect
) -> None:
    calls: list[UnaryCall] = []
    server = make_server({"Echo": calls.append})
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1:0")
        assert isinstance(listeners[0], trio.SocketListener)
        _, port = listeners[0].socket.getsockname()
        served = trio.Event()

        async def serve_it() -> None:
            await server.serve(listeners)
            served.set()

        nursery.start_soon(serve_it)
        busy, idle = await connect(f"127.0.0.1:{port}"), await connect(f"127.0.0.1:{port}")
        await idle.flush()
        stream = busy.raw.request(b"x")
        await busy.flush()
        while not calls:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(server.drain, 60)
        with trio.fail_after(5):
            while await idle.receive():
                pass
        assert idle.raw.goaway is not None
        await idle.stream.aclose()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        assert not served.is_set()
        calls[0].reply(b"done")
        assert (await busy.answer(stream)).body == frame(b"done")
        with trio.fail_after(5):
            await served.wait()


async def test_a_drain_gives_up_after_its_grace(
    serve: Serve,
    make_server: MakeServer,
    connect: Connect,
    autojump_clock: trio.testing.MockClock,
) -> None:
    calls: list[UnaryCall] = []
    server = make_server({"Echo": calls.append})
    async with serve(server) as address:
        client = await connect(address)
        client.raw.request(b"x")
        await client.flush()
        while not calls:
            await trio.lowlevel.checkpoint()
        started = trio.current_time()
        autojump_clock.autojump_threshold = 0.05
        await server.drain(7)
        assert trio.current_time() - started >= 7
        while not calls[0].answered:
            await trio.lowlevel.checkpoint()


async def test_no_call_that_was_begun_is_lost_in_a_drain(
    make_server: MakeServer, nursery: trio.Nursery
) -> None:
    """Calls come from gRPC core without pause while the server drains beside them."""
    waiting: list[UnaryCall] = []
    begun = 0
    enough = trio.Event()

    def handler(call: UnaryCall) -> None:
        nonlocal begun
        begun += 1
        if begun == 200:
            enough.set()
        waiting.append(call)

    async def answer_later() -> None:
        while True:
            await trio.sleep(0.002)
            calls, waiting[:] = list(waiting), []
            for call in calls:
                call.reply(call.request)

    def client(address: str) -> list[grpc.StatusCode]:
        codes = []
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=options) as channel:
            method = channel.unary_unary("/test.Test/Echo")
            while grpc.StatusCode.UNAVAILABLE not in codes:
                futures = [method.future(b"x", timeout=10) for _ in range(50)]
                codes += [future.code() for future in futures]
        return codes

    server = make_server({"Echo": handler})
    listeners = await open_listeners("127.0.0.1:0")
    await nursery.start(server.serve, listeners)
    nursery.start_soon(answer_later)

    async def drain_soon() -> None:
        await enough.wait()
        await server.drain(10)

    nursery.start_soon(drain_soon)
    codes = await trio.to_thread.run_sync(client, bound_address(listeners[0]))
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert codes.count(grpc.StatusCode.OK) == begun
