"""HTTP/1.1 clients that are slow, silent or never read, under a clock set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from grpclib.const import Status

from dbos_actors.rpc.server.http1_connection import Http1ServerConnection
from dbos_actors.rpc.server.keepalive import KeepalivePolicy
from dbos_actors.rpc.server.limits import ServerLimits
from dbos_actors.rpc.server.pages import Page
from dbos_actors.rpc.server.shared_state import SharedState
from dbos_actors.rpc.server.stream_call import StreamCall
from dbos_actors.rpc.server.unary import UnaryCall, UnaryMethod
from dbos_actors.rpc.server.undecided import Undecided
from dbos_actors.rpc.server.web_options import WebOptions
from dbos_actors.rpc.wire.http1 import Http1Options

HEAD = b"POST /t.T/Echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\n"
POST = HEAD + b"Content-Length: 5\r\n\r\nhello"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def status_of(error: Exception) -> tuple[Status, str]:
    return Status.UNKNOWN, "untold"


class Connection:
    """A connection and its driver. The socket takes what ``reads`` says."""

    def __init__(self, *, limits: ServerLimits | None = None, page: bytes = b"page") -> None:
        self.kept: list[UnaryCall] = []
        self.shared = SharedState(
            unary={
                "/t.T/Echo": UnaryMethod(lambda call: call.reply(call.request), bytes),
                "/t.T/Keep": UnaryMethod(self.kept.append, bytes),
            },
            status_of=status_of,
            limits=limits or ServerLimits(),
            web=WebOptions(pages=lambda _path: Page(page)),
        )
        self.now_s = 1_000.0
        self.reads = True
        self.sent = b""
        self.server = Http1ServerConnection(
            self.shared, self, peer="ipv4:192.0.2.1:1", now_s=self.now_s
        )
        self._unsent = b""

    def start(self, call: StreamCall) -> None:
        raise AssertionError

    def tell_over(self, call: StreamCall) -> None:
        raise AssertionError

    def dismiss(self) -> None:
        self.server.queue_dismissal()
        self.flush()
        self.server.lost()

    def flush(self) -> None:
        """As `SocketPump`."""
        if self._unsent:
            return
        while True:
            data = self.server.output(1 << 16)
            if self.reads:
                self.sent += data
            elif data:
                self._unsent = data
                self.server.flushed(len(data), self.now_s)
                return
            if len(data) == 1 << 16:
                continue
            if not self.server.flushed(0, self.now_s):
                return

    def receive(self, data: bytes) -> None:
        self.server.receive(data, self.now_s)
        self.flush()

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1
            self.server.tick(self.now_s, len(self.sent))
            self.shared.flush()


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_calls_follow_each_other_on_one_connection(size: int) -> None:
    connection = Connection()
    for _ in range(3):
        for start in range(0, len(POST), size):
            connection.receive(POST[start : start + size])
    assert connection.sent.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert connection.sent.count(b"hello") == 3
    assert not connection.server.closed
    assert connection.shared.calls_live == 0


def test_a_head_that_never_ends_ends_the_connection() -> None:
    connection = Connection()
    connection.receive(POST)
    connection.receive(b"P")
    for _ in range(12):  # a byte a second
        connection.wait(1)
        connection.receive(b"O")
    assert connection.server.closed


def test_a_body_that_pauses_ends_the_connection_and_its_call() -> None:
    connection = Connection()
    connection.receive(POST[:-1])
    assert connection.shared.calls_live == 1
    connection.wait(19)
    assert not connection.server.closed
    connection.wait(2)
    assert connection.server.closed
    assert connection.shared.calls_live == 0
    assert connection.shared.held_free == ServerLimits().held_bytes_shared


def test_a_call_may_take_as_long_as_it_likes_once_its_request_is_whole() -> None:
    connection = Connection()
    connection.receive(POST.replace(b"/Echo", b"/Keep"))
    connection.wait(1_000)
    connection.kept[0].reply(b"late")
    connection.shared.flush()
    assert connection.sent.endswith(b"late")
    assert not connection.server.closed


@pytest.mark.parametrize("begun", [b"", GET])
def test_a_connection_without_requests_ends(begun: bytes) -> None:
    connection = Connection()
    if begun:
        connection.receive(begun)
    connection.wait(119)
    assert not connection.server.closed
    connection.wait(3)
    assert connection.server.closed


def test_a_client_that_does_not_read_its_answer_is_closed() -> None:
    connection = Connection()
    connection.reads = False
    connection.receive(GET)
    connection.wait(29)
    assert not connection.server.closed
    connection.wait(3)
    assert connection.server.closed


def test_what_never_becomes_a_request_body_counts_against_the_shared_memory() -> None:
    limits = ServerLimits(held_bytes_free=1_000, held_bytes_shared=0)
    connection = Connection(limits=limits)
    connection.receive(HEAD + b"Content-Length: 5000\r\n\r\n" + b"x" * 2_000)
    assert connection.sent.startswith(b"HTTP/1.1 503 ")
    assert connection.server.closed
    assert connection.shared.calls_live == 0


def test_a_drain_ends_an_idle_connection_at_once_and_a_busy_one_with_its_answer() -> None:
    idle, busy = Connection(), Connection()
    busy.receive(POST.replace(b"/Echo", b"/Keep"))
    for connection in (idle, busy):
        connection.server.announce_shutdown(connection.now_s, after_streams=True)
        connection.flush()
    assert idle.server.closed
    assert not busy.server.closed
    busy.kept[0].reply(b"done")
    busy.shared.flush()
    assert b"connection: close" in busy.sent.lower()
    assert busy.sent.endswith(b"done")
    assert busy.server.closed


def test_a_connection_that_is_too_old_ends_behind_its_answer() -> None:
    connection = Connection(limits=ServerLimits(keepalive=KeepalivePolicy(age_s_max=60)))
    for _ in range(8):
        connection.receive(POST)
        connection.wait(7)
    assert not connection.server.closed
    connection.wait(8)
    assert connection.server.closed


def test_an_answer_that_comes_after_the_client_has_gone_is_dropped() -> None:
    connection = Connection()
    connection.receive(POST.replace(b"/Echo", b"/Keep"))
    connection.server.lost()
    connection.kept[0].reply(b"late")
    assert connection.sent == b""
    assert connection.shared.calls_live == 0
    assert len(connection.shared.strangers) == 0


def test_limits_of_http1_are_those_of_the_server() -> None:
    connection = Connection(limits=ServerLimits(http1=Http1Options(head_bytes_max=50)))
    connection.receive(b"GET /" + b"x" * 50)
    assert connection.sent.startswith(b"HTTP/1.1 431 ")


# ------------------------------------------------- before it is known what it is


class Decision:
    """What `Undecided` has found, and a driver that does nothing."""

    def __init__(self) -> None:
        self.found: list[tuple[bool, bytes]] = []
        self.dismissed = False

    def decide(self, is_http2: bool, data: bytes, now_s: float) -> None:
        self.found.append((is_http2, data))

    def flush(self) -> None: ...

    def start(self, call: Any) -> None: ...

    def dismiss(self) -> None:
        self.dismissed = True

    def tell_over(self, call: Any) -> None: ...


@pytest.fixture
def undecided() -> Callable[[], tuple[Undecided, Decision, SharedState]]:
    def make() -> tuple[Undecided, Decision, SharedState]:
        shared = SharedState(unary={}, status_of=status_of, limits=ServerLimits())
        decision = Decision()
        one = Undecided(shared, decision, decision.decide, peer="unix:", now_s=0.0)
        return one, decision, shared

    return make


@pytest.mark.parametrize(
    ("data", "is_http2"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\n", False),
        (b"PROPFIND / HTTP/1.1\r\n", False),
        (b"PUT / HTTP/1.1\r\n", False),
        (b"GET / HTTP/1.1\r\n", False),
        (b"\x16\x03\x01", False),
        (b"pri", False),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_first_bytes_tell_the_version(
    undecided: Callable[[], tuple[Undecided, Decision, SharedState]],
    data: bytes,
    is_http2: bool,
    size: int,
) -> None:
    one, decision, shared = undecided()
    assert len(shared.strangers) == 1
    start = 0
    while not decision.found:
        one.receive(data[start : start + size], 1.0)
        start += size
    assert decision.found == [(is_http2, data[:start])]
    assert start <= 4 or size == 100
    assert len(shared.strangers) == 0


def test_a_client_that_says_nothing_has_as_long_as_a_handshake_may_take(
    undecided: Callable[[], tuple[Undecided, Decision, SharedState]],
) -> None:
    one, decision, shared = undecided()
    one.receive(b"PR", 1.0)
    one.tick(119.0, 0)
    assert not one.closed
    one.tick(120.0, 0)
    assert one.closed
    one.receive(b"I", 121.0)
    assert decision.found == []
    assert len(shared.strangers) == 0


def test_it_makes_place_for_others_and_does_not_hold_up_a_drain(
    undecided: Callable[[], tuple[Undecided, Decision, SharedState]],
) -> None:
    one, decision, shared = undecided()
    one.announce_shutdown(1.0)
    one.tick(5.0, 0)
    assert not one.closed
    assert one.is_draining
    one.tick(6.0, 0)
    assert one.closed
    one, decision, shared = undecided()
    assert shared.strangers.dismiss_oldest()
    assert decision.dismissed
