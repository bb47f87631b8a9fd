"""Calls of the client channel against this package's own server: messages, metadata, statuses."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from grpclib.const import Status
from grpclib.events import RecvTrailingMetadata, SendRequest, listen
from grpclib.exceptions import GRPCError, ProtocolError

from dbos_actors.rpc.client.channel import Channel
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.wire.metadata import MetadataError
from tests.rpc.client.echo_service import (
    BOTH,
    UNARY,
    Serve,
    Stub,
    make_server,
    method,
    open_channel,
    value,
)


async def test_grpclib_stubs_of_all_cardinalities_run_unchanged(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        stub = Stub(channel)
        messages = [value(b"a"), value(b""), value(b"c" * 100_000)]
        assert await stub.Echo(value(b"x")) == value(b"x")
        assert await stub.Thrice(value(b"x")) == [value(b"x")] * 3
        assert await stub.Join(messages) == value(b"ac" + b"c" * 99_999)
        assert await stub.EchoAll(messages) == messages
        assert await stub.EchoAll([]) == []
        assert channel.statistics().connections_total == 1


async def test_serialised_messages_have_a_short_way(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        for size in (0, 1, 70_000, 4_000_000):
            body = bytes(size)
            assert await channel.unary("/test.Test/Plain", body, timeout=10) == body
        with pytest.raises(GRPCError, match="unknown method") as caught:
            await channel.unary("/test.Test/Nothing", b"")
        assert caught.value.status is Status.UNIMPLEMENTED


# ------------------------------------------------------------------ metadata


async def greet(stream: ServerStream[BytesValue, BytesValue]) -> None:
    """Sends the request's metadata back twice, as initial and as trailing metadata."""
    message = await stream.recv_message()
    assert message is not None
    given = [(key, item) for key, item in stream.metadata.items() if key.startswith("x-")]
    await stream.send_initial_metadata(metadata=given)
    await stream.send_message(message)
    await stream.send_trailing_metadata(metadata=given)


async def test_metadata_goes_both_ways_binary_too(serve: Serve) -> None:
    server = make_server(Greet=(greet, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        given: list[tuple[str, str | bytes]] = [
            ("x-text", "a b"),
            ("x-data-bin", b"\x00\xff\x01"),
            ("x-text", "c"),
        ]
        request = channel.request("/test.Test/Greet", UNARY, BytesValue, BytesValue, metadata=given)
        async with request as stream:
            await stream.send_message(value(b"x"), end=True)
            assert str(stream.peer).startswith("ipv4:127.0.0.1:")
            assert stream.peer is not None
            assert stream.peer.addr() == ("127.0.0.1", int(address.rpartition(":")[2]))
            await stream.recv_initial_metadata()
            assert [*stream.initial_metadata.items()] == given  # type: ignore[union-attr]
            assert await stream.recv_message() == value(b"x")
            await stream.recv_trailing_metadata()
            assert [*stream.trailing_metadata.items()] == given  # type: ignore[union-attr]


async def test_metadata_that_must_not_be_sent_is_refused(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        for metadata in ({"grpc-x": "a"}, {"Upper": "a"}, {"a": "\n"}, {"a-bin": "text"}):
            with pytest.raises(MetadataError):
                await Stub(channel).Echo(value(b""), metadata=metadata)
        with pytest.raises(GRPCError, match="larger than the server's limit") as caught:
            await Stub(channel).Echo(value(b""), metadata={"a": "x" * 100_000})
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        assert await Stub(channel).Echo(value(b"x")) == value(b"x")


async def test_listeners_of_grpclib_are_heard(serve: Serve) -> None:
    async def add_token(event: SendRequest) -> None:
        event.metadata["x-token"] = event.method_name

    seen = []

    async def see(event: RecvTrailingMetadata) -> None:
        seen.append((event.status, event.metadata["x-token"]))

    server = make_server(Greet=(greet, UNARY))
    async with serve(server) as address, open_channel(address) as channel:
        listen(channel, SendRequest, add_token)
        listen(channel, RecvTrailingMetadata, see)
        greeting = method(channel, "Greet")
        await greeting(value(b""))
    assert seen == [(Status.OK, "/test.Test/Greet")]


# -------------------------------------------------------------------- status


async def fail(stream: ServerStream[BytesValue, BytesValue]) -> None:
    """Sends a message, then a status with details."""
    await stream.recv_message()
    await stream.send_message(value(b"before"))
    details = [StringValue(value="what"), AnyMessage(type_url="x/y")]
    raise GRPCError(Status.DATA_LOSS, "gone: \N{SNOWMAN}", details)


async def test_a_status_is_raised_with_its_message_and_details(serve: Serve) -> None:
    server = make_server(Fail=(fail, BOTH))
    async with serve(server) as address, open_channel(address) as channel:
        request = channel.request("/test.Test/Fail", BOTH, BytesValue, BytesValue)
        with pytest.raises(GRPCError) as caught:  # noqa: PT012
            async with request as stream:
                await stream.send_message(value(b""), end=True)
                assert await stream.recv_message() == value(b"before")
                await stream.recv_message()
        error = caught.value
        assert (error.status, error.message) == (Status.DATA_LOSS, "gone: \N{SNOWMAN}")
        assert error.details == [StringValue(value="what"), AnyMessage(type_url="x/y")]


async def test_a_status_is_raised_at_the_end_of_the_block_at_the_latest(serve: Serve) -> None:
    server = make_server(Fail=(fail, BOTH))
    async with serve(server) as address, open_channel(address) as channel:
        request = channel.request("/test.Test/Fail", BOTH, BytesValue, BytesValue)
        with pytest.raises(GRPCError, match="gone"):
            async with request as stream:
                await stream.send_message(value(b""), end=True)


async def test_misuse_is_a_protocol_error(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        types = (BytesValue, BytesValue)
        async with channel.request("/test.Test/Echo", UNARY, *types) as stream:
            for early in (stream.recv_message, stream.recv_initial_metadata, stream.end):
                with pytest.raises(ProtocolError):
                    await early()
            with pytest.raises(ProtocolError):
                await stream.send_request(end=True)
            with pytest.raises(TypeError):
                await stream.send_message(StringValue())  # type: ignore[arg-type]
            await stream.send_message(value(b""))
            for late in (stream.send_request(), stream.send_message(value(b""))):
                with pytest.raises(ProtocolError):
                    await late
            await stream.recv_initial_metadata()
            with pytest.raises(ProtocolError):
                await stream.recv_initial_metadata()
            await stream.recv_trailing_metadata()
            with pytest.raises(ProtocolError):
                await stream.recv_trailing_metadata()
        with pytest.raises(ProtocolError, match="has not ended"):
            async with channel.request("/test.Test/EchoAll", BOTH, *types) as stream:
                await stream.send_request()
        async with channel.request("/test.Test/Echo", UNARY, *types):
            pass  # a call that was not made is none
    with pytest.raises(RuntimeError, match="async with"):
        await Channel().unary("/a/b", b"")


async def test_undecodable_responses_fail_their_call_only(serve: Serve) -> None:
    async with serve(make_server()) as address, open_channel(address) as channel:
        plain = method(channel, "Plain")
        with pytest.raises(GRPCError, match="cannot be decoded") as caught:
            await plain(b"\xff\xff")
        assert caught.value.status is Status.INTERNAL
