"""The interoperability cases of grpc.io with gRPC core as the client, against our server.

The service is grpc.testing.TestService in well-known types: a payload's size is what is
asked for. The same cases against our channel are in `test_client_interop`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, Int32Value, StringValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.listeners import bound_address, open_listeners
from dbos_actors.rpc.server.server import Server

SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
LARGE_REQUEST = 271_828
SIZES = (31_415, 9, 2_653, 58_979)
TIMEOUT_S = 10.0


class TestService:
    """Written as a grpclib service; nothing in it knows that it runs on Trio but its sleep."""

    __test__ = False

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    async def empty(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(Empty())

    async def unary(self, stream: Any) -> None:
        request = await stream.recv_message()
        metadata = stream.metadata
        await stream.send_initial_metadata(
            metadata={k: v for k, v in metadata.items() if k == "x-grpc-test-echo-initial"}
        )
        await stream.send_message(BytesValue(value=bytes(len(request.value) + 1)))
        await stream.send_trailing_metadata(
            metadata={k: v for k, v in metadata.items() if k == "x-grpc-test-echo-trailing-bin"}
        )

    async def size_of(self, stream: Any) -> None:
        total = 0
        async for message in stream:
            total += len(message.value)
        await stream.send_message(Int32Value(value=total))

    async def sizes(self, stream: Any) -> None:
        request = await stream.recv_message()
        for size in request.value.decode().split(","):
            await stream.send_message(BytesValue(value=bytes(int(size))))

    async def ping_pong(self, stream: Any) -> None:
        try:
            async for message in stream:
                await stream.send_message(BytesValue(value=bytes(message.value)))
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def sleep(self, stream: Any) -> None:
        async for _ in stream:
            await trio.sleep_forever()

    async def status(self, stream: Any) -> None:
        request = await stream.recv_message()
        raise GRPCError(Status.UNKNOWN, request.value)

    def __mapping__(self) -> dict[str, Handler]:
        unary, both = Cardinality.UNARY_UNARY, Cardinality.STREAM_STREAM
        return {
            "/test.TestService/EmptyCall": Handler(self.empty, unary, Empty, Empty),
            "/test.TestService/UnaryCall": Handler(self.unary, unary, BytesValue, BytesValue),
            "/test.TestService/SizeOf": Handler(
                self.size_of, Cardinality.STREAM_UNARY, BytesValue, Int32Value
            ),
            "/test.TestService/Sizes": Handler(
                self.sizes, Cardinality.UNARY_STREAM, BytesValue, BytesValue
            ),
            "/test.TestService/PingPong": Handler(self.ping_pong, both, Int32Value, BytesValue),
            "/test.TestService/Sleep": Handler(self.sleep, both, Empty, Empty),
            "/test.TestService/Status": Handler(self.status, unary, StringValue, Empty),
        }


def status_of(error: Exception) -> tuple[Status, str]:
    return Status.UNKNOWN, str(error)


@pytest.fixture
def service() -> TestService:
    return TestService()


@pytest.fixture
def address(service: TestService) -> Iterator[str]:
    ready = threading.Event()
    found: list[Any] = []

    async def serve() -> None:
        with trio.CancelScope() as scope:
            listeners = await open_listeners("127.0.0.1:0")
            server = Server(
                unary={},
                services=[service],
                status_of=status_of,
                limits=ServerLimits(compress_bytes_min=1_000),
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, listeners)
                found.extend((bound_address(listeners[0]), trio.lowlevel.current_trio_token()))
                found.append(scope.cancel)
                ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(TIMEOUT_S)
    yield found[0]
    found[1].run_sync_soon(found[2])
    thread.join()


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def method(channel: grpc.Channel, kind: str, name: str, response: Any) -> Any:
    return getattr(channel, kind)(
        f"/test.TestService/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


def test_empty_unary(channel: grpc.Channel) -> None:
    call = method(channel, "unary_unary", "EmptyCall", Empty)
    assert call(Empty(), timeout=TIMEOUT_S) == Empty()


def test_large_unary(channel: grpc.Channel) -> None:
    call = method(channel, "unary_unary", "UnaryCall", BytesValue)
    response = call(BytesValue(value=bytes(LARGE_REQUEST)), timeout=TIMEOUT_S)
    assert len(response.value) == LARGE_REQUEST + 1


def test_client_streaming(channel: grpc.Channel) -> None:
    call = method(channel, "stream_unary", "SizeOf", Int32Value)
    requests = (BytesValue(value=bytes(size)) for size in (27_182, 8, 1_828, 45_904))
    assert call(requests, timeout=TIMEOUT_S).value == 74_922


def test_server_streaming(channel: grpc.Channel) -> None:
    call = method(channel, "unary_stream", "Sizes", BytesValue)
    request = BytesValue(value=",".join(map(str, SIZES)).encode())
    responses = call(request, timeout=TIMEOUT_S)
    assert tuple(len(response.value) for response in responses) == SIZES


def test_ping_pong(channel: grpc.Channel) -> None:
    call = method(channel, "stream_stream", "PingPong", BytesValue)
    turn = threading.Semaphore(0)

    def requests() -> Iterator[Int32Value]:
        for size in SIZES:
            yield Int32Value(value=size)
            assert turn.acquire(timeout=TIMEOUT_S)

    sizes = []
    for response in call(requests(), timeout=TIMEOUT_S):
        sizes.append(len(response.value))
        turn.release()
    assert tuple(sizes) == SIZES


def test_empty_stream(channel: grpc.Channel) -> None:
    call = method(channel, "stream_stream", "PingPong", BytesValue)
    assert list(call(iter(()), timeout=TIMEOUT_S)) == []


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.NoCompression])
def test_compressed_unary_and_streaming(
    channel: grpc.Channel, compression: grpc.Compression
) -> None:
    unary = method(channel, "unary_unary", "UnaryCall", BytesValue)
    response = unary(
        BytesValue(value=bytes(LARGE_REQUEST)), timeout=TIMEOUT_S, compression=compression
    )
    assert len(response.value) == LARGE_REQUEST + 1
    stream = method(channel, "stream_unary", "SizeOf", Int32Value)
    requests = (BytesValue(value=bytes(size)) for size in (27_182, 45_904))
    assert stream(requests, timeout=TIMEOUT_S, compression=compression).value == 73_086


def test_cancel_after_begin(channel: grpc.Channel) -> None:
    call = method(channel, "stream_unary", "SizeOf", Int32Value)
    released = threading.Event()

    def requests() -> Iterator[BytesValue]:
        released.wait(TIMEOUT_S)
        yield from ()

    future = call.future(requests(), timeout=TIMEOUT_S)
    future.cancel()
    released.set()
    assert future.code() is grpc.StatusCode.CANCELLED


def test_cancel_after_first_response(channel: grpc.Channel, service: TestService) -> None:
    call = method(channel, "stream_stream", "PingPong", BytesValue)
    released = threading.Event()

    def requests() -> Iterator[Int32Value]:
        yield Int32Value(value=31_415)
        released.wait(TIMEOUT_S)

    responses = call(requests(), timeout=TIMEOUT_S)
    assert len(next(responses).value) == 31_415
    responses.cancel()
    assert responses.code() is grpc.StatusCode.CANCELLED
    released.set()
    assert service.cancelled.wait(TIMEOUT_S), "the handler goes on"


def test_timeout_on_sleeping_server(channel: grpc.Channel) -> None:
    call = method(channel, "stream_stream", "Sleep", Empty)
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as failed:
        list(call(iter([Empty()]), timeout=0.05))
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < TIMEOUT_S / 2


def test_custom_metadata(channel: grpc.Channel) -> None:
    metadata = [
        ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
        ("x-grpc-test-echo-trailing-bin", b"\x0a\x0b\x0a\x0b\x0a\x0b"),
    ]
    unary = method(channel, "unary_unary", "UnaryCall", BytesValue)
    _, call = unary.with_call(BytesValue(value=b"x"), timeout=TIMEOUT_S, metadata=metadata)
    assert metadata[0] in [tuple(pair) for pair in call.initial_metadata()]
    assert metadata[1] in [tuple(pair) for pair in call.trailing_metadata()]


@pytest.mark.parametrize("message", ["test status message", SPECIAL])
def test_status_code_and_message(channel: grpc.Channel, message: str) -> None:
    call = method(channel, "unary_unary", "Status", Empty)
    with pytest.raises(grpc.RpcError) as failed:
        call(StringValue(value=message), timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.UNKNOWN
    assert failed.value.details() == message


@pytest.mark.parametrize("path", ["/test.TestService/Nothing", "/test.Nobody/UnaryCall"])
def test_unimplemented_method_and_service(channel: grpc.Channel, path: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(path)(b"", timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("first", [1, 16_000, 27_182, 32_761, 32_762, 40_000, 65_000])
@pytest.mark.parametrize("second", [32_000, 32_762, 32_763, 45_904, 65_530, 65_531, 200_000])
def test_messages_of_any_sizes_in_a_row_fit_through_the_window(
    channel: grpc.Channel, first: int, second: int
) -> None:
    # Mutation: acknowledge early only what is larger than a whole window. The engine keeps
    # back acknowledgements of less than half of one, and the second message never ends.
    call = method(channel, "stream_unary", "SizeOf", Int32Value)
    sizes = [first, second, first]
    requests = (BytesValue(value=bytes(size)) for size in sizes)
    assert call(requests, timeout=TIMEOUT_S).value == sum(sizes)
