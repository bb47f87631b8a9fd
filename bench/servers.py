"""Starting and stopping what is measured: private Valkeys and the servers on them.

Every measurement gets an empty Valkey and a fresh server, and nothing else of the
harness runs meanwhile. All Valkeys have the same settings.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from bench.peers import go_build
from dbos_actors.store.embedded import valkey_binary

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0

VALKEY_SETTINGS: Final[Mapping[str, str]] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    # A rewrite in the middle of a run would strike the servers that write most.
    "auto-aof-rewrite-percentage": "0",
    "maxmemory-policy": "noeviction",
    "loglevel": "warning",
}

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server did not start, or died."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used; all zero where the system does not tell (no /proc)."""

    cpu_s: float = 0.0
    resident_bytes: int = 0


def usage_of(pid: int) -> Usage:
    """CPU time so far and resident memory of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return Usage()
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / _TICKS_PER_SECOND, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


def machine_cpu_s() -> float:
    """CPU time that all processes of the machine have used so far; 0 where that is not told."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_SECOND


@dataclass(slots=True)
class Process:
    """A program that was started and is ready."""

    name: str
    popen: subprocess.Popen[bytes]
    address: str
    start_s: float
    """From starting the program to its being ready."""
    log: Path | None = None

    def usage(self) -> Usage:
        """CPU time and memory by now."""
        return usage_of(self.popen.pid)

    def stop(self, *, kill: bool = False) -> None:
        """Ends the process: asks first, unless ``kill``."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                self.popen.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()


@dataclass(frozen=True, slots=True)
class ServerKind:
    """How a server to be measured is started."""

    name: str
    title: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    layout: str = "peer"
    """How it keeps results, for checking them: see `verify`."""
    no_op: Sequence[str] | None = None
    """Another command that serves the no-op method, where the server itself has none."""


OURS: Final = ServerKind(
    "ours",
    "dbos-actors",
    (sys.executable, "-m", "dbos_actors", "serve", "--port", "0"),
    layout="ours",
    no_op=(sys.executable, "-m", "bench.peers.ours_noop"),
)


def server_kinds() -> dict[str, ServerKind]:
    """Every server that can be measured here, by name; builds the Go peer if `go` is there."""
    python = sys.executable
    kinds = [
        OURS,
        ServerKind(
            "grpc-aio",
            "grpc.aio + redis.asyncio",
            (python, "-m", "bench.peers.grpc_aio"),
        ),
        ServerKind(
            "grpclib",
            "grpclib + redis.asyncio",
            (python, "-m", "bench.peers.grpclib_peer"),
        ),
    ]
    program = go_build.build()
    if program is not None:
        kinds += [
            ServerKind("go", "grpc-go + go-redis, one round trip", (str(program),)),
            ServerKind(
                "go-separate",
                "grpc-go + go-redis, separate round trips",
                (str(program),),
                {"PEER_ROUND_TRIPS": "separate"},
                layout="peer-separate",
            ),
        ]
    return {kind.name: kind for kind in kinds}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_valkey(directory: Path, **settings: str) -> Process:
    """A Valkey of `VALKEY_SETTINGS` on a free port, its files in ``directory``.

    ``settings`` are used instead of those of the same names.
    """
    port = _free_port()
    command = [str(valkey_binary()), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(directory), "--daemonize", "no"]
    for name, value in {**VALKEY_SETTINGS, **settings}.items():
        command += [f"--{name}", value]
    log = directory / "valkey.log"
    begin = time.perf_counter()
    with log.open("wb") as out:
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    process = Process("valkey", popen, f"127.0.0.1:{port}", 0.0, log)
    with client_of(process.address) as client:
        while True:
            try:
                client.ping()
                break
            except (redis.ConnectionError, redis.BusyLoadingError):
                if popen.poll() is not None or time.perf_counter() - begin > START_TIMEOUT_S:
                    process.stop()
                    raise ServerError(f"valkey: {log.read_text()[-1000:]}") from None
                time.sleep(0.01)
    process.start_s = time.perf_counter() - begin
    return process


@contextmanager
def client_of(address: str) -> Iterator[Any]:
    """A Redis client for checking, closed at the end."""
    host, _, port = address.rpartition(":")
    client = redis.Redis(host=host, port=int(port), protocol=2, socket_timeout=60)
    try:
        yield client
    finally:
        client.close()


def start_server(
    kind: ServerKind, redis_address: str, directory: Path, *, no_op: bool = False
) -> Process:
    """Starts a server and waits for its line ``ready address=...``.

    Raises `ServerError` with the end of its log if that does not come.
    """
    command = kind.no_op if no_op and kind.no_op is not None else kind.command
    environment = os.environ | {"REDIS_ADDR": redis_address, "PORT": "0"} | dict(kind.environment)
    log = directory / f"{kind.name}.log"
    begin = time.perf_counter()
    with log.open("ab") as err:
        popen = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            cwd=Path(__file__).parents[1],
        )
    process = Process(kind.name, popen, "", 0.0, log)
    assert popen.stdout is not None
    os.set_blocking(popen.stdout.fileno(), False)
    seen = b""
    while True:
        remaining_s = begin + START_TIMEOUT_S - time.perf_counter()
        ready, _, _ = select.select([popen.stdout], (), (), max(0.0, remaining_s))
        chunk = os.read(popen.stdout.fileno(), 65_536) if ready else b""
        seen += chunk
        for line in seen.splitlines():
            if line.startswith(b"ready ") and b"address=" in line and seen.endswith(b"\n"):
                process.start_s = time.perf_counter() - begin
                process.address = line.partition(b"address=")[2].split()[0].decode()
                return process
        if not chunk:
            process.stop()
            raise ServerError(f"{kind.name} did not start: {log.read_text()[-1500:]}")


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for one measurement's Valkey, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="dbos-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
