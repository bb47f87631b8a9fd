"""A replay window that is smaller than what is written: every second has its share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.support.clients import GrpcioClient
from tests.support.servers import ServerThread
from tests.support.valkey import ValkeyServer

WRITERS = 64
SECONDS = 10
DATA = b"x" * 4_096


@pytest.mark.long
def test_64_writers_of_4_kb_are_served_evenly_by_a_window_of_16_mib(
    redis: ValkeyServer, start_server: Callable[..., ServerThread]
) -> None:
    """Catches two seconds at full speed followed by four of nothing."""
    server = start_server(replay_bytes=16 << 20)
    stored: list[float] = []
    refused: list[str] = []
    all_there = threading.Barrier(WRITERS)
    began: list[float] = []
    with GrpcioClient(server.address) as client:

        def write(writer: int) -> None:
            client.call("GetAgent", agent_id=f"a{writer}")
            all_there.wait()
            number = 0
            end_s = time.monotonic() + SECONDS
            began.append(end_s - SECONDS)
            while time.monotonic() < end_s:
                number += 1
                result = {
                    "id": f"{number}",
                    "agent_id": f"a{writer}",
                    "module_name": "m",
                    "data": DATA,
                }
                response = client.call("StoreResult", result=result)
                if response.success:
                    stored.append(time.monotonic())
                else:
                    refused.append(response.error)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not refused
    # The first second has the burst, and the last one may be cut short.
    begin_s = max(began)
    rates = [
        sum(begin_s + second <= at < begin_s + second + 1 for at in stored)
        for second in range(1, SECONDS - 1)
    ]
    mean = sum(rates) / len(rates)
    assert min(rates) > mean / 2, rates
    assert mean > 500, rates
