"""Lines that clients can cause are few, and none goes uncounted."""

from __future__ import annotations

import socket
import struct
from typing import Any

from grpclib.const import Status

from dbos_actors.log_limits import LINES_PER_S, LogLimits
from tests.support.process import ServerProcess
from tests.support.raw_client import RawSocketClient
from tests.support.valkey import ValkeyServer


def test_a_few_lines_of_an_event_are_written_each_second_and_the_rest_counted() -> None:
    now_s = 100.0
    lines: list[tuple[str, dict[str, Any]]] = []

    def write(event: str, **fields: Any) -> None:
        lines.append((event, fields))

    limits = LogLimits(lambda: now_s)
    for number in range(50):
        limits.log(write, "refused", number=number)
    limits.log(write, "other")
    assert lines == [("refused", {"number": n}) for n in range(LINES_PER_S)] + [("other", {})]
    assert limits.left_out_total == 50 - LINES_PER_S
    now_s += 1.0
    lines.clear()
    limits.log(write, "refused", number=50)
    limits.log(write, "refused", number=51)
    assert lines == [("refused", {"number": 50, "left_out": 45}), ("refused", {"number": 51})]


def test_a_client_that_repeats_its_mistakes_writes_few_lines(valkey: ValkeyServer) -> None:
    with ServerProcess(valkey.address, DBOS_METRICS_PORT="0") as server:
        server.wait_ready()
        with RawSocketClient(server.address) as client:
            streams = [client.request("/dbos.DBOS/GetAgent", b"\xff") for _ in range(500)]
            client.read_until(lambda: set(streams) <= set(client.statuses))
            assert set(client.statuses.values()) == {Status.INTERNAL}
        for _ in range(300):
            with RawSocketClient(server.address) as client:
                client.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
                while client.socket.recv(1 << 16):
                    pass
        log = server.log()
        assert 0 < log.count("undecodable request") <= 4 * LINES_PER_S
        assert 0 < log.count("connection refused by the HTTP/2 engine") <= 20 * LINES_PER_S


def test_clients_that_go_away_leave_no_traceback(valkey: ValkeyServer) -> None:
    with ServerProcess(valkey.address, DBOS_METRICS_PORT="0") as server:
        server.wait_ready()
        for resets in (False, True):
            for path, first in (
                ("/dbos.DBOS/SubscribeTasks", b"\x0a\x00"),
                ("/dbos.DBOS/StoreResults", b"\x0a\x09\x0a\x01r\x12\x01a\x1a\x01m"),
            ):
                client = RawSocketClient(server.address)
                for _ in range(20):
                    client.request(path, first, end=False)
                client.flush()
                assert client.read()
                if resets:
                    client.socket.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                client.close()
        with RawSocketClient(server.address) as client:
            assert client.call("/dbos.DBOS/GetAgent", b"\x0a\x01a") is Status.OK
        assert "Traceback" not in server.log()
        assert "error" not in server.log()
