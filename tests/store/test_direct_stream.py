"""The socket stream of the store: whole messages, whatever the socket takes at a time."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from dbos_actors.store.direct_stream import DirectStream


@pytest.fixture
async def streams() -> AsyncIterator[tuple[DirectStream, trio.SocketStream]]:
    ours, theirs = trio.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    stream, peer = DirectStream(trio.SocketStream(ours)), trio.SocketStream(theirs)
    yield stream, peer
    await stream.aclose()
    await peer.aclose()


async def test_a_message_larger_than_the_sockets_buffer_arrives_whole(
    streams: tuple[DirectStream, trio.SocketStream],
) -> None:
    stream, peer = streams
    message = bytes(range(256)) * 4_096
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, message)
        while len(received) < len(message):
            received += await peer.receive_some(10_000)
    assert received == message


async def test_what_the_peer_sends_is_received_and_its_end_is_empty(
    streams: tuple[DirectStream, trio.SocketStream],
) -> None:
    stream, peer = streams
    await peer.send_all(b"+OK\r\n")
    assert await stream.receive_some(3) == b"+OK"
    assert await stream.receive_some() == b"\r\n"
    await peer.aclose()
    assert await stream.receive_some() == b""


async def test_a_peer_that_is_gone_breaks_the_stream(
    streams: tuple[DirectStream, trio.SocketStream],
) -> None:
    stream, peer = streams
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")


async def test_closing_wakes_who_receives_and_refuses_who_comes_later(
    streams: tuple[DirectStream, trio.SocketStream],
) -> None:
    stream, _ = streams

    async def receive(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        await nursery.start(receive)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")
    await stream.aclose()
