"""The client channel against gRPC core: the interoperability cases of grpc.io, in both roles'
words, with well-known types for messages; and TLS.
"""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, Int32Value
from grpclib.client import (
    StreamStreamMethod,
    StreamUnaryMethod,
    UnaryStreamMethod,
    UnaryUnaryMethod,
)
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.client.channel import Channel, ChannelOptions
from dbos_actors.rpc.server.listeners import TlsListener, open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.tls import server_context

BOTH = Cardinality.STREAM_STREAM


class TestService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """What grpc.testing.TestService does; a payload's size is what is asked for."""

    __test__ = False

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        kinds: dict[str, tuple[Any, Any, Any]] = {
            "EmptyCall": (grpc.unary_unary_rpc_method_handler, self.empty, Empty),
            "UnaryCall": (grpc.unary_unary_rpc_method_handler, self.unary, BytesValue),
            "SizeOf": (grpc.stream_unary_rpc_method_handler, self.size_of, BytesValue),
            "Sizes": (grpc.unary_stream_rpc_method_handler, self.sizes, BytesValue),
            "PingPong": (grpc.stream_stream_rpc_method_handler, self.ping_pong, Int32Value),
            "Sleep": (grpc.unary_unary_rpc_method_handler, self.sleep, Empty),
        }
        if not details.method.startswith("/test.TestService/") or name not in kinds:
            return None
        make, function, kind = kinds[name]
        return make(
            function,
            request_deserializer=kind.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def empty(self, _request: Empty, context: grpc.ServicerContext) -> Empty:
        return Empty()

    def unary(self, request: BytesValue, context: grpc.ServicerContext) -> BytesValue:
        for key, value in context.invocation_metadata():
            if key == "x-grpc-test-echo-initial":
                context.send_initial_metadata([(key, value)])
            if key == "x-grpc-test-echo-trailing-bin":
                context.set_trailing_metadata([(key, value)])
            if key == "fail-bin":
                context.abort(grpc.StatusCode.UNKNOWN, value.decode())
            if key == "compress":
                context.set_compression(grpc.Compression.Gzip)
        return request

    def size_of(self, requests: Iterator[BytesValue], context: grpc.ServicerContext) -> Int32Value:
        return Int32Value(value=sum(len(request.value) for request in requests))

    def sizes(self, request: BytesValue, context: grpc.ServicerContext) -> Iterator[BytesValue]:
        for size in (31_415, 9, 2_653, 58_979):
            yield BytesValue(value=bytes(size))

    def ping_pong(
        self, requests: Iterator[Int32Value], context: grpc.ServicerContext
    ) -> Iterator[BytesValue]:
        context.add_callback(self.cancelled.set)
        for request in requests:
            yield BytesValue(value=bytes(request.value))

    def sleep(self, _request: Empty, context: grpc.ServicerContext) -> Empty:
        threading.Event().wait(0.2)
        return Empty()


def start_server(service: TestService, add_port: Callable[[grpc.Server], int]) -> tuple[Any, int]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    server.add_generic_rpc_handlers([service])
    port = add_port(server)
    server.start()
    return server, port


@pytest.fixture
def service() -> TestService:
    return TestService()


@pytest.fixture
def port(service: TestService) -> Iterator[int]:
    server, port = start_server(service, lambda s: s.add_insecure_port("127.0.0.1:0"))
    yield port
    server.stop(None).wait()


class Stub:
    """grpclib's methods of it."""

    def __init__(self, channel: Any) -> None:
        def method(kind: Any, name: str, *types: type) -> Any:
            return kind(channel, f"/test.TestService/{name}", *types)

        self.empty = method(UnaryUnaryMethod, "EmptyCall", Empty, Empty)
        self.unary = method(UnaryUnaryMethod, "UnaryCall", BytesValue, BytesValue)
        self.size_of = method(StreamUnaryMethod, "SizeOf", BytesValue, Int32Value)
        self.sizes = method(UnaryStreamMethod, "Sizes", BytesValue, BytesValue)
        self.ping_pong = method(StreamStreamMethod, "PingPong", Int32Value, BytesValue)
        self.sleep = method(UnaryUnaryMethod, "Sleep", Empty, Empty)
        self.unimplemented = method(UnaryUnaryMethod, "Unimplemented", Empty, Empty)
        self.unknown_service = UnaryUnaryMethod(channel, "/test.Unknown/EmptyCall", Empty, Empty)


async def test_empty_unary(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        assert await Stub(channel).empty(Empty()) == Empty()


async def test_large_unary(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        request = BytesValue(value=bytes(3_000_000))
        assert await Stub(channel).unary(request, timeout=20) == request


async def test_client_streaming(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        sizes = (27_182, 8, 1_828, 45_904, 1_000_000)
        reply = await Stub(channel).size_of([BytesValue(value=bytes(size)) for size in sizes])
        assert reply == Int32Value(value=sum(sizes))


async def test_server_streaming(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        replies = await Stub(channel).sizes(BytesValue())
        assert [len(reply.value) for reply in replies] == [31_415, 9, 2_653, 58_979]


async def test_ping_pong(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel, Stub(channel).ping_pong.open() as stream:
        for size in (31_415, 9, 2_653, 58_979, 2_000_000):
            await stream.send_message(Int32Value(value=size))
            assert len((await stream.recv_message()).value) == size
        await stream.end()
        assert await stream.recv_message() is None


async def test_empty_stream(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        assert await Stub(channel).ping_pong([]) == []


async def test_cancel_after_begin(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        async with Stub(channel).size_of.open() as stream:
            await stream.send_request()
            await stream.cancel()
            with pytest.raises(GRPCError) as caught:
                await stream.recv_message()
        assert caught.value.status is Status.CANCELLED
        assert await Stub(channel).empty(Empty()) == Empty()


async def test_cancel_after_first_response(port: int, service: TestService) -> None:
    async with Channel("127.0.0.1", port) as channel:
        async with Stub(channel).ping_pong.open() as stream:
            await stream.send_message(Int32Value(value=31_415))
            assert len((await stream.recv_message()).value) == 31_415
            await stream.cancel()
            with pytest.raises(GRPCError) as caught:
                await stream.recv_message()
        assert caught.value.status is Status.CANCELLED
        assert await trio.to_thread.run_sync(service.cancelled.wait, 5)


async def test_timeout_on_sleeping_server(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        with pytest.raises(GRPCError) as caught:
            await Stub(channel).sleep(Empty(), timeout=0.02)
        assert caught.value.status is Status.DEADLINE_EXCEEDED


async def test_custom_metadata(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        metadata = {
            "x-grpc-test-echo-initial": "test_initial_metadata_value",
            "x-grpc-test-echo-trailing-bin": b"\xab\xab\xab",
        }
        async with Stub(channel).unary.open(metadata=metadata) as stream:
            await stream.send_message(BytesValue(value=b"x"))
            assert await stream.recv_message() == BytesValue(value=b"x")
            await stream.recv_trailing_metadata()
            initial, trailing = stream.initial_metadata, stream.trailing_metadata
        assert initial["x-grpc-test-echo-initial"] == "test_initial_metadata_value"
        assert trailing["x-grpc-test-echo-trailing-bin"] == b"\xab\xab\xab"


@pytest.mark.parametrize(
    "message",
    ["test status message", "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"],
)
async def test_status_code_and_message(port: int, message: str) -> None:
    async with Channel("127.0.0.1", port) as channel:
        with pytest.raises(GRPCError) as caught:
            await Stub(channel).unary(BytesValue(), metadata={"fail-bin": message.encode()})
    assert (caught.value.status, caught.value.message) == (Status.UNKNOWN, message)


async def test_unimplemented_method_and_service(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel:
        for method in (Stub(channel).unimplemented, Stub(channel).unknown_service):
            with pytest.raises(GRPCError) as caught:
                await method(Empty())
            assert caught.value.status is Status.UNIMPLEMENTED


async def test_compressed_unary_both_ways(port: int) -> None:
    options = ChannelOptions(compress_bytes_min=0)
    async with Channel("127.0.0.1", port, options=options) as channel:
        request = BytesValue(value=bytes(271_828))
        assert await Stub(channel).unary(request, metadata={"compress": "yes"}) == request


async def test_many_at_once(port: int) -> None:
    async with Channel("127.0.0.1", port) as channel, trio.open_nursery() as nursery:

        async def call(size: int) -> None:
            request = BytesValue(value=bytes(size))
            assert await Stub(channel).unary(request, timeout=30) == request
            assert len(await Stub(channel).ping_pong([Int32Value(value=size)] * 3)) == 3

        for n in range(60):
            nursery.start_soon(call, n * 1_000)
    assert channel.statistics().connections_total == 1


async def test_a_server_that_stops_and_comes_back(service: TestService) -> None:
    server, port = start_server(service, lambda s: s.add_insecure_port("127.0.0.1:0"))
    async with Channel("127.0.0.1", port) as channel:
        assert await Stub(channel).empty(Empty()) == Empty()
        await trio.to_thread.run_sync(server.stop(None).wait)
        with pytest.raises(GRPCError) as caught:
            await Stub(channel).empty(Empty())
        assert caught.value.status is Status.UNAVAILABLE
        server, _ = start_server(service, lambda s: s.add_insecure_port(f"127.0.0.1:{port}"))
        request = channel.request(
            "/test.TestService/EmptyCall",
            Cardinality.UNARY_UNARY,
            Empty,
            Empty,
            timeout=10,
            wait_for_ready=True,
        )
        async with request as stream:
            await stream.send_message(Empty(), end=True)
            assert await stream.recv_message() == Empty()
        await trio.to_thread.run_sync(server.stop(None).wait)


# ----------------------------------------------------------------------- TLS


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost; it is its own authority."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext"]
    command += ["subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:other.test"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


async def test_tls_with_grpc_core(service: TestService, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    server, port = start_server(service, lambda s: s.add_secure_port("127.0.0.1:0", credentials))
    async with Channel("127.0.0.1", port, ssl=trusting(certificate)) as channel:
        request = BytesValue(value=bytes(3_000_000))
        assert await Stub(channel).unary(request, timeout=20) == request
    async with Channel("127.0.0.1", port, ssl=True) as channel:
        with pytest.raises(GRPCError, match=r"cannot connect.*CERTIFICATE_VERIFY_FAILED"):
            await Stub(channel).empty(Empty())
    async with Channel("127.0.0.1", port) as channel:  # in clear, to a server that wants TLS
        with pytest.raises(GRPCError) as caught:
            await Stub(channel).empty(Empty())
        assert caught.value.status is Status.UNAVAILABLE
    await trio.to_thread.run_sync(server.stop(None).wait)


async def test_mutual_tls_and_names_with_our_own_server(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    known, known_key = make_certificate(tmp_path, "known")

    def who(call: UnaryCall) -> None:
        assert call.peer_certificate is not None
        call.reply(str(call.peer_certificate["subject"]).encode())

    server = Server(
        unary={"/test.Test/Who": UnaryMethod(who, bytes)},
        status_of=lambda error: (Status.UNKNOWN, str(error)),
    )
    context = server_context(certificate, key, client_authorities=known)
    listeners = await open_listeners("127.0.0.1:0", tls=lambda: context)
    await nursery.start(server.serve, listeners)
    listener = listeners[0]
    assert isinstance(listener, TlsListener)
    assert isinstance(listener.listener, trio.SocketListener)
    port = listener.listener.socket.getsockname()[1]

    ours = trusting(certificate)
    ours.load_cert_chain(known, known_key)
    named = ChannelOptions(server_hostname="other.test")
    for options in (ChannelOptions(), named):
        async with Channel("127.0.0.1", port, ssl=ours, options=options) as channel:
            assert b"known" in await channel.unary("/test.Test/Who", b"")
            request = channel.request("/test.Test/Who", Cardinality.UNARY_UNARY, bytes, bytes)
            async with request as stream:
                await stream.send_message(b"")
                assert stream.peer is not None
                assert "server" in str(stream.peer.cert())
    wrong = ChannelOptions(server_hostname="wrong.test")
    for context, options in ((ours, wrong), (trusting(certificate), ChannelOptions())):
        async with Channel("127.0.0.1", port, ssl=context, options=options) as channel:
            with pytest.raises(GRPCError) as caught:
                await channel.unary("/test.Test/Who", b"")
            assert caught.value.status is Status.UNAVAILABLE
    nursery.cancel_scope.cancel()


async def test_a_server_whose_tls_has_no_h2_is_refused(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()

    await nursery.start(trio.serve_listeners, serve, [trio.SSLListener(listeners[0], context)])
    port = listeners[0].socket.getsockname()[1]
    async with Channel("127.0.0.1", port, ssl=trusting(certificate)) as channel:
        with pytest.raises(GRPCError, match="does not speak HTTP/2 over TLS"):
            await channel.unary("/a/b", b"")
    nursery.cancel_scope.cancel()
