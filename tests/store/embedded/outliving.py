"""Servers that are killed while their Valkey may live, and ways to look at it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dbos_actors.store.embedded import (
    processes,
)

# Starts the store, says where it is, and waits to be killed.
SERVER = """
import structlog, sys, trio
from pathlib import Path
from dbos_actors.store.embedded import launcher, open_embedded
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
if sys.argv[2:]:
    launcher.__file__ = sys.argv[2]
async def main():
    async with open_embedded(Path(sys.argv[1])) as store:
        sys.stdout.write(f"{store.process_id} {store.socket}\\n")
        sys.stdout.flush()
        await trio.sleep_forever()
trio.run(main)
"""


async def ask(socket: Path, *command: str) -> object:
    reply = await processes.ask(socket, *command)
    assert not isinstance(reply, Exception), reply
    return reply


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while True:
            if condition():
                return
            await trio.sleep(0.005)


def is_gone(process_id: int) -> bool:
    """Whether the process has ended; a zombie waits for a parent that may never look."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def start_server(data_dir: Path, launcher: Path | None) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SERVER, str(data_dir)]
    arguments += [str(launcher)] if launcher else []
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@asynccontextmanager
async def killed_server(
    data_dir: Path, *, launcher: Path | None = None
) -> AsyncIterator[tuple[int, Path]]:
    """The Valkey's process id and socket, after a server that wrote ``a = 1`` was killed."""
    with start_server(data_dir, launcher) as server:
        assert server.stdout is not None
        try:
            line = await trio.to_thread.run_sync(server.stdout.readline)
            process_id, socket = int(line.split()[0]), Path(line.split()[1])
            assert await ask(socket, "SET", "a", "1") == b"OK"
        finally:
            server.kill()
    try:
        yield process_id, socket
    finally:
        if not is_gone(process_id):
            os.kill(process_id, signal.SIGKILL)
        shutil.rmtree(socket.parent, ignore_errors=True)


def aof_tail(data_dir: Path) -> Path:
    return next((data_dir / "appendonlydir").glob("*.incr.aof"))


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
