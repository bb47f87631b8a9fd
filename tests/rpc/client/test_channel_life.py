"""A channel while its server is busy, drains or is remote, and while it closes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.client.channel import BackoffPolicy, Channel, ChannelOptions, ChannelState
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import open_listeners
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.wire.http2 import Http2Options
from tests.rpc.client.echo_service import (
    BOTH,
    UNARY,
    Serve,
    Stub,
    make_server,
    open_channel,
    until,
    value,
)

# --------------------------------------------------------------- connections


async def test_calls_beyond_the_servers_limit_wait_their_turn(serve: Serve) -> None:
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=3))
    live = most = 0

    async def count(stream: ServerStream[BytesValue, BytesValue]) -> None:
        nonlocal live, most
        live += 1
        most = max(most, live)
        message = await stream.recv_message()
        assert message is not None
        await trio.sleep(0.001)
        live -= 1
        await stream.send_message(message)

    server = make_server(limits=limits, Count=(count, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        replies = []

        async def call(n: int) -> None:
            body = value(b"%d" % n)
            assert body.SerializeToString() == await channel.unary(
                "/test.Test/Count", body.SerializeToString()
            )
            replies.append(n)

        async with trio.open_nursery() as nursery:
            for n in range(60):
                nursery.start_soon(call, n)
        assert sorted(replies) == [*range(60)]
        assert most == 3
        assert channel.statistics().connections_total == 1


async def test_a_call_that_waits_for_its_turn_has_its_deadline(serve: Serve) -> None:
    limits = ServerLimits(http2=Http2Options(concurrent_streams_max=1))
    server = make_server(limits=limits)
    async with serve(server) as address, open_channel(address) as channel:
        types = (BytesValue, BytesValue)
        async with channel.request("/test.Test/Wait", BOTH, *types) as stream:
            await stream.send_request()
            with pytest.raises(GRPCError, match="deadline exceeded"):
                await channel.unary("/test.Test/Plain", b"", timeout=0.02)
            with trio.move_on_after(0.02):
                await channel.unary("/test.Test/Plain", b"")
            assert channel.statistics().calls_waiting == 0
            await stream.cancel()
        assert await channel.unary("/test.Test/Plain", b"x") == b"x"


async def test_draining_servers_lose_no_call(serve: Serve) -> None:
    """Two servers in turn on one address, each drained under load."""
    path_calls = 0
    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1:0")
        listener = listeners[0]
        assert isinstance(listener, trio.SocketListener)
        port = listener.socket.getsockname()[1]
        server = make_server()
        await nursery.start(server.serve, listeners)
        done = False
        options = ChannelOptions(wait_for_ready=True, backoff=BackoffPolicy(first_s=0.01))
        async with Channel("127.0.0.1", port, options=options) as channel:

            async def call() -> None:
                nonlocal path_calls
                while not done:
                    await channel.unary("/test.Test/Plain", b"x", timeout=20)
                    path_calls += 1

            async def until_calls(count: int) -> None:
                await until(lambda: path_calls >= count)

            async with trio.open_nursery() as callers:
                for _ in range(10):
                    callers.start_soon(call)
                for _ in range(3):
                    await until_calls(path_calls + 50)
                    successor = make_server()
                    # The port is taken over, as a process with a passed socket would.
                    old, server = server, successor
                    await old.drain(5)
                    listeners = await open_listeners(f"127.0.0.1:{port}")
                    await nursery.start(server.serve, listeners)
                done = True
            assert channel.statistics().connections_total >= 3
        nursery.cancel_scope.cancel()


async def test_unix_sockets_are_spoken_to(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with trio.open_nursery() as nursery:
        await nursery.start(make_server().serve, await open_listeners(f"unix:{path}"))
        async with Channel(path=path) as channel:
            assert await channel.unary("/test.Test/Plain", b"x") == b"x"
            assert channel.state is ChannelState.READY
        nursery.cancel_scope.cancel()
    with pytest.raises(ValueError, match="path"):
        Channel("host", path=path)


async def test_requests_are_compressed_if_asked_for(serve: Serve) -> None:
    limits = ServerLimits(compress_bytes_min=100)
    async with (
        serve(make_server(limits=limits)) as address,
        open_channel(address, compress_bytes_min=1_000) as channel,
    ):
        for size in (0, 500, 5_000, 500_000):
            assert await Stub(channel).Echo(value(bytes(size))) == value(bytes(size))


async def test_responses_larger_than_the_limit_are_refused(serve: Serve) -> None:
    async with (
        serve(make_server()) as address,
        open_channel(address, message_bytes_max=1_000) as channel,
    ):
        with pytest.raises(GRPCError, match="response message of 2000 bytes") as caught:
            await channel.unary("/test.Test/Plain", bytes(2_000))
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        assert await channel.unary("/test.Test/Plain", b"x") == b"x"


async def test_closing_the_channel_ends_its_calls(serve: Serve) -> None:
    async with serve(make_server()) as address:
        channel = open_channel(address)
        caught = []

        async def call() -> None:
            with pytest.raises(GRPCError) as error:
                await Stub(channel).Wait([value(b"")])
            caught.append(error.value.status)

        async with trio.open_nursery() as nursery:
            async with channel:
                nursery.start_soon(call)
                nursery.start_soon(call)
                await until(lambda: channel.statistics().calls_live == 2)
            assert channel.state is ChannelState.SHUTDOWN
        assert caught == [Status.CANCELLED] * 2
        with pytest.raises(GRPCError, match="closed"):
            await channel.unary("/test.Test/Plain", b"")
        with pytest.raises(RuntimeError):
            await channel.__aenter__()


async def test_a_channel_may_be_closed_inside_its_block(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        await channel.unary("/test.Test/Plain", b"")
        channel.close()
        await trio.lowlevel.checkpoint()  # the block is not cancelled
        for _ in range(2):
            with pytest.raises(GRPCError, match="closed") as caught:
                await channel.unary("/test.Test/Plain", b"")
            assert caught.value.status is Status.CANCELLED
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert channel.statistics().connections == 0


async def test_a_failure_of_the_channels_own_is_not_lost(serve: Serve) -> None:
    async def bug() -> None:
        raise AssertionError("bug")

    with pytest.RaisesGroup(pytest.RaisesGroup(AssertionError)):
        async with Channel() as channel:
            channel.start_soon(bug)
            await trio.sleep_forever()


async def test_the_blocks_own_error_comes_out_as_it_is(serve: Serve) -> None:
    async with serve(make_server()) as address:
        with pytest.raises(LookupError, match="mine"):  # noqa: PT012
            async with open_channel(address) as channel:
                await channel.unary("/test.Test/Plain", b"")
                raise LookupError("mine")
        with trio.CancelScope() as scope:
            async with open_channel(address) as channel:
                await channel.unary("/test.Test/Plain", b"")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
