"""The pages for operators: what they answer, and that nobody can use them up."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import trio
import trio.testing

from dbos_actors.service import http_pages as pages
from dbos_actors.service.http_pages import CONNECTIONS_MAX, REQUEST_BYTES_MAX, Page, serve_pages


@asynccontextmanager
async def served(render: Callable[[], Page]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_pages, "127.0.0.1", 0, {"/page": render})
        nursery.cancel_scope.cancel()


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def answer(stream: trio.SocketStream) -> bytes:
    """All that comes until the server closes its side."""
    received = b""
    with trio.fail_after(5):
        async for chunk in stream:
            received += chunk
    return received


async def ask(port: int, request: bytes) -> bytes:
    async with await connect(port) as stream:
        await stream.send_all(request)
        return await answer(stream)


def page() -> Page:
    return Page(b"what it says\n")


async def test_a_page_comes_whole_and_the_connection_ends() -> None:
    async with served(page) as port:
        response = await ask(port, b"GET /page?x=1 HTTP/1.1\r\nHost: test\r\n\r\n")
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Length: 13\r\n" in head
        assert b"Connection: close" in head
        assert body == b"what it says\n"
        head_only = await ask(port, b"HEAD /page HTTP/1.1\r\n\r\n")
        assert head_only == head + b"\r\n\r\n"


async def test_a_request_may_come_byte_by_byte() -> None:
    async with served(page) as port, await connect(port) as stream:
        for byte in b"GET /page HTTP/1.0\r\n\r\n":
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await answer(stream)).endswith(b"what it says\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /page HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", b"405"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"GET /page HTTP/1.1\r\nX: " + b"x" * 2 * REQUEST_BYTES_MAX, b"431"),
    ],
)
async def test_a_bad_request_for_a_page_gets_the_http_status_that_says_why(
    request_: bytes, status: bytes
) -> None:
    async with served(page) as port:
        assert (await ask(port, request_)).startswith(b"HTTP/1.1 " + status)


async def test_half_requests_start_no_threads_and_keep_nobody_out() -> None:
    threads = threading.active_count()
    async with served(page) as port:
        halves = [await connect(port) for _ in range(20 * CONNECTIONS_MAX)]
        for half in halves:
            await half.send_all(b"GET /page HTT")
        assert (await ask(port, b"GET /page HTTP/1.1\r\n\r\n")).endswith(b"what it says\n")
        assert threading.active_count() == threads
        ended = 0
        for half in halves[: -2 * CONNECTIONS_MAX]:
            with trio.fail_after(5):
                with suppress(trio.BrokenResourceError):
                    assert await half.receive_some() == b""
            ended += 1
        assert ended == 18 * CONNECTIONS_MAX
        for half in halves:
            await half.aclose()


async def test_a_page_that_cannot_be_made_is_an_error_of_its_request_alone() -> None:
    def broken() -> Page:
        raise LookupError("no such number")

    async with served(broken) as port:
        for _ in range(2):
            response = await ask(port, b"GET /page HTTP/1.1\r\n\r\n")
            assert response.startswith(b"HTTP/1.1 500 ")


async def test_a_client_that_goes_away_in_the_middle_harms_nobody() -> None:
    async with served(lambda: Page(b"x" * (1 << 20))) as port:
        for _ in range(10):
            stream = await connect(port)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.send_all(b"GET /page HTTP/1.1\r\n\r\n")
            await stream.receive_some(1)
            await stream.aclose()
        assert len(await ask(port, b"GET /page HTTP/1.1\r\n\r\n")) > 1 << 20


async def test_half_a_request_ends_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CONNECTION_S_MAX", 0.2)
    async with served(page) as port, await connect(port) as stream:
        await stream.send_all(b"GET /page HTT")
        assert await answer(stream) == b""


async def test_a_client_that_does_not_read_ends_after_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "CONNECTION_S_MAX", 0.2)

    async def send_until_it_breaks(stream: trio.SocketStream) -> None:
        while True:
            await trio.sleep(0.05)
            await stream.send_all(b"x")

    async with served(lambda: Page(b"x" * (64 << 20))) as port, await connect(port) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.send_all(b"GET /page HTTP/1.1\r\n\r\n")
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await send_until_it_breaks(stream)


async def test_a_page_is_not_made_more_often_than_ten_times_a_second_and_is_never_stale(
    autojump_clock: trio.testing.MockClock,
) -> None:
    made: list[float] = []

    def render() -> Page:
        made.append(trio.current_time())
        return Page(str(len(made)).encode())

    source = pages._Source(render)
    got: list[bytes] = []

    async def get() -> None:
        asked_s = trio.current_time()
        body = (await source.get()).body
        assert made[int(body) - 1] >= asked_s
        got.append(body)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(get)
            await trio.sleep(0.01)
    assert len(got) == 100
    assert 10 <= len(made) <= 12
    assert all(later - earlier >= 0.0999 for earlier, later in pairwise(made))
