"""``python -m dbos_actors serve`` as a process that can be killed, stopped and continued."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from dbos_actors.settings import descriptions

START_TIMEOUT_S = 60.0
_READY = re.compile(r"ready address=(\S+) redis=(\S+)")


class NotReadyError(Exception):
    """The process ended, or said something else, before it was ready."""

    def __init__(self, status: int | None, log: str) -> None:
        super().__init__(f"exit status {status}:\n{log}")
        self.status = status
        self.log = log


class ServerProcess:
    """One server on a Redis; gone at the end of its ``with`` block."""

    def __init__(self, redis_addr: str, *options: str, **variables: str) -> None:
        ours = {item.variable for item in descriptions()}
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        self._log = tempfile.NamedTemporaryFile(prefix="dbos-log-")  # noqa: SIM115 - see close
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dbos_actors", "serve", "--port", "0", *options],
            env={**environment, "REDIS_ADDR": redis_addr, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.address = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> Self:
        """Wait for the ready line. Raises `NotReadyError`."""
        assert self._process.stdout is not None
        give_up_at = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select(
                [self._process.stdout], [], [], max(0.0, give_up_at - time.monotonic())
            )
            chunk = os.read(self._process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                break
            line += chunk
        match = _READY.match(line.decode())
        if match is None:
            status = self._process.wait(10) if not line else None
            raise NotReadyError(status, self.log())
        self.address = match[1]
        return self

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(timeout_s)

    def rss_bytes(self) -> int:
        """Resident memory now (proc(5), ``VmRSS``)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def log(self) -> str:
        """What it has written to stderr."""
        return Path(self._log.name).read_text(errors="replace")

    def close(self) -> None:
        if self.is_running:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
