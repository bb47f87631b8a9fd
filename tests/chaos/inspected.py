"""A server as a process that tells about itself: tasks, descriptors, memory, what is resident.

``python -m tests.chaos.inspected`` is the program; `InspectedServer` starts it and asks. It is
``dbos-actors serve`` without the command line: the same supervision tree, settings from the
environment. Each line on standard input is answered by one line of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, Self

import structlog
import trio

from dbos_actors.cli.garbage import tend_memory
from dbos_actors.server import RunningServer, open_supervisor
from dbos_actors.settings import descriptions


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory now (proc(5), ``VmRSS``)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


class InspectedServer:
    """The server's process; ends with its ``with`` block."""

    def __init__(self, redis_addr: str, **variables: str) -> None:
        ours = {item.variable for item in descriptions()}
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.inspected"],
            env={**environment, "REDIS_ADDR": redis_addr, "PORT": "0", **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address: str = self._line()["address"]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, *, precisely: bool = False) -> dict[str, Any]:
        """What it is made of now; ``precisely``: garbage not counted, which takes a while."""
        assert self._process.stdin is not None
        self._process.stdin.write("precisely\n" if precisely else "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the server has ended: {self._process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        self._process.wait()


def _figures(running: RunningServer, *, precisely: bool) -> dict[str, Any]:
    if precisely:
        gc.collect()
    parts: dict[str, Any] = {
        "agents": running.agents.statistics(),
        "rpc": running.rpc.statistics(),
        "store": running.store.statistics(),
    }
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - cheaper, and counted only
        "resident_bytes": resident_bytes(),
        "objects": len(gc.get_objects()),
        **{
            f"{part}.{name}": value
            for part, statistics in parts.items()
            for name, value in asdict(statistics).items()
            if not isinstance(value, Enum)
        },
    }


async def _serve() -> None:
    async with open_supervisor() as running, trio.open_nursery() as nursery:
        await nursery.start(tend_memory)
        print(json.dumps({"address": running.address}), flush=True)
        stdin = trio.lowlevel.FdStream(os.dup(0))
        while line := await stdin.receive_some():
            print(json.dumps(_figures(running, precisely=line == b"precisely\n")), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(_serve)
