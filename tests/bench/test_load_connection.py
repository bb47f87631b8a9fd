"""The load generator's connections against a server with an independent HTTP/2 engine.

`h2` refuses what breaks flow control or exceeds the number of streams, so a load
that ends well has honoured both.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

from bench.load.histogram import Histogram
from bench.load.plan import Group, GroupOutcome, Load, Outcome
from bench.load.requests import Parameters, id_prefix
from bench.load.worker import Worker
from dbos_actors.api import messages

OK = messages.StoreResultResponse(success=True).SerializeToString()
PREFIX = id_prefix(1, 0)


def framed(message: bytes) -> bytes:
    return bytes(1) + len(message).to_bytes(4, "big") + message


@dataclass
class Script:
    """How the server answers, and what it saw."""

    answer: Callable[[Server, int, bytes], None]
    settings: dict[Any, int] = field(default_factory=dict)
    chop: int = 0
    """Bytes per send; 0 is all at once."""
    requests: list[bytes] = field(default_factory=list)
    most_open: int = 0
    broken: list[str] = field(default_factory=list)


class Server:
    """One connection of a scripted server."""

    def __init__(self, sock: socket.socket, script: Script) -> None:
        self.script = script
        self._socket = sock
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=False, initial_values=dict(self.h2.local_settings) | script.settings
        )
        self._bodies: dict[int, bytes] = {}
        self._open: set[int] = set()

    def serve(self) -> None:
        self.h2.initiate_connection()
        self._flush()
        while data := self._socket.recv(65_536):
            try:
                events = self.h2.receive_data(data)
            except h2.exceptions.ProtocolError as error:
                self.script.broken.append(repr(error))
                self._flush()
                return
            for event in events:
                self._take(event)
            self._flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            assert event.stream_id is not None
            self._open.add(event.stream_id)
            self._bodies[event.stream_id] = b""
            self.script.most_open = max(self.script.most_open, len(self._open))
        elif isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None
            assert event.data is not None
            self._bodies[event.stream_id] += event.data
            if event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._messages(event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            assert event.stream_id is not None
            self._open.discard(event.stream_id)

    def _messages(self, stream_id: int) -> None:
        body = self._bodies[stream_id]
        while len(body) >= 5 and len(body) >= (end := 5 + int.from_bytes(body[1:5], "big")):
            message, body = body[5:end], body[end:]
            self.script.requests.append(message)
            self._bodies[stream_id] = body
            self.script.answer(self, stream_id, message)

    def begin(self, stream_id: int) -> None:
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        self.h2.send_headers(stream_id, headers)

    def end(self, stream_id: int, status: str = "0") -> None:
        self._open.discard(stream_id)
        self.h2.send_headers(stream_id, [("grpc-status", status)], end_stream=True)

    def refuse(self, stream_id: int, status: str) -> None:
        """Trailers only."""
        self._open.discard(stream_id)
        self.h2.send_headers(
            stream_id,
            [(":status", "200"), ("grpc-status", status), ("grpc-message", "no")],
            end_stream=True,
        )

    def _flush(self) -> None:
        data = self.h2.data_to_send()
        step = self.script.chop or max(1, len(data))
        for start in range(0, len(data), step):
            self._socket.sendall(data[start : start + step])


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The address of a server that follows ``script``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=serve, args=(sock,))
                threads.append(thread)
                thread.start()

        def serve(sock: socket.socket) -> None:
            with sock:
                try:
                    Server(sock, script).serve()
                except ConnectionError:
                    return

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def good(server: Server, stream_id: int, _message: bytes) -> None:
    server.begin(stream_id)
    server.h2.send_data(stream_id, framed(OK))
    server.end(stream_id)


def load_of(
    address: str,
    *,
    kind: str = "store_result",
    count: int | None = 200,
    in_flight: int = 20,
    connections: int = 2,
    rate: float | None = None,
    stream: bool = False,
    duration_s: float = 10.0,
) -> Load:
    parameters = Parameters(kind, PREFIX, agents=13, count=count, known=13)
    group = Group("g", parameters, connections, in_flight, rate, stream)
    return Load(address, (group,), 0.0, duration_s, until_exhausted=count is not None)


def run(load: Load) -> tuple[Outcome, GroupOutcome]:
    worker = Worker(load)
    try:
        worker.connect()
        outcome = worker.run()
    finally:
        worker.close()
    return outcome, outcome.groups["g"]


def assert_all_acknowledged(script: Script, outcome: Outcome, group: GroupOutcome) -> None:
    assert outcome.error is None
    assert not script.broken
    assert (group.issued, group.acknowledged, group.measured) == (200, 200, 200)
    assert (group.unanswered, group.failures) == (0, {})
    assert sum(group.histogram.values()) == 200
    assert len(set(script.requests)) == 200


@pytest.mark.parametrize("chop", [0, 1, 7, 100])
def test_every_reply_is_found_however_the_bytes_arrive(chop: int) -> None:
    script = Script(good, chop=chop)
    with serving(script) as address:
        assert_all_acknowledged(script, *run(load_of(address)))


def test_no_more_streams_are_open_than_the_peer_allows() -> None:
    setting = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
    script = Script(good, settings={setting: 3})
    with serving(script) as address:
        outcome, group = run(load_of(address))
    assert_all_acknowledged(script, outcome, group)
    assert script.most_open <= 3
    assert group.in_flight == 6


def test_more_is_not_sent_than_the_connection_window_holds() -> None:
    # 200 results are several times the 64 KiB that a connection begins with.
    script = Script(good)
    with serving(script) as address:
        outcome, group = run(load_of(address, in_flight=200))
    assert_all_acknowledged(script, outcome, group)
    sent = sum(map(len, script.requests))
    assert sent > 2 * 2 * 65_535


def test_a_peer_without_a_header_table_is_served() -> None:
    setting = h2.settings.SettingCodes.HEADER_TABLE_SIZE
    script = Script(good, settings={setting: 0})
    with serving(script) as address:
        assert_all_acknowledged(script, *run(load_of(address)))


def test_replies_that_are_not_good_are_counted_by_reason() -> None:
    refusal = messages.StoreResultResponse(error="data too large").SerializeToString()

    def answer(server: Server, stream_id: int, message: bytes) -> None:
        number = len(server.script.requests)
        if number % 5 == 0:
            server.refuse(stream_id, "14")
        elif number % 5 == 1:
            server.begin(stream_id)
            server.h2.send_data(stream_id, framed(refusal))
            server.end(stream_id)
        elif number % 5 == 2:
            server.h2.reset_stream(stream_id, 7)
        elif number % 5 == 3:
            server.begin(stream_id)
            server.end(stream_id, "13")
        else:
            good(server, stream_id, message)

    script = Script(answer)
    with serving(script) as address:
        outcome, group = run(load_of(address, count=50))
    assert outcome.error is None
    assert group.failures == {"grpc 14": 10, "refused": 10, "reset 7": 10, "grpc 13": 10}
    assert group.acknowledged == 10
    assert any("data too large" in example for example in group.examples)


def test_a_reply_without_a_message_is_not_counted_as_good() -> None:
    def answer(server: Server, stream_id: int, message: bytes) -> None:
        if len(server.script.requests) == 7:
            server.begin(stream_id)
            server.end(stream_id)
        else:
            good(server, stream_id, message)

    script = Script(answer)
    with serving(script) as address:
        outcome, _ = run(load_of(address, count=20))
    assert outcome.error is not None
    assert "without a message" in outcome.error


def test_a_long_reply_in_many_frames_is_one_reply() -> None:
    found = messages.GetResultResponse(found=True)
    found.result.data = bytes(100_000)
    body = framed(found.SerializeToString())

    def answer(server: Server, stream_id: int, _message: bytes) -> None:
        server.begin(stream_id)
        for start in range(0, len(body), 16_000):
            server.h2.send_data(stream_id, body[start : start + 16_000])
        server.end(stream_id)

    script = Script(answer)
    with serving(script) as address:
        outcome, group = run(load_of(address, kind="get_result", count=40))
    assert outcome.error is None
    assert (group.acknowledged, group.failures) == (40, {})
    assert group.received_bytes == 40 * len(body)


def test_runs_are_reported_in_order_with_many_under_way() -> None:
    reports: dict[str, list[str]] = {}

    def answer(server: Server, stream_id: int, message: bytes) -> None:
        state = messages.SetModuleStateRequest.FromString(message).state
        reports.setdefault(state.request_id, []).append(state.state)
        good(server, stream_id, message)

    script = Script(answer)
    with serving(script) as address:
        outcome, group = run(load_of(address, kind="runs", count=30))
    assert outcome.error is None
    assert group.acknowledged == 4 * 30
    assert len(reports) == 30
    assert set(map(tuple, reports.values())) == {("created", "started", "running", "completed")}


def test_a_connection_that_breaks_ends_the_load_and_says_why() -> None:
    def answer(server: Server, stream_id: int, message: bytes) -> None:
        if len(server.script.requests) >= 50:
            raise ConnectionResetError
        good(server, stream_id, message)

    script = Script(answer)
    with serving(script) as address:
        outcome, group = run(load_of(address))
    assert outcome.error
    assert group.acknowledged < 200
    assert group.unanswered > 0


def test_open_loop_latency_counts_from_the_moment_a_call_was_due() -> None:
    resume = threading.Event()
    timer = threading.Timer(0.3, resume.set)

    def answer(server: Server, stream_id: int, message: bytes) -> None:
        if len(server.script.requests) == 1:
            timer.start()
            resume.wait()
        good(server, stream_id, message)

    script = Script(answer)
    with serving(script) as address:
        load = load_of(address, count=None, rate=500.0, in_flight=4, connections=1, duration_s=0.6)
        outcome, group = run(load)
    timer.join()
    assert outcome.error is None
    # With so few in flight most calls fell due during the stall without being sent; a closed
    # loop would have seen four slow calls.
    slow = sum(count for bucket, count in group.histogram.items() if int(bucket) >= bucket_of(0.05))
    assert slow > 20
    assert 100 < group.issued <= 500.0 * outcome.elapsed_s + 1
    assert group.acknowledged == group.issued


def bucket_of(seconds: float) -> int:
    return int(next(iter(Histogram.of_seconds([seconds]).to_json())))


def progress(server: Server, stream_id: int, *, durable: int, **fields: Any) -> None:
    response = messages.StoreResultsResponse(durable=durable, **fields)
    server.h2.send_data(stream_id, framed(response.SerializeToString()))


def test_a_stream_counts_what_is_reported_durable() -> None:
    seen: dict[int, int] = {}

    def answer(server: Server, _stream_id: int, _message: bytes) -> None:
        key = id(server)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 1:
            server.begin(1)
        if seen[key] % 10 == 0:
            progress(server, 1, durable=seen[key])

    script = Script(answer)
    with serving(script) as address:
        outcome, group = run(load_of(address, stream=True))
    assert outcome.error is None
    assert not script.broken
    assert group.issued == 200
    assert group.acknowledged + group.unanswered == 200
    assert group.failures == {}


def test_rejected_and_duplicate_messages_of_a_stream_are_failures() -> None:
    def answer(server: Server, stream_id: int, _message: bytes) -> None:
        number = len(server.script.requests)
        if number == 1:
            server.begin(stream_id)
        if number == 20:
            rejected = messages.StoreResultsResponse.Rejected(index=3, error="empty id")
            progress(server, stream_id, durable=20, duplicates=2, rejected=[rejected])

    script = Script(answer)
    with serving(script) as address:
        load = load_of(address, stream=True, count=20, connections=1)
        outcome, group = run(load)
    assert outcome.error is None
    assert group.failures == {"refused": 1, "duplicate": 2}
    assert group.acknowledged == 19


def test_a_stream_that_is_not_implemented_fails_with_its_status() -> None:
    def answer(server: Server, stream_id: int, _message: bytes) -> None:
        if stream_id not in server.h2.streams or not server.h2.streams[stream_id].closed:
            server.refuse(stream_id, "12")

    script = Script(answer)
    with serving(script) as address:
        load = load_of(address, stream=True, in_flight=2, count=None, duration_s=0.2)
        outcome, group = run(load)
    assert outcome.error is None
    assert set(group.failures) == {"grpc 12"}
    assert group.acknowledged == 0
