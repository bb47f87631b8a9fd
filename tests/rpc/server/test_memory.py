"""Clients that do not read cost a known amount of memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

Connect = Callable[..., Any]

SERVER = """
import sys, trio
from grpclib.const import Cardinality, Handler, Status
from dbos_actors.rpc.server.listeners import bound_address, open_listeners
from dbos_actors.rpc.server.server import Server
from dbos_actors.rpc.server.unary import UnaryMethod

SIZE = 4 * 1024 * 1024 - 5

def unary(call):
    call.reply(bytes(SIZE) if call.request else b"small")

class Stream:
    async def pour(self, stream):
        while True:
            await stream.send_message(bytes(SIZE))

    def __mapping__(self):
        handler = Handler(self.pour, Cardinality.STREAM_STREAM, type("M", (), {"FromString": bytes}), bytes)
        return {"/test.Test/Pour": handler}

async def main():
    server = Server(
        unary={"/test.Test/Echo": UnaryMethod(unary, bytes)},
        services=[Stream()],
        status_of=lambda error: (Status.UNKNOWN, ""),
    )
    listeners = await open_listeners("127.0.0.1:0")
    print(bound_address(listeners[0]), flush=True)
    await server.serve(listeners)

trio.run(main)
"""  # noqa: E501


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("path", [b"/test.Test/Echo", b"/test.Test/Pour"])
async def test_500_connections_that_leave_4_mib_responses_unread_are_bounded(
    connect: Connect, path: bytes
) -> None:
    """Without a bound for all connections together this is 2 GiB."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        address = (await process.stdout.receive_some()).decode().strip()
        before = resident_mib(process.pid)
        clients = []
        for _ in range(500):
            client = await connect(address)
            client.raw.request(b"big", path=path, end=path != b"/test.Test/Pour")
            await client.flush()
            clients.append(client)
        most = 0
        for _ in range(20):
            await trio.sleep(0.05)
            most = max(most, resident_mib(process.pid))
        # 256 MiB for all, 256 KiB for each, 64 KiB of each framed, the connections themselves;
        # the rest is what the allocator does not give back.
        assert most - before < 256 + 500 * (0.25 + 0.0625 + 0.1) + 250
        assert most - before > 100, "the responses were not even made"
        good = await connect(address)
        assert (await good.call(b"")).body[5:] == b"small"
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()
