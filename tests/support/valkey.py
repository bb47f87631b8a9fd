"""A private, real Valkey for tests: started, killed, restarted and aged at will.

Everything here is synchronous and short (a start takes some ten milliseconds),
so it serves Trio tests, asyncio tests and plain ones alike. The server listens
on a unix socket in a short temporary directory, and on a loopback port only if
asked to. Nothing is left behind: `close` kills the process and removes the
directory.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import redis

from dbos_actors.store.embedded import valkey_binary

START_TIMEOUT_S = 20.0

# What every test server has unless told otherwise: a durable, bounded, quiet
# one whose AOF is a single growing file, so that it can be cut back. Under everysec a write may
# stay in the server's memory for up to two seconds after its reply; under always the file holds
# what was acknowledged, so a kill loses nothing and a mark is exact.
DEFAULT_CONFIG: Mapping[str, str] = {
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "auto-aof-rewrite-percentage": "0",
    "maxmemory-policy": "noeviction",
    "loglevel": "notice",
    "daemonize": "no",
    "enable-debug-command": "local",
}


class ValkeyServer:
    """One Valkey process over one data directory; may die and come back many times."""

    def __init__(self, *, tcp: bool = False, **config: str | int) -> None:
        """Prepare a server; `start` runs it.

        ``tcp`` adds a loopback port. ``config`` holds directives with ``_`` for ``-``:
        ``ValkeyServer(maxmemory="8mb", appendfsync="always")``.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="vk-"))
        self.socket_path = self.directory / "s"
        self.port = _free_port() if tcp else 0
        self.config: dict[str, str] = {
            **DEFAULT_CONFIG,
            **{name.replace("_", "-"): str(value) for name, value in config.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------- address

    @property
    def address(self) -> str:
        """What ``REDIS_ADDR`` takes: the unix socket's URL."""
        return f"unix://{self.socket_path}"

    @property
    def tcp_address(self) -> str:
        """``127.0.0.1:port``; only with ``tcp=True``."""
        assert self.port, "start with tcp=True"
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    # ----------------------------------------------------------- life cycle

    def start(self, *, until_loaded: bool = True) -> Self:
        """Run the server over its directory and wait until it answers.

        While it loads its data it answers ``LOADING`` to almost everything; by default that is
        waited for too. (``key_load_delay``, in microseconds, makes loading slow.)
        """
        assert not self.is_running
        arguments = [str(valkey_binary()), "--port", str(self.port), "--bind", "127.0.0.1"]
        arguments += ["--unixsocket", str(self.socket_path), "--dir", str(self.directory)]
        for name, value in self.config.items():
            arguments += [f"--{name}", value]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._answers(until_loaded=until_loaded):
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise AssertionError(f"valkey does not start:\n{self.log()}")
            time.sleep(0.002)
        return self

    def kill(self) -> None:
        """``kill -9``: clients see the connection close; the AOF keeps what was written to it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in an orderly way (SIGTERM)."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """`kill`, then `start` over the same data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it if it runs and remove its directory."""
        if self.is_running:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start() if not self.is_running else self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ------------------------------------------------------------ the AOF

    def aof_mark(self) -> int:
        """The length of the AOF now; everything acknowledged so far is before it."""
        return self._aof_path().stat().st_size

    def cut_aof(self, mark: int) -> None:
        """Lose every write after ``mark``, as a machine crash under ``everysec`` may.

        The server must not be running. The mark may fall inside a command or a MULTI:
        what is incomplete is dropped at the next start, as it would be in the field.
        """
        assert not self.is_running, "kill it first"
        path = self._aof_path()
        with path.open("r+b") as aof:
            # A mark from before an earlier cut may lie beyond the end: nothing to lose then.
            aof.truncate(min(mark, path.stat().st_size))

    def lose_writes_since(self, mark: int) -> None:
        """Crash, lose every write after ``mark``, and come back."""
        self.kill()
        self.cut_aof(mark)
        self.start()

    def _aof_path(self) -> Path:
        paths = sorted((self.directory / "appendonlydir").glob("*.incr.aof"))
        assert len(paths) == 1, paths
        return paths[0]

    # ------------------------------------------------------------- look in

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A synchronous redis-py client, closed at the end."""
        # redis-py's own RESP2 and no identification: one round trip less per test.
        client = redis.Redis(unix_socket_path=str(self.socket_path), protocol=2)
        try:
            yield client
        finally:
            client.close()

    def execute(self, *command: str | bytes | float) -> Any:
        """Run one command and return its reply (bytes, int, list ... or raise)."""
        with self.client() as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def log(self) -> str:
        """What the server logged so far."""
        return (self.directory / "log").read_text(errors="replace")

    # ------------------------------------------------------------ internals

    def _answers(self, *, until_loaded: bool) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                answer = probe.recv(64)
            except OSError:
                return False
        # -NOAUTH also means: loaded and listening.
        return bool(answer) if not until_loaded else answer.startswith((b"+PONG", b"-NOAUTH"))

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(number)
        self._process.wait(START_TIMEOUT_S)
        self._process = None
        self.socket_path.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
