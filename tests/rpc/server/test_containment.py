"""One handler, observer or status must not cost anybody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpclib.client
import pytest
import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from structlog.testing import capture_logs

from dbos_actors.rpc.server.interceptors import Interceptor, StreamHandler, UnaryHandler
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.stream import ServerStream
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import Http2Options
from dbos_actors.service.metrics import CallMetrics

Serve = Callable[[Server], AbstractAsyncContextManager[str]]
Connect = Callable[..., Any]
Behave = Callable[[], None]


class Blob(bytes):
    """A message that is its bytes."""

    @classmethod
    def FromString(cls, data: bytes) -> Blob:  # noqa: N802
        return cls(data)

    def SerializeToString(self) -> bytes:  # noqa: N802
        return bytes(self)


class BadService:
    """One method of each kind that behaves as told, beside a slow one that is innocent."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.slow_calls: list[UnaryCall] = []

    def unary(self) -> dict[str, UnaryMethod]:
        return {
            "/test.Test/Unary": UnaryMethod(self._unary, bytes),
            "/test.Test/Slow": UnaryMethod(self.slow_calls.append, bytes),
        }

    def _unary(self, call: UnaryCall) -> None:
        self.behave()
        call.reply(b"")

    async def _stream(self, stream: ServerStream[Any, Any]) -> None:
        self.behave()
        await stream.send_message(b"")

    def __mapping__(self) -> dict[str, Handler]:
        return {"/test.Test/Stream": Handler(self._stream, Cardinality.UNARY_UNARY, Blob, Blob)}

    def server(self, *interceptors: Interceptor) -> Server:
        return Server(
            unary=self.unary(),
            services=[self],
            status_of=lambda error: (Status.UNKNOWN, str(error)),
            interceptors=interceptors,
        )


class Observer(Interceptor):
    """Does something at the end of each call."""

    def __init__(self, observe: Callable[[Status | None], None]) -> None:
        self._observe = observe

    def unary(self, path: str, handler: UnaryHandler) -> UnaryHandler:
        def observed(call: UnaryCall) -> None:
            call.when_answered(self._observe)
            handler(call)

        return observed

    def stream(self, path: str, handler: StreamHandler) -> StreamHandler:
        async def observed(stream: Any) -> None:
            stream.when_answered(self._observe)
            await handler(stream)

        return observed


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def do_nothing() -> None:
    pass


both_kinds = pytest.mark.parametrize("path", [b"/test.Test/Unary", b"/test.Test/Stream"])


@both_kinds
async def test_a_handler_that_lets_asyncios_cancellation_out_fails_only_its_call(
    serve: Serve, connect: Connect, path: bytes
) -> None:
    service = BadService(fail_with(asyncio.CancelledError()))
    async with serve(service.server()) as address:
        bad, good = await connect(address), await connect(address)
        with capture_logs() as logs:
            assert (await bad.call(b"", path=path)).status is Status.INTERNAL
        service.behave = do_nothing
        for client in (bad, good):
            assert (await client.call(b"", path=path)).status is Status.OK
    assert [entry["event"] for entry in logs] == ["handler failed"]


async def test_a_failure_joined_with_a_cancellation_does_not_leave_the_handler(
    serve: Serve, connect: Connect
) -> None:
    """As a nursery raises them when the server is stopped while a handler cleans up badly."""

    class Joined(BadService):
        async def _stream(self, stream: ServerStream[Any, Any]) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._clean_up_badly)
                await trio.sleep_forever()

        async def _clean_up_badly(self) -> None:
            started.set()
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in the handler's end")

    started = trio.Event()
    with capture_logs() as logs:
        async with serve(Joined(do_nothing).server()) as address:
            client = await connect(address)
            client.raw.request(b"", path=b"/test.Test/Stream")
            await client.flush()
            await started.wait()
    assert [entry["event"] for entry in logs] == ["handler failed after its call"]


@both_kinds
@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError()])
async def test_an_observer_that_raises_changes_nothing_for_calls_or_other_observers(
    serve: Serve, connect: Connect, path: bytes, error: BaseException
) -> None:
    seen: list[Status | None] = []
    service = BadService(do_nothing)
    server = service.server(Observer(fail_with(error)), Observer(seen.append))
    async with serve(server) as address:
        client = await connect(address)
        with capture_logs() as logs:
            for _ in range(3):
                assert (await client.call(b"", path=path)).status is Status.OK
        assert server.statistics().calls_live == 0
    assert seen == [Status.OK] * 3
    assert [entry["event"] for entry in logs] == ["an observer of a call's end failed"] * 3


@both_kinds
async def test_every_interceptor_hears_how_a_call_ends(
    serve: Serve, connect: Connect, path: bytes
) -> None:
    metrics, seen = CallMetrics(), list[Status | None]()
    server = BadService(do_nothing).server(metrics, Observer(seen.append))
    async with serve(server) as address:
        client = await connect(address)
        for _ in range(10):
            await client.call(b"", path=path)
    assert seen == [Status.OK] * 10
    calls = next(iter(metrics.families()))
    counted = [sample.value for sample in calls.samples if sample.labels["status"] == "OK"]
    assert sum(counted) == 10


AWKWARD_ERRORS = {
    "bytes": (GRPCError(Status.ABORTED, b"\xff"), "b'\\xff'"),  # type: ignore[arg-type]
    "an error": (GRPCError(Status.ABORTED, KeyError("k")), "'k'"),  # type: ignore[arg-type]
    "spaces": (GRPCError(Status.ABORTED, "  in and around  "), "  in and around  "),
    "only spaces": (GRPCError(Status.ABORTED, " "), " "),
    "tab and line ends": (GRPCError(Status.ABORTED, "\t\r\n"), "\t\r\n"),
    "24 KiB": (GRPCError(Status.ABORTED, "\N{GRINNING FACE}" * 6_144), None),
    "details": (GRPCError(Status.ABORTED, "short", b"x" * 100_000), "short"),
}


@pytest.mark.parametrize("name", AWKWARD_ERRORS)
@pytest.mark.parametrize("path", ["/test.Test/Unary", "/test.Test/Stream"])
async def test_a_status_of_any_content_costs_grpclibs_client_no_other_call(
    serve: Serve, path: str, name: str
) -> None:
    error, expected = AWKWARD_ERRORS[name]
    service = BadService(fail_with(error))

    async def client(address: str) -> tuple[bytes, GRPCError]:
        host, _, port = address.rpartition(":")
        async with grpclib.client.Channel(host, int(port)) as channel:
            slow = grpclib.client.UnaryUnaryMethod(channel, "/test.Test/Slow", Blob, Blob)
            bad = grpclib.client.UnaryUnaryMethod(channel, path, Blob, Blob)
            innocent = asyncio.create_task(slow(Blob(b"slow"), timeout=10))
            await asyncio.sleep(0)
            with pytest.raises(GRPCError) as caught:
                await bad(Blob(b""), timeout=10)
            for call in service.slow_calls:
                call_soon(call.reply, call.request)
            return await innocent, caught.value

    async with serve(service.server()) as address:
        token = trio.lowlevel.current_trio_token()
        call_soon = token.run_sync_soon
        answer, status = await trio.to_thread.run_sync(asyncio.run, client(address))
    assert answer == b"slow"
    assert status.status is Status.ABORTED
    if expected is not None:
        assert status.message == expected


@both_kinds
async def test_a_status_message_with_spaces_at_its_ends_reaches_strict_clients(
    serve: Serve, connect: Connect, path: bytes
) -> None:
    service = BadService(fail_with(GRPCError(Status.ABORTED, "  in and around ")))
    async with serve(service.server()) as address:
        answer = await (await connect(address)).call(b"", path=path)
    assert answer.status is Status.ABORTED
    assert answer.message == "%20%20in and around%20"


async def test_metadata_that_the_client_would_not_accept_fails_the_call_alone(
    serve: Serve, connect: Connect
) -> None:
    class Verbose(BadService):
        async def _stream(self, stream: ServerStream[Any, Any]) -> None:
            request = await stream.recv_message()
            metadata = {"x": "y" * 5_000}
            if request == b"first":
                await stream.send_initial_metadata(metadata=metadata)
            await stream.send_message(b"")
            await stream.send_trailing_metadata(metadata=metadata)

    async with serve(Verbose(do_nothing).server()) as address:
        client = await connect(address, options=Http2Options(header_list_bytes_max=4_000))
        for body in (b"first", b"last"):
            with capture_logs() as logs:
                answer = await client.call(body, path=b"/test.Test/Stream")
            assert answer.status is Status.INTERNAL
            assert "limit of 4000 bytes" in repr(logs[0]["exc_info"])


@pytest.mark.parametrize("path", [b"/test.Test/Unary", b"/test.Test/Stream", b"/no/Where"])
@pytest.mark.parametrize("limit", [1_000, 4_000, 16_384])
@pytest.mark.parametrize("name", ["24 KiB", "details"])
async def test_a_status_fits_into_the_header_block_that_its_client_accepts(
    serve: Serve, connect: Connect, path: bytes, limit: int, name: str
) -> None:
    service = BadService(fail_with(AWKWARD_ERRORS[name][0]))
    async with serve(service.server()) as address:
        client = await connect(address, options=Http2Options(header_list_bytes_max=limit))
        slow = client.raw.request(b"", path=b"/test.Test/Slow")
        answer = await client.call(b"", path=path)
        assert answer.status in {Status.ABORTED, Status.UNIMPLEMENTED}
        service.slow_calls[0].reply(b"slow")
        assert (await client.answer(slow)).body == frame(b"slow")
        if path != b"/no/Where":
            assert answer.message.startswith("short" if name == "details" else "%F0%9F%98%80")
